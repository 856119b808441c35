"""What a pretext task defines: the hooks of its contract, with their defaults."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import tensorflow as tf

from tfssl.data import pipeline
from tfssl.data.ops.draws import Draws
from tfssl.data.sources.base import Source
from tfssl.errors import UserError
from tfssl.optim.groups import Group
from tfssl.step.loop import Loop
from tfssl.step.phases import Phase

Batch = dict[str, Any]  # tensors, and nested structures of them, with the image axis first
Example = pipeline.Example  # the same of one image
Losses = Union[tf.Tensor, dict[str, tf.Tensor]]
Measured = dict[str, Union[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]]
_RENAMED = {"normalise": "normalize", "views": "preview", "adjust": "groups"}


class Contract(Loop):
    """The hooks that `Pretext`, the base class of all tasks, calls. A subclass of it adds what its
    paper adds:

      needs                       what the source's examples must hold beside an image: "label",
                                  "mask", "boxes", "normals", "frames" ...
      clip(position, length, seed)   of sequences: which frames an example is made of
      example(example, seed)      an example of the source -> one of the batch, on the host, inside
                                  tf.data; seed None: deterministic.
                                  Traced without autograph: tf.cond where a tensor decides
      order(source)               which image stands at example n, where it is not the plain shuffle
      augment(batch, draws)       batched, on the device, in training only; all chance is drawn here
      call(batch, training)       -> outputs of the network, image axis first; it uses every
                                  trainable variable
      objective(batch, outputs)   -> (loss per example [n], {metric: value per example [n], or
                                  (value, weight)}); it uses none of them
      groups()                    rates, weight decay and players of the variables
      after_step(batch, outputs)  updates of state: target networks, queues, banks
      phases()                    what happens between steps: clusterings of all images
      start()                     state that begins as a copy of other variables
      normalize(images)           [0, 1] -> what the backbone was trained on
      published, encode(images)   the networks that are published, and the endpoints that they give
      chance()                    {"loss": ..., metric: ...}: the levels of an encoder that knows
                                  nothing; its keys name the metrics
      alarm(measured)             a warning, where the metrics call for one
      preview(batch)              what the network sees, for people
    """

    backbone: tf.keras.Model
    image_size: int  # side of the square images that the backbone sees, in pixels
    epoch_steps: float  # steps of an epoch of the data; 0 before a run has said it
    task: Optional[str] = None  # the registered name
    spans_batch = False  # whether an image's loss depends on the other images of the batch
    # What the source's examples must hold beside an image, see `data.sources.require`.
    needs: tuple[str, ...] = ()
    # The same, of settings that need it where they are not 0: {setting: what}.
    needs_of: Mapping[str, tuple[str, ...]] = {}
    # settings that only training needs, as they are where the published network alone is built
    training_only: Mapping[str, Any] = {}
    num_images = 0  # of the data set, where the task keeps an entry for each
    # What `pretext.build` was given: enough to build the same task again.
    settings: Optional[dict[str, Any]] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for old, new in _RENAMED.items():
            if old in vars(cls):
                raise UserError(
                    f"{cls.__module__}.{cls.__name__}: a task's {old}() is called {new}() now"
                )
        if "image" in inspect.signature(cls.example).parameters:
            raise UserError(
                f"{cls.__module__}.{cls.__name__}: example(image, seed) is example(example, seed) "
                "now: it takes the image from "
                'example["image"] and returns {"image": ...}'
            )

    @staticmethod
    def from_data(
        settings: Mapping[str, Any], source: Any, workdir: Optional[str]
    ) -> dict[str, Any]:
        """Settings that a run measures on its images: {name: value} to take the place of those
        given. `source` None: read back those that were kept in the workdir. `workdir` None: a dry
        run, which keeps nothing."""
        return {}

    def clip(self, position: tf.Tensor, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Which frames of a sequence an example is made of, where the task needs "frames": int64
        [T], their positions in it, from 0 on; beyond its ends they stand for the first and the last
        frame. `example` gets them as "frames", a tuple of T images of which the first is "image"
        too, with their "positions".

        Args:
          position: int64, that of the example's own image, which "index" and "label" are of.
          length: int64, how many frames the sequence has.
          seed: int64 [2], of this example; in evaluation (0, its position in the split).
        """
        raise NotImplementedError

    def example(self, example: Example, seed: Optional[tf.Tensor]) -> Example:
        """What the batch has of one image.

        Args:
          example: of the source: {"image": encoded (a string scalar), or decoded: uint8 [H, W, 3];
            "label"; "index"; what it provides}.
          seed: int64 [2], of this example; None: deterministic, for evaluation.

        Returns:
          {"image": ..., and whatever else the task wants}: tensors of static shapes, or nested
          structures of them. uint8 ones reach `augment` as floats in [0, 1], others as they are.
          "label" and "index" are the source's, unless they are among these.
        """
        raise NotImplementedError

    def order(self, source: Source) -> Source:
        """The source in the order in which a run sees its images: itself, for the plain shuffle, or
        one that is `Ordered` (data/sources).

        It is a pure function of the run's seed, the example's number and variables that a phase
        wrote: the run calls this after each phase, before the next step's images are read, and
        reads variables then. It is also called before any phase, which it has to bear.
        """
        return source

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        """The training batch as `call` gets it; it may have more keys. `draws` is the one source of
        chance: the same for every split of the batch over replicas and parts."""
        return batch

    def objective(self, batch: Batch, outputs: Any) -> tuple[Losses, Measured]:
        """(Loss of each example [n], {metric: [n], or ([n], weights [n])}).

        A metric "loss" is reported in place of the loss. With several players (see `groups`) the
        loss is {player: [n]}.
        """
        raise NotImplementedError

    def groups(self) -> list[Group]:
        """The trainable variables, each in one `Group`. By default all learn alike, and weight
        decay leaves out the layers whose attribute `decayed` is False, and the task's own variables
        (SwAV's prototypes are directions). `optim.groups.apart` adds another group."""
        exempt = {
            id(v)
            for m in self.submodules
            for v in (m.variables if not getattr(m, "decayed", True) else ())
        }
        exempt |= {id(v) for v in self._trainable_weights}
        kept = [v for v in self.trainable_variables if id(v) not in exempt]
        spared = [v for v in self.trainable_variables if id(v) in exempt]
        return [Group(kept), *([Group(spared, decay=0.0)] if spared else [])]

    def after_step(self, batch: Batch, outputs: Any) -> None:
        """Called after each training step, on each replica; `outputs` is None where the step was
        computed in parts that are independent."""

    def phases(self) -> Sequence[Phase]:
        """What happens between steps: see `tfssl.step.phases`. Called once the variables exist, and
        `epoch_steps` is known."""
        return ()

    def start(self) -> None:
        """Called once all variables exist, and again after initial weights were loaded."""

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Images in [0, 1] to [-1, 1], as in the Inception recipe."""
        return 2.0 * images - 1.0

    def chance(self) -> dict[str, float]:
        """{"loss": ..., metric: ...}: the levels of an encoder that knows nothing."""
        raise NotImplementedError

    def alarm(self, measured: Mapping[str, float]) -> Optional[str]:
        """A warning about the {metric: value} of the latest steps, or None."""
        return None

    def preview(self, batch: Batch) -> tf.Tensor:
        """The images that the network sees for an (augmented) batch: [n, H, W, 3] in [0, 1], for
        people to look at."""
        return batch["image"]

    def pictures(self, batch: Batch) -> Optional[tf.Tensor]:
        """[n, H, W, 3] in [0, 1] that show, for an evaluation batch, what the task has learned;
        None where there is nothing to see."""
        return None

    @property
    def published(self) -> tuple[tf.keras.Model, ...]:
        """The networks that `encode` runs, the online and the kNN probe measure, and export
        publishes: by default the backbone. A target network may stand here
        (`MomentumNetwork.backbone`), or the parts of an encoder, each once. `encode` uses no
        variable but theirs."""
        return (self.backbone,)

    @property
    def published_head(self) -> Optional[tf.keras.layers.Layer]:
        """The projection of the published encoder's last vector, whose first layers an export with
        `head_endpoints` publishes along; None: there is none."""
        return getattr(self, "projection", None)

    def encode(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Images [N, H, W, 3] in [0, 1] -> dict of the published encoder's endpoints, in depth
        order; the last is pre_logits [N, D].

        Raises:
          NotImplementedError: several networks are published, and the task does not say how their
            endpoints become one encoder's.
        """
        if len(self.published) > 1:
            raise NotImplementedError(
                f"{type(self).__name__} publishes {len(self.published)} networks: it has to define "
                "encode()"
            )
        return self.published[0](self.normalize(images), training=training)

    @property
    def evaluation_size(self) -> tuple[int, int]:
        """(side of the central crop, shorter side before it), in pixels: how images come to the
        published encoder."""
        raise NotImplementedError

    @property
    def min_image_size(self) -> int:
        """The smallest side of an image that `encode` makes sense of, in pixels."""
        return self.backbone.min_image_size
