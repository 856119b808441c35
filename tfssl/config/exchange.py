"""What tfssl-import is told: a frozen value, whose fields are its flags."""

import dataclasses
from typing import Literal, Optional

from tfssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Import:
    """Weights of another project, and the module they become.

    Args:
      weights: Required. A local file: safetensors; PyTorch's .pth, .pt or .pth.tar; BYOL's .pkl; a
        TensorFlow checkpoint (its prefix or its folder) or a SavedModel's folder. Nothing in it is
        run.
      family: Whose weights they are: torchvision, moco_v1, moco_v2, moco_v3, simsiam, swav,
        deepcluster_v2, barlow_twins, vicreg, dino, mae, ijepa, timm, simclr_v1, simclr_v2, byol,
        or the import path of a class of your own, mypackage.mine:MyFamily. Default: the only one
        whose names the file has.
      export_dir: Folder of the module, which must not exist yet.
      license: Of the weights, as their authors state it, for the module's tfssl.json: weights go
        by a license of their own, which may forbid some uses (CC-BY-NC-4.0 of MAE, SwAV, SimSiam,
        MoCo v3 and I-JEPA; Apache-2.0 of DINO, SimCLR and BYOL).
      normalization: What the network expects: imagenet (mean and deviation), half (images in
        [-1, 1]), none (in [0, 1]). Default: the family's; of timm's ViTs it has to be said.
      image_size: Side of the crops that the module is meant for, in pixels; 0: 224, or the images
        of a ViT's learned positions.
      resize: Shorter side of an image before that crop; 0: image_size * 256 / 224.
      random_init: Publish the same network untrained, the baseline that evaluation needs.
      seed: Of the untrained weights.
      tarball: Also write EXPORT_DIR.tar.gz, which serves as a handle too.
      dry_run: List what would be loaded, and what would not; write nothing.
    """

    heading = "Import"
    flag_names = {"family": "from"}
    flag_bounds = {"image_size": (0, 65536), "resize": (0, 65536)}

    weights: Optional[str] = None
    family: Optional[str] = None
    export_dir: Optional[str] = None
    license: str = ""
    normalization: Optional[Literal["imagenet", "half", "none"]] = None
    image_size: int = 0
    resize: int = 0
    random_init: bool = False
    seed: int = 0
    tarball: bool = False
    dry_run: bool = False

    def file(self) -> str:
        """The file of the weights.

        Raises:
          UserError: it is missing, or is none of this machine.
        """
        if not self.weights:
            raise UserError("--weights is missing: name the file of another project's weights")
        if "://" in self.weights:
            raise UserError(
                f"--weights={self.weights}: download it first, and compare its digest with its "
                "authors'"
            )
        return self.weights

    def folder(self) -> str:
        """Where the module goes.

        Raises:
          UserError: it is missing.
        """
        if not self.export_dir:
            raise UserError(
                "--export_dir is missing: name a folder for the module (or try --dry_run)"
            )
        return self.export_dir
