"""What tfssl-eval is told, beside its protocols: a frozen value, whose fields are its flags.

`Evaluation` is all of it; each of its bases is a section of `--help`, `schema.Inference` among
them.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

from tfssl.config.schema import Inference
from tfssl.errors import UserError

BUDGET_MINUTES = 5.0  # of --protocol=all
NOT_PROTOCOLS = ("all", "features")  # what --protocol may name beside them


@dataclasses.dataclass(frozen=True)
class Images:
    """Modules and images.

    Args:
      module: Required. A comma list of Hub modules: folders (local or gs://), .tar.gz, https
        handles; or NAME=HANDLE each. What exists goes first: lr=0.1,wd=0/module/4 is that folder if
        there is one; else quote a handle that holds a comma: '"a,b",c'.
      dataset: Labeled images: tfds:NAME[/CONFIG], folder:PATH, tfrecord:GLOB, voc:PATH (several
        classes in an image), masks:PATH, boxes:PATH, normals:PATH, glyphs (the embedded letters),
        or a class of your own, mypackage.mysource:MySource[:PATH][?SETTING=VALUE].
      data_dir: Where TensorFlow Datasets are, and where archives are unpacked. Default: each
        library's own folder.
      train_split: Images that classifiers learn from, in TFDS's grammar: train, train[:90%],
        train+validation (2019 study: ImageNet's train).
      test_split: Images that accuracy is measured on; nothing is chosen on them (2019 study:
        ImageNet's validation).
      val_split: Images that l2, the starred endpoint and the epoch are chosen on (2019 study:
        train[984shard:], the last 40 of ImageNet's 1024 training files, beside
        --train_split=train[:984shard]). Default: see --val_fraction.
      label_offset: Subtracted from the labels of tfrecord:GLOB; 1 for ImageNet's records, whose
        labels are 1 to 1000.
      image_size: Side of the central crop, in pixels; 0: the module's own (2019 study: 224, patch
        tasks 192).
      resize: Shorter side before the crop, in pixels; 0: the module's own, or image_size * 256 /
        224 (2019 study: 256, patch tasks 224).
      where: other arguments of `open_source`.
    """

    flag_names = {"where": ""}

    module: Optional[Sequence[str]] = None
    dataset: str = "glyphs"
    data_dir: Optional[str] = None
    train_split: str = "train"
    test_split: str = "test"
    val_split: Optional[str] = None
    label_offset: int = 0
    image_size: int = 0
    resize: int = 0
    where: Optional[Mapping[str, Any]] = None


@dataclasses.dataclass(frozen=True)
class Features:
    """Features.

    Args:
      endpoints: A comma list of names, or all: the module's, and pixels, the images themselves
        (2019 study: the module's).
      pool: How maps of more than 9000 values are pooled (2019 study: max).
      feature_dtype: How features are kept; float16 takes half the memory and disk.
      batch_size: Images at a time through the module, on each replica; it changes speed and memory
        only.
      cache: Keep features in --workdir, and what linear_sgd has reached; and use those there of the
        same module, data and settings whose checksums are right. --cache=verify: compute 64 images
        of each again, and all where these differ. --nocache: neither.
      prune: First remove the features in --workdir that nobody can use any more: of other versions,
        of data that have changed, not finished. Without --module that is all. (What killed
        processes left goes at any start, but for an extraction that can go on, which waits for a
        week.)
    """

    flag_names = {"cache": ""}

    endpoints: Sequence[str] = ("all",)
    pool: Literal["max", "avg", "adaptive_max", "adaptive_avg"] = "max"
    feature_dtype: Literal["float32", "float16"] = "float32"
    batch_size: int = 64
    cache: Union[bool, str] = True
    prune: bool = False


@dataclasses.dataclass(frozen=True)
class Protocols:
    """Protocols.

    Args:
      protocol: names.
      budget_minutes: With --protocol=all: minutes for the protocols that it adds, of all modules
        together, beside the passes of the images through the modules. Each is estimated by trials
        before it starts, the cheapest first; where the time is short it runs with quick settings,
        or is left out, and that is told. Protocols that are named are never cut. 0: no limit.
        Default: 5.
      random_init: Measure the same network untrained beside each module of tfssl-export's; equal
        networks once. Default: with --protocol=all.
      train_labels: How many training labels are used, a comma list with a column of the table each:
        all (2019 study), a percentage such as 1%, or a number of images. Class-balanced; the 1% lie
        within the 10%.
      val_fraction: Without --val_split: the fraction of the training labels that l2, the starred
        endpoint and the epoch are chosen on; what is reported then learns from all of them. 0:
        nothing is chosen.
      seed: Of the subset of labels and the validation part; linear_sgd, mlp: and of weights, order,
        crops and dropout; low_shot, few_shot: and of samples and episodes.
    """

    flag_names = {"protocol": ""}

    protocol: Sequence[str] = ("logistic",)
    budget_minutes: Optional[float] = None
    random_init: Optional[bool] = None
    train_labels: Sequence[str] = ("all",)
    val_fraction: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """The run.

    Args:
      workdir: Folder for report.html, results.json, results.png, results_curve.png (accuracy over
        epochs) and cached features. Default: nothing is written.
      neighbors: Above 0: WORKDIR/MODULE_neighbors.png shows so many nearest training images of ten
        test images, by the starred endpoint (of the first protocol), or the last. Default: 5 with
        --workdir where a protocol reads features of both, else 0.
      map: report.html has a map of each module's test images by that endpoint, colored by class or
        cluster: pca; tsne; umap, which needs the package umap-learn; none.
      projector: Write the same embeddings for TensorBoard's projector, into WORKDIR/projector.
      save_detector: A folder, which must not exist, for the detector of --protocol=fcos: a
        SavedModel, images in, boxes out, that tfssl-predict and TensorFlow alone run; of several
        modules FOLDER/MODULE each.
      steal_lock: Take over a --workdir that another process uses; it ends before it writes there
        again.
    """

    workdir: Optional[str] = None
    neighbors: Optional[int] = None
    map: Literal["pca", "tsne", "umap", "none"] = "pca"
    projector: bool = False
    save_detector: Optional[str] = None
    steal_lock: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation(Run, Inference, Protocols, Features, Images):
    """All settings of an evaluation but those of its protocols, as the five classes describe them.

    Raises:
      UserError: settings that contradict each other.
    """

    def __post_init__(self) -> None:
        if self.budget_minutes and not self.all_protocols:
            raise UserError(
                f"--budget_minutes={self.budget_minutes:g} is of --protocol=all: a protocol that "
                "is named is never cut"
            )
        if not self.protocol or not self.endpoints or not self.train_labels:
            raise UserError("--protocol, --endpoints and --train_labels each need a value")
        shows = self.neighbors or self.projector
        if not self.test_split and (shows or list(self.protocol) != ["features"]):
            raise UserError(
                "--test_split is empty, which only --protocol=features alone can do without"
            )
        if not self.workdir and (self.writes_features or shows):
            raise UserError(
                "--workdir is missing: name a folder for the features, the picture of neighbors, "
                "or the projector's files"
            )

        if self.save_detector and "fcos" not in self.protocol:
            raise UserError(
                f"--save_detector={self.save_detector} and --protocol={','.join(self.protocol)}: "
                "fcos alone makes a detector"
            )
        if self.several_hosts and not (self.features_folder and self.cache):
            raise UserError(
                "--strategy=multi_worker: the hosts exchange features through --workdir: name a "
                "folder that all of them reach, without --nocache"
            )

    @property
    def several_hosts(self) -> bool:
        return self.strategy == "multi_worker"

    @property
    def all_protocols(self) -> bool:
        return "all" in self.protocol

    @property
    def named_protocols(self) -> list[str]:
        """Those asked for by name, in their order."""
        return list(dict.fromkeys(name for name in self.protocol if name not in NOT_PROTOCOLS))

    @property
    def writes_features(self) -> bool:
        return "features" in self.protocol

    @property
    def minutes(self) -> Optional[float]:
        """For the protocols of --protocol=all; None: as many as it takes."""
        if not self.all_protocols:
            return None
        return BUDGET_MINUTES if self.budget_minutes is None else self.budget_minutes or None

    @property
    def beside_untrained(self) -> bool:
        return self.all_protocols if self.random_init is None else self.random_init

    def neighbor_count(self, reads_both: bool) -> int:
        """`reads_both`: whether features of training and test images are extracted anyway."""
        if self.neighbors is None:
            return 5 if self.workdir and reads_both else 0
        return self.neighbors

    @property
    def splits(self) -> dict[str, str]:
        """{"train", "test" and perhaps "val": split}, those that are named."""
        parts = {"train": self.train_split, "test": self.test_split, "val": self.val_split}
        return {part: split for part, split in parts.items() if split}

    @property
    def held_out(self) -> bool:
        """Whether there are images to choose on."""
        return bool(self.val_split or self.val_fraction)

    @property
    def sizes(self) -> tuple[Optional[int], Optional[int]]:
        """(side of the crop, shorter side before it), in pixels; None where the module's own is
        meant."""
        return self.image_size or None, self.resize or None

    @property
    def local(self) -> bool:
        """Whether there is a --workdir that is a folder of this machine."""
        return "://" not in self.workdir if self.workdir else False

    def file(self, name: str) -> str:
        """Path of a file in --workdir."""
        if not self.workdir:
            raise ValueError(f"no --workdir, and so no {name} in it")
        return os.path.join(self.workdir, name.replace("/", "_"))

    @property
    def features_folder(self) -> Optional[str]:
        """Where extracted features are kept, memory-mapped; None without a local --workdir."""
        return (
            os.path.join(os.path.expanduser(self.workdir), "features")
            if self.workdir and self.local
            else None
        )
