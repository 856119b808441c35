"""Whose files are whose: for each project, where in its files the encoder stands, under which
names, and how its images are normalized. A class of one's own is a family too, by its import
path."""

from __future__ import annotations

from typing import Any

from tfssl.interop.layouts.haiku_resnet import HaikuResNet
from tfssl.interop.layouts.layout import Layout
from tfssl.interop.layouts.simclr_resnet import SimCLRResNet
from tfssl.interop.layouts.timm_vit import TimmViT
from tfssl.interop.layouts.torch_resnet import TorchResNet
from tfssl.registry import Registry

# {name: (mean, standard deviation)} of images in [0, 1]
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1]
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Family:
    """Weight files of one project. What a subclass leaves out holds for torchvision's.

    Attributes:
      layouts: how the networks are named that it has.
      prefix: regular expression of what stands before those names. Names of nested dicts are
        joined by "/".
      normalization: one of NORMALIZATIONS, or `normalized` says it.
      geometry: settings of its ResNets that shapes do not tell.
      heads: what else its files hold: {beginning of a name: what it is}.
    """

    layouts: tuple[type[Layout], ...] = (TorchResNet,)
    prefix = r"(?:(?:state_dict|model)/)?(?:module\.)?(?:backbone\.)?"
    normalization = "imagenet"
    geometry: dict[str, Any] = {"bn_epsilon": 1e-5, "padding": "torch"}
    heads: dict[str, str] = {"fc.": "classifier", "head.": "classifier"}

    def adapt(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The backbone's settings, given those that its layout reads off the shapes."""
        return settings if settings["name"].startswith("vit") else {**settings, **self.geometry}

    def normalized(self, settings: dict[str, Any]) -> str | None:
        """The images' normalization; None: the files differ, and the user has to say."""
        return self.normalization


class Torchvision(Family):
    """torchvision's ResNets, and files that name their weights alike."""


class BarlowTwins(Family):
    heads = {**Family.heads, "projector.": "projector", "bn.": "projector", "classifier.": "probe"}


class VICReg(Family):
    heads = {**Family.heads, "projector.": "projector"}


class MoCo(Family):
    """Versions 1 and 2."""

    prefix = r"(?:state_dict/)?(?:module\.)?encoder_q\."
    heads = {"fc.": "projection head", "encoder_k.": "momentum encoder", "queue": "queue"}


class MoCoV3(Family):
    layouts = (TorchResNet, TimmViT)
    prefix = r"(?:state_dict/)?(?:module\.)?base_encoder\."
    heads = {
        "fc.": "projector",
        "head.": "projector",
        "predictor.": "predictor",
        "momentum_encoder.": "momentum encoder",
    }

    def adapt(self, settings: dict[str, Any]) -> dict[str, Any]:
        settings = super().adapt(settings)
        return {**settings, "heads": 12} if settings["name"] == "vit_small" else settings


class SimSiam(Family):
    prefix = r"(?:state_dict/)?(?:module\.)?encoder\."
    heads = {"fc.": "projector", "predictor.": "predictor"}


class SwAV(Family):
    prefix = r"(?:(?:state_dict|model)/)?(?:module\.)?"
    heads = {"projection_head.": "projection head", "prototypes": "prototypes"}


class DeepClusterV2(SwAV):
    """Its files are SwAV's, with several sets of prototypes."""


class DINO(Family):
    layouts = (TorchResNet, TimmViT)
    prefix = r"(?:teacher/)?(?:module\.)?(?:backbone\.)?"
    heads = {
        **Family.heads,
        "student/": "student network",
        "teacher/head.": "projection head",
        "dino_loss/": "state of the loss",
        "mask_token": "mask token",
    }


class MAE(Family):
    layouts = (TimmViT,)
    prefix = r"(?:model/)?"
    heads = {"decoder_": "decoder", "mask_token": "mask token", "head.": "classifier"}


class IJEPA(Family):
    layouts = (TimmViT,)
    prefix = r"target_encoder/(?:module\.)?"
    heads = {"encoder/": "context encoder", "predictor/": "predictor"}


class Timm(Family):
    layouts = (TorchResNet, TimmViT)
    prefix = r"(?:state_dict/)?"
    heads = {**Family.heads, "mask_token": "mask token"}

    def normalized(self, settings: dict[str, Any]) -> str | None:
        """Its ViTs differ: those of AugReg have half, DeiT's imagenet."""
        return None if settings["name"].startswith("vit") else self.normalization


class SimCLR(Family):
    """Version 1 (TensorFlow 1), and 2 (TensorFlow 1 and 2), with selective kernels or without."""

    layouts = (SimCLRResNet,)
    prefix = r"(?:model/)?(?:base_model/|resnet/)?"
    normalization = "none"
    geometry = {"bn_epsilon": 1e-5, "padding": "simclr"}
    heads = {
        "head_": "heads",
        "projection_head": "projection head",
        "supervised_head": "classifier",
        "global_step": "step",
    }


class BYOL(Family):
    """The online network."""

    layouts = (HaikuResNet,)
    prefix = r"(?:experiment_state/)?(?:online_)?"
    geometry = {"bn_epsilon": 1e-5, "padding": "same"}
    heads = {
        "experiment_state/target_": "target network",
        "experiment_state/online_params/projector": "projector",
        "experiment_state/online_params/predictor": "predictor",
        "experiment_state/online_params/classifier": "classifier",
    }


FAMILIES = Registry(
    "family",
    {
        name: f"tfssl.interop.families:{cls.__name__}"
        for name, cls in {
            "torchvision": Torchvision,
            "moco_v1": MoCo,
            "moco_v2": MoCo,
            "moco_v3": MoCoV3,
            "simsiam": SimSiam,
            "swav": SwAV,
            "deepcluster_v2": DeepClusterV2,
            "barlow_twins": BarlowTwins,
            "vicreg": VICReg,
            "dino": DINO,
            "mae": MAE,
            "ijepa": IJEPA,
            "timm": Timm,
            "simclr_v1": SimCLR,
            "simclr_v2": SimCLR,
            "byol": BYOL,
        }.items()
    },
)
