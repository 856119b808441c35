"""The model of fine-tuning: a Hub module as the backbone, a linear classifier, and optionally a
teacher."""

from collections.abc import Callable
from typing import Optional

import tensorflow as tf

from tfssl import optim
from tfssl.backbones.hub import Hub, network_of
from tfssl.backbones.layers import Network
from tfssl.backbones.vit import SIZES
from tfssl.classifiers import predictions
from tfssl.classifiers.classifier import Classifier
from tfssl.classifiers.images import LabeledData
from tfssl.config.configs import FinetuneConfig
from tfssl.data.ops.mixing import Mixing
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.hub.load import Module


def build_model(
    config: FinetuneConfig, images: LabeledData, teacher: Optional[Callable] = None
) -> Classifier:
    """The classifier before training; to be called in the strategy's scope.

    Args:
      teacher: a function images [N, H, W, 3] in [0, 1] -> logits [N, C].

    Raises:
      UserError: the module has no trainable variables.
    """
    settings, distillation = config.classifier, config.distillation
    regularization = config.regularization
    module = modules.load(settings.handle())
    size, resize = module.sizes(settings.image_size or None, settings.resize or None)
    network = None
    if regularization.drop_path:
        network = _with_drop_path(module, regularization.drop_path)
    backbone = Hub(module, size, trainable=not settings.freeze, network=network)
    if not settings.freeze and not backbone.learned:
        raise UserError(
            f"module {module.handle!r} has no variable that training could change: --freeze takes "
            "it as it is"
        )
    return Classifier(
        backbone,
        images.num_classes or 0,
        backbone.choose(settings.endpoint),
        head_rate=settings.head_rate,
        layer_decay=settings.layer_decay,
        mixing=Mixing(
            regularization.mixup,
            regularization.cutmix,
            regularization.mix_switch,
            regularization.mix_probability,
        ),
        label_smoothing=regularization.label_smoothing,
        randaugment=regularization.randaugment,
        randaugment_magnitude=regularization.randaugment_magnitude,
        random_erasing=regularization.random_erasing,
        teacher=teacher,
        temperature=distillation.distill_temperature,
        distill_weight=distillation.distill_weight,
        scale_by_t2=distillation.distill_scale_by_t2,
        labeled=images.labels > 0 or images.validation is not None,
        image_size=size,
        resize=resize,
        min_area=settings.min_area,
        flip=settings.flip,
        weight_decay=0.0
        if optim.own_decay(config.optimization.optimizer)
        else config.optimization.weight_decay,
    )


def _with_drop_path(module: Module, rate: float) -> Network:
    """The network of a module, to be trained with drop path, which its graph has not."""
    name = (module.facts.get("network") or {}).get("name")
    if name not in SIZES:
        raise UserError(
            f"--drop_path={rate:g} is of vision transformers that tfssl-export or tfssl-import "
            f"wrote, and module {module.handle!r} is {f'a {name}' if name else 'none'}: leave it "
            "out"
        )
    return network_of(module, drop_path=rate)


def load_teacher(
    config: FinetuneConfig, images: LabeledData
) -> Optional[Callable[[tf.Tensor], tf.Tensor]]:
    """The teacher, a function images -> logits, or None; to be called in the strategy's scope.
    Images without classes get its.

    Raises:
      UserError: teacher and images have different classes.
    """
    handle, dataset = config.distillation.teacher, config.data.dataset
    if not handle:
        return None
    module = modules.load(handle)
    classes, names = predictions.num_classes(module), module.facts.get("class_names")
    if images.num_classes is None:
        images.num_classes, images.class_names = classes, names
    if classes != images.num_classes:
        raise UserError(
            f"--teacher={handle} tells {classes} classes apart, and --dataset={dataset} has "
            f"{images.num_classes}"
        )
    if names and images.class_names and list(names) != list(images.class_names):
        odd = sorted(set(names) ^ set(images.class_names))[:5]
        raise UserError(
            f"--teacher={handle} and --dataset={dataset} have different classes: "
            f"{', '.join(odd) or 'in another order'}"
        )
    return lambda crops: module.endpoints(crops)["logits"]
