"""The settings of the commands that train, section by section as `--help` shows them: what a field
is here is a flag there.

Name, default and meaning of each flag are those of its field; `tfssl.config.generated` makes the
one of the other.
"""

import dataclasses
from typing import Any, Literal, Optional

from tfssl.config import data_flags
from tfssl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Records:
    """How record files are read.

    Args:
      image_key: tfrecord: the feature that holds the encoded image. Default: image/encoded.
      label_key: tfrecord: the feature that holds the label, one int64. Default: image/class/label.
      skip_damaged_shards: tfrecord, tfds: go on where a file is damaged or ends early. In training
        its readable records take the places of the lost ones; all else keeps its order. Evaluation
        leaves them out.
    """

    image_key: Optional[str] = None
    label_key: Optional[str] = None
    skip_damaged_shards: bool = False


@dataclasses.dataclass(frozen=True)
class Data(Records):
    """Which images.

    Args:
      dataset: tfds:NAME[/CONFIG], folder:PATH, frames:PATH (a folder for each sequence),
        tfrecord:GLOB, webdataset:GLOB, glyphs (the embedded letters), or a class of your own,
        mypackage.mysource:MySource[:PATH][?SETTING=VALUE].
      data_dir: Where TensorFlow Datasets are, and archives are unpacked. Default: their own places.
      train_split: Images to train on, in TFDS's grammar: train, train[:90%], train+validation.
      val_split: Images to validate on; none if empty. 2019 study: the last 40 of 1024 train shards.
      train_subset: Train on so many images, drawn by --subset_seed; smaller ones lie within larger
        ones. 0: all.
      subset_seed: Of the choice of --train_subset.
      value_range: The files' values that become 0 to 1, such as 0,4095; full: all that the files'
        type can hold. Keeps 16 bits and floats; by default RGB is read in 8 bits, and other
        --channels in full. tfssl-finetune: its module's.
      label_offset: tfrecord: subtracted from the labels; 1 for ImageNet's records, whose labels are
        1 to 1000.
    """

    heading = "Data"  # of the section in `--help`

    dataset: str = "glyphs"
    data_dir: Optional[str] = None
    train_split: str = "train"
    val_split: str = ""
    train_subset: int = 0
    subset_seed: int = 0
    label_offset: int = 0
    value_range: str = ""

    def where(self) -> dict[str, Any]:
        """The keyword arguments of `open_source`."""
        return data_flags.where(vars(self))


@dataclasses.dataclass(frozen=True)
class Network:
    """The backbone, how training normalizes, and what the backbone begins with. The settings of a
    family of backbones are its class's.

    Args:
      backbone: resnet{18,34,50,101,152,200}_v{1,2}, revnet{18,34,50,101,152}, vgg{11,13,16,19},
        alexnet, alexnet_lrn, vit_{tiny,small,base,large} (2019 study: resnet50_v1, resnet50_v2,
        revnet50, vgg19); keras:NAME, of tf.keras.applications, such as keras:ConvNeXtTiny; or the
        import path of a class of your own, mypackage.mynets:MyNet.
      sync_batch_norm: Batch statistics of all replicas together, not of each by itself.
      bn_group_size: Images whose batch statistics are one; 0: all of a replica's.
      init_module: Start from this Hub module's weights, where names and shapes match.
      neck: fpn: a feature pyramid on the backbone's maps, published as p3, p4, ..., for detectors;
        --task=pixpro trains it. Default: none.
      neck_width: Channels of each level of the neck.
      neck_tower: 3x3 convolutions after the neck, which all levels share, as a detector's head has
        them; published as t3, t4, ... (FCOS: 4). Default: none.
    """

    heading = "Task and network"

    backbone: str = "resnet50_v2"
    sync_batch_norm: bool = False
    bn_group_size: int = 0
    init_module: Optional[str] = None
    neck: str = ""
    neck_width: int = 256
    neck_tower: int = 0


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How long a network learns, and at which rates.

    Args:
      batch_size: Images per step over all replicas, before rotations (2019 study: 1024).
      epochs: Passes over the images (2019 study: 35).
      train_steps: Length in steps; overrides --epochs where it is not 0.
      optimizer: sgd, nesterov, adam, adamw, lamb, lars, lars_byol, larc (2019 study: sgd; SimCLR:
        lars; BYOL: lars_byol; SwAV: larc), or the import path of a class of your own,
        mypackage.myoptimizer:MyOptimizer.
      learning_rate: Peak rate at a batch of --lr_scaling images (2019 study: 0.1).
      lr_scaling: Peak rate = learning_rate * batch_size / this (2019 study: 256); 0: unscaled.
      schedule: piecewise (2019 study), cosine or constant; each after a linear warm-up.
      decay_epochs: piecewise: --decay_factor applies after these (2019 study: 15,25).
      decay_factor: piecewise: see --decay_epochs (2019 study: 0.1).
      warmup_epochs: The rate rises linearly from --initial_rate over these epochs (2019 study: 5).
      initial_rate: Learning rate at step 0, where there is a warm-up; scaled as --learning_rate is.
      final_rate: cosine: learning rate at the end; scaled as --learning_rate is (Barlow Twins:
        0.001 times the peak).
      final_weight_decay: Weight decay at the end of the run, along half a cosine from
        --weight_decay (DINO: 0.4 from 0.04); with optimizers that carry it themselves, such as
        adamw. Default: it stays.
      seed: Of initial weights, order and augmentation: the same seed, the same run.
    """

    heading = "Optimization"

    batch_size: int = 256
    epochs: float = 35.0
    train_steps: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    lr_scaling: float = 256.0
    schedule: str = "piecewise"
    decay_epochs: tuple[float, ...] = (15.0, 25.0)
    decay_factor: float = 0.1
    warmup_epochs: float = 5.0
    initial_rate: float = 0.0
    final_rate: float = 0.0
    final_weight_decay: Optional[float] = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Devices:
    """On what devices a network is computed.

    Args:
      strategy: auto (all GPUs, else one device), default (one device), mirrored, multi_worker, tpu.
      host_timeout: multi_worker: seconds to wait for the other hosts, which are named meanwhile.
      tpu: Name or address of the TPU; local on a TPU VM.
      tpu_zone: Google Cloud zone of a TPU given by name. Default: this machine's.
      gcp_project: Google Cloud project of a TPU given by name. Default: this machine's.
      jit_compile: Compile the step with XLA. A TPU always does; on CPUs it is slower.
    """

    heading = "Accelerators"

    strategy: str = "auto"
    host_timeout: int = 600
    tpu: str = ""
    tpu_zone: Optional[str] = None
    gcp_project: Optional[str] = None
    jit_compile: bool = False


@dataclasses.dataclass(frozen=True)
class Inference(Devices):
    """Where and how a trained network is computed.

    Args:
      precision: float32, mixed_bfloat16 (TPUs, new GPUs and CPUs), mixed_float16 (GPUs; it ends at
        65504), or auto: mixed_bfloat16 where the device computes in it, else float32. Convolutions
        and matrix products are computed in it; weights and all else stay float32.
    """

    precision: str = "float32"


@dataclasses.dataclass(frozen=True)
class Accelerators(Devices):
    """Where and how the steps are computed.

    Args:
      steps_per_execution: Steps per call from Python; 100 helps TPUs and small networks.
      accumulate_steps: Compute a batch in so many parts, one after the other: less memory.
      data_service: grpc://HOST:PORT of a tf.data service whose workers prepare the images (see
        docs).
      data_service_timeout: Seconds that the service may take to answer, before a run begins.
      deterministic: Bit-identical results from run to run on the same kind of processor or GPU,
        with as many threads (by default, cores that the process may use), and the same oneDNN
        setting, TensorFlow and tfssl; elsewhere a resumed run says so. Costs speed on GPUs.
    """

    steps_per_execution: int = 1
    accumulate_steps: int = 1
    data_service: str = ""
    data_service_timeout: float = 60.0
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class NetworkAccelerators(Accelerators):
    """Where and how the steps are computed of a network that is built here, and so can be in
    another way.

    Args:
      precision: float32, mixed_bfloat16 (TPUs, new GPUs and CPUs), mixed_float16 (GPUs; with loss
        scaling), or auto: mixed_bfloat16 where the device computes in it, else float32; a resumed
        run keeps its own.
      loss_batch_size: Images that one loss compares and one step learns from, computed in parts of
        --batch_size: more than fit in memory (by gradient caching; 0: --batch_size).
      rematerialize: Compute activations again in the backward pass: less memory, a third more
        computation.
    """

    precision: str = "float32"
    loss_batch_size: int = 0
    rematerialize: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """The run's folder, what it keeps and tells, and what its user permits.

    Args:
      workdir: Folder of the run: flags, checkpoints, logs. Required, except with --dry_run.
      checkpoint_steps: Steps between checkpoints; a killed run loses at most these.
      keep_checkpoints: How many of the newest checkpoints to keep.
      keep_every: Keep each checkpoint whose step is a multiple of this for ever; 0: none.
      validation_steps: Between validations, a multiple of --checkpoint_steps; 0: those.
      knn_probe: At each validation, accuracy of nearest neighbors among so many images, where they
        have labels, and the effective rank of their features; 0: none.
      log_steps: Steps between lines of the log.
      track: Log to a tracking server too: mlflow; wandb (Weights & Biases); none. The package of
        that name has to be installed; its environment variables say where to (MLFLOW_TRACKING_URI,
        WANDB_MODE=offline ...).
      extend_schedule: Permit a resumed cosine run to change its length: its rate then jumps.
      accept_changed_data: Go on with other data than the run in --workdir began with;
        provenance.json tells.
      steal_lock: Take over a --workdir that another process uses; it ends at its next checkpoint.
      dry_run: Read all images, show the first batch, estimate the time; train nothing.
    """

    heading = "The run"

    workdir: Optional[str] = None
    checkpoint_steps: int = 1000
    keep_checkpoints: int = 3
    keep_every: int = 0
    validation_steps: int = 0
    knn_probe: int = 0
    log_steps: int = 100
    track: Literal["none", "mlflow", "wandb"] = "none"
    extend_schedule: bool = False
    accept_changed_data: bool = False
    steal_lock: bool = False
    dry_run: bool = False

    def folder(self) -> str:
        """The workdir; only a dry run has none.

        Raises:
          UserError: it is missing.
        """
        if not self.workdir:
            raise UserError(
                "--workdir is missing: name a folder for the run's checkpoints and logs (or try "
                "--dry_run)"
            )
        return self.workdir


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The encoder, the linear classifier on it, and their images.

    Args:
      module: Required. The encoder: a Hub module's folder (local or gs://), .tar.gz or https
        handle.
      endpoint: What the linear classifier sits on. Default: pre_logits. SimCLR v2 fine-tunes from
        head1, of a module that tfssl-export wrote with --head_endpoints=1.
      freeze: The encoder stays as it is, its batch statistics too; the linear classifier alone
        learns.
      head_rate: The classifier learns at so many times the rate of the encoder (SwAV: 250 with 1%
        of the labels, 20 with 10%).
      layer_decay: Each stage of the encoder, from one endpoint to the next, learns at so many times
        the rate of the stage after it (MAE: 0.65 for each layer of a ViT-B, 0.75 of a ViT-L); 1:
        all learn alike.
      image_size: Side of the crops, in pixels; 0: the module's own (SimCLR, SwAV: 224).
      resize: Shorter side of an evaluation image before its central crop, in pixels; 0: the
        module's own, or image_size * 256 / 224.
      min_area: Smallest area of a training crop, as a share of the image (SimCLR, SwAV: 0.08).
      flip: Flip half of the training images left to right. Colors stay as they are.
    """

    heading = "Encoder and classifier"

    module: Optional[str] = None
    endpoint: str = ""
    freeze: bool = False
    head_rate: float = 1.0
    layer_decay: float = 1.0
    image_size: int = 0
    resize: int = 0
    min_area: float = 0.08
    flip: bool = True

    def handle(self) -> str:
        """The encoder's module.

        Raises:
          UserError: it is missing.
        """
        if not self.module:
            raise UserError(
                "--module is missing: name the encoder, a folder that tfssl-export wrote or any "
                "Hub module of images"
            )
        return self.module


@dataclasses.dataclass(frozen=True)
class Labels:
    """How many labels a classifier learns from, and what it is measured on.

    Args:
      train_labels: How many training labels are used: all, a percentage such as 1%, or a number of
        images. Class-balanced, and tfssl-eval's own of that --seed; the 1% lie within the 10%.
        Other images are left out (with --teacher: stay, without their labels).
      train_list: In place of --train_labels: a file with the name of an image on each line, as the
        published imagenet_subsets/1percent.txt.
      test_split: Images that the finished classifier is measured on; empty: it is not.
    """

    heading = "Labels"

    train_labels: str = "all"
    train_list: str = ""
    test_split: str = "test"


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What a teacher adds.

    Args:
      teacher: A classifier that tfssl-finetune wrote. It infers, on the same crops, and does not
        learn.
      distill_temperature: What the logits of both are divided by (SimCLR v2: 1; self-distillation
        0.1).
      distill_weight: Share of the teacher in the loss; the rest is cross-entropy, where there is a
        label (SimCLR v2: 1).
      distill_scale_by_t2: Times the temperature's square: gradients of one size (SimCLR v2's
        notebook).
    """

    heading = "Distillation: a teacher's probabilities in place of labels, or beside them"

    teacher: str = ""
    distill_temperature: float = 1.0
    distill_weight: float = 1.0
    distill_scale_by_t2: bool = False


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What keeps a large encoder from overfitting to the labels; all of it is off by default.

    Args:
      randaugment: So many ops of RandAugment on each training crop, on the host, of timm's
        "increasing" pool (MAE, DeiT: 2); 0: none.
      randaugment_magnitude: Their mean magnitude, whose standard deviation is 0.5 (MAE, DeiT: 9).
      random_erasing: Probability of noise in place of a rectangle of a training crop, 2% to 33% of
        its area (MAE, DeiT: 0.25).
      mixup: Images and labels are mixed in pairs, by weights of Beta(alpha, alpha) with this alpha
        (MAE, DeiT: 0.8); 0: none.
      cutmix: Likewise, by a box of one image in the other, and by its area (MAE, DeiT: 1.0); 0:
        none.
      mix_switch: Probability of CutMix, and not mixup, where both are on.
      mix_probability: Of a pair's being mixed at all.
      label_smoothing: This much of each label is spread evenly over all classes (MAE, DeiT: 0.1).
      drop_path: Stochastic depth: probability with which an image skips each term of the encoder's
        last block; it grows linearly with depth, from 0 in the first (MAE: 0.1 for a ViT-B, 0.2 for
        a ViT-L). Of modules of ours that are vision transformers.
    """

    heading = "Augmentation and regularization"

    randaugment: int = 0
    randaugment_magnitude: float = 9.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    mix_probability: float = 1.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0


@dataclasses.dataclass(frozen=True)
class FinetuneOptimization(Optimization):
    """How long a classifier learns, and at which rates.

    Args:
      batch_size: Images per step over all replicas (SimCLR: 4096; v2: 1024; SwAV: 256).
      epochs: Passes over the images that are used (SimCLR: 60 with 1% of the labels, 30 with 10%;
        SwAV: 20).
      optimizer: sgd, nesterov, adam, adamw, lamb, lars, lars_byol, larc (SimCLR: nesterov; v2:
        lars), or the import path of a class of your own. LARS and LAMB treat the linear classifier
        as plain momentum and Adam would, but for larc, which adapts all.
      learning_rate: Peak rate at a batch of --lr_scaling images (SimCLR: 0.05).
      lr_scaling: Peak rate = learning_rate * batch_size / this (SimCLR: 256); 0: unscaled.
      schedule: cosine (SimCLR), piecewise (SwAV) or constant; each after a linear warm-up.
      decay_epochs: piecewise: --decay_factor applies after these (SwAV: 12,16).
      decay_factor: piecewise: see --decay_epochs (SwAV: 0.2).
      warmup_epochs: The rate rises linearly from --initial_rate over these epochs (SimCLR, SwAV:
        0).
      weight_decay: Factor w of 0.5 * w * sum ||kernel||^2 in the loss (SimCLR, SwAV: 0), or the
        decay that an optimizer such as adamw carries itself.
      seed: Of the labels' choice, order and augmentation: the same seed, the same run.
    """

    batch_size: int = 256
    epochs: float = 60.0
    optimizer: str = "nesterov"
    learning_rate: float = 0.05
    lr_scaling: float = 256.0
    schedule: str = "cosine"
    decay_epochs: tuple[float, ...] = (12.0, 16.0)
    decay_factor: float = 0.2
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Export:
    """What is published of a run.

    Args:
      step: Which checkpoint; the newest by default.
      all_steps: Publish every checkpoint that the run has kept, each in WORKDIR/module/STEP where
        it is not yet: to compare them, tfssl-eval --module='WORKDIR/module/*'.
      module: In place of --workdir: a module of tfssl-export, tfssl-import or tfssl-finetune, whose
        network is written in another --layout.
      layout: hub, a TF-Hub module; torch, EXPORT_DIR/model.safetensors in the names of torchvision
        (ResNets v1) or timm (ViTs); detectron2, EXPORT_DIR/model.pkl, as its converter makes it
        (ResNets v1); of a --module also onnx, EXPORT_DIR/model.onnx (needs tf2onnx), tflite,
        EXPORT_DIR/model.tflite in float16, and keras3, EXPORT_DIR/encoder.py, which needs Keras 3
        alone, with a copy of the module.
      calibration_images: tflite: weights and activations in int8, whose ranges are chosen on so
        many images of --dataset and --train_split; 0: float16.
      export_dir: Folder of the module, which must not exist yet. Default: WORKDIR/module/STEP, or
        WORKDIR/LAYOUT/STEP.
      random_init: Publish the untrained encoder, the baseline that evaluation needs.
      tarball: Also write EXPORT_DIR.tar.gz, which serves as a handle too.
      head_endpoints: So many first layers of the projection head become endpoints too: head1, ...
        (SimCLR v2 fine-tunes from head1).
      recalibrate: Compute the moving statistics of batch normalization anew, over so many of the
        run's training images; 0: as they are.
    """

    heading = "Export"

    step: Optional[int] = None
    all_steps: bool = False
    module: Optional[str] = None
    layout: Literal["hub", "torch", "detectron2", "onnx", "tflite", "keras3"] = "hub"
    calibration_images: int = 0
    export_dir: Optional[str] = None
    random_init: bool = False
    tarball: bool = False
    head_endpoints: int = 0
    recalibrate: int = 0
