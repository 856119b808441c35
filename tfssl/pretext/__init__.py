"""The pretext tasks, one file each; `build` makes one by name."""

import importlib

from tfssl.errors import UserError

_CLASSES = {  # the module bears the task's name
    "rotation": "Rotation",
    "exemplar": "Exemplar",
    "exemplar_cnn": "ExemplarCNN",
    "jigsaw": "Jigsaw",
    "relative_patch": "RelativePatch",
    "colorization": "Colorization",
    "instance_discrimination": "InstanceDiscrimination",
    "pirl": "PIRL",
    "moco": "MoCo",
    "infomin": "InfoMin",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "supervised": "Supervised",
}
NAMES = tuple(_CLASSES)


def build(name, backbone, **settings):
    """The task `name` over a backbone (any that `backbones.build` accepts); `settings` are the arguments of its class (`task_class(name)`).

    Raises:
      UserError: unknown task, or a setting that the task does not have.
    """
    from tfssl import backbones  # late: it needs TensorFlow, and `--help` reads NAMES only

    try:
        model = task_class(name)(backbones.build(backbone), **settings)
        model.settings = dict(settings)
        return model
    except TypeError as e:
        if "unexpected keyword" in str(e):
            raise UserError(f"task {name!r}: {str(e).split('() ')[-1]}") from e
        raise


def task_class(name):
    """The class of a task."""
    if name not in _CLASSES:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(NAMES)}")
    return getattr(importlib.import_module(f"tfssl.pretext.{name}"), _CLASSES[name])


def sources():
    """{task: (module name, class name)}, without importing any: `config.settings` reads their signatures from the files."""
    return {name: (f"tfssl.pretext.{name}", class_name) for name, class_name in _CLASSES.items()}
