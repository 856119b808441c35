"""The pretext tasks, one file each; `build` makes one by name."""

from typing import TYPE_CHECKING, Any

from tfssl.config.generated import Generated, of_registry
from tfssl.errors import UserError
from tfssl.registry import Registry

if TYPE_CHECKING:
    from tfssl.pretext.task import Pretext

TASKS = Registry(
    "task",
    {
        "rotation": "tfssl.pretext.rotation:Rotation",
        "exemplar": "tfssl.pretext.exemplar:Exemplar",
        "exemplar_cnn": "tfssl.pretext.exemplar_cnn:ExemplarCNN",
        "jigsaw": "tfssl.pretext.jigsaw:Jigsaw",
        "relative_patch": "tfssl.pretext.relative_patch:RelativePatch",
        "order_verification": "tfssl.pretext.order_verification:OrderVerification",
        "colorization": "tfssl.pretext.colorization:Colorization",
        "split_brain": "tfssl.pretext.split_brain:SplitBrain",
        "instance_discrimination": "tfssl.pretext.instance_discrimination:InstanceDiscrimination",
        "local_aggregation": "tfssl.pretext.local_aggregation:LocalAggregation",
        "deepcluster": "tfssl.pretext.deepcluster:DeepCluster",
        "deepcluster_v2": "tfssl.pretext.deepcluster_v2:DeepClusterV2",
        "cmc": "tfssl.pretext.cmc:CMC",
        "pirl": "tfssl.pretext.pirl:PIRL",
        "moco": "tfssl.pretext.moco:MoCo",
        "infomin": "tfssl.pretext.infomin:InfoMin",
        "clsa": "tfssl.pretext.clsa:CLSA",
        "simclr": "tfssl.pretext.simclr:SimCLR",
        "byol": "tfssl.pretext.byol:BYOL",
        "swav": "tfssl.pretext.swav:SwAV",
        "simsiam": "tfssl.pretext.simsiam:SimSiam",
        "barlow_twins": "tfssl.pretext.barlow_twins:BarlowTwins",
        "vicreg": "tfssl.pretext.vicreg:VICReg",
        "nnclr": "tfssl.pretext.nnclr:NNCLR",
        "moco_v3": "tfssl.pretext.moco_v3:MoCoV3",
        "dino": "tfssl.pretext.dino:DINO",
        "mae": "tfssl.pretext.mae:MAE",
        "simmim": "tfssl.pretext.simmim:SimMIM",
        "lejepa": "tfssl.pretext.lejepa:LeJEPA",
        "sup_con": "tfssl.pretext.sup_con:SupCon",
        "pic": "tfssl.pretext.pic:PIC",
        "pixpro": "tfssl.pretext.pixpro:PixPro",
        "distill": "tfssl.pretext.distill:Distill",
        "supervised": "tfssl.pretext.supervised:Supervised",
    },
)
NAMES = TASKS.names


def task_flags(task: str = NAMES[0]) -> Generated:
    """The flags of the settings of all tasks: ours, and `task`, which may be the import path of a
    user's own class.

    Raises:
      UserError: there is no such task.
    """
    return of_registry(TASKS, task)


def build(task: "str | type", backbone: Any, **settings: Any) -> Any:
    """A task over a backbone.

    Args:
      task: its name, one of NAMES or the import path of a user's own class; or that class.
      backbone: any that `backbones.build` accepts.
      settings: arguments of the class (`task_class(task)`).

    Raises:
      UserError: unknown task, or a setting that the task does not have.
    """
    from tfssl import backbones  # late: it needs TensorFlow, and `--help` reads NAMES only

    cls = task if isinstance(task, type) else task_class(task)
    try:
        model = cls(backbones.build(backbone), **settings)
        model.settings = dict(settings)
        return model
    except TypeError as e:
        if "unexpected keyword" in str(e):
            raise UserError(f"task {name_of(cls)!r}: {str(e).split('() ')[-1]}") from e
        raise


def task_class(name: str) -> "type[Pretext]":
    """The class of a task: one of NAMES, or the import path of a user's own,
    "mypackage.mymodule:MyTask"."""
    return TASKS.find(name)


def name_of(cls: type) -> str:
    """The name, or the import path, of a task's class: what `build` and `--task` take."""
    return TASKS.name_of(cls)
