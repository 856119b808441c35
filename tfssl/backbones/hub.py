"""A Hub module as a backbone, in order to train it further."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfssl import backbones
from tfssl.backbones import vit
from tfssl.backbones.layers import KINDS, Network, global_mean, variable_shapes
from tfssl.backbones.norm import Norm
from tfssl.errors import UserError

if TYPE_CHECKING:
    from tfssl.hub.load import Module

PRE_LOGITS = "pre_logits"


class Hub(tf.keras.Model):
    """Images [N, H, W, 3] in [0, 1] -> the module's endpoints that are features: vectors [N, D] and
    maps [N, h, w, C].

    What the module computes is fixed in its graph, in which its batch normalizations take and move
    statistics of what one replica computes at once, and all is float32. With a `network` it is that
    network, whose variables then stand in for the module's, in checkpoints too.

    Args:
      module: a loaded `tfssl.hub.load.Module`; under a strategy, loaded in its scope.
      image_size: side of the images for which the module is asked what it returns.
      trainable: False: it always infers, and nothing in it changes.
      network: of `network_of`, to train with settings that a graph has not; None: the graph.
    """

    autograph = False
    norm_policy = Norm()

    def __init__(
        self,
        module: Module,
        image_size: int,
        trainable: bool = True,
        network: Network | None = None,
    ) -> None:
        super().__init__(name="module", trainable=trainable)
        self._autocast = False
        # a plain object: checkpoints hold the two lists of variables, in the module's own order
        self.module, self.input_channels = module, module.pixels["channels"]
        self._image_size = image_size
        self._stages: np.ndarray | None = None
        self.shapes = module.shapes(image_size)
        self.learned = list(module.trainable_variables)
        trained = {id(v) for v in self.learned}
        self.others = [v for v in module.variables if id(v) not in trained]
        self.drop_path = 0.0
        self._endpoints: Callable[..., dict[str, tf.Tensor]] = module.endpoints
        if network is not None:
            own = {id(v): mine for v, mine in zip(module.variables, network.variables)}
            self.learned = [own[id(v)] for v in self.learned]
            self.others = [own[id(v)] for v in self.others]
            self.shapes = {
                n: shape for n, shape in self.shapes.items() if n in network.endpoint_names
            }
            self.drop_path = getattr(network, "drop_path", 0.0)
            normalization = module.facts.get("normalization")
            if not normalization:
                raise UserError(
                    f"module {module.handle!r} does not say how it normalizes images, which its "
                    "network needs: fine-tune it without --drop_path"
                )
            # A function: as a layer it would be in checkpoints a second time.
            self._endpoints = functools.partial(_encoded, network, normalization)

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        endpoints = self._endpoints(images, training=bool(training) and self.trainable)
        return {
            name: self._known(endpoints[name], shape, images) for name, shape in self.shapes.items()
        }

    def _known(self, x: tf.Tensor, shape: tuple[int | None, ...], images: tf.Tensor) -> tf.Tensor:
        """With the static shape, which a loaded function does not know."""
        return tf.ensure_shape(x, [images.shape[0], *[None] * (len(shape) - 1), shape[-1]])

    def vector(self, endpoints: dict[str, tf.Tensor], name: str) -> tf.Tensor:
        """One endpoint as features [N, D]: of a map, its mean."""
        x = endpoints[name]
        return global_mean(x) if self.endpoint_kinds[name] == "map" else x

    def stages(self) -> list[list[tf.Variable]]:
        """The trainable variables by depth, the first stage first: those that the shallowest
        endpoint is computed from, then those that the next one takes beside these, and so on. A
        variable that no endpoint depends on is in the last.

        Of our vision transformers they are those of `vit.stage`: patches and tokens, then each
        block; what follows the blocks is in none, and learns at the rate of the classifier. Any
        other saved module does not say which layer a variable is of. So it is asked: which
        variables an endpoint has a gradient by, on images of noise.

        Raises:
          UserError: all endpoints depend on the same variables, or there is one endpoint alone.
        """
        if self._stages is None:
            self._stages = self._named_stages()
        if self._stages is None:
            self._stages = self._told_stages()
        return [
            [v for v, stage in zip(self.learned, self._stages) if stage == i]
            for i in range(max(self._stages) + 1)
        ]

    def _named_stages(self) -> np.ndarray | None:
        """The number of the stage of each trainable variable of a ViT of ours, -1 for none; None of
        others."""
        network = self.module.facts.get("network") or {}
        if network.get("name") not in vit.SIZES:
            return None
        stages = [vit.stage(v.name) for v in self.module.trainable_variables]
        return np.array([-1 if stage is None else stage for stage in stages])

    def _told_stages(self) -> np.ndarray:
        """The number of the stage of each trainable variable."""

        def reached() -> tf.Tensor:
            images = tf.random.stateless_uniform(
                [2, self._image_size, self._image_size, self.input_channels], [0, 0]
            )
            with tf.GradientTape(persistent=True) as tape:
                endpoints = self.module.endpoints(images, training=False)
            some = {
                name: tf.random.stateless_normal(tf.shape(endpoints[name]), [0, 1])
                for name in self.shapes
            }
            by = [
                tape.gradient(endpoints[name], self.learned, some[name], "zero")
                for name in self.shapes
            ]
            return tf.stack(
                [tf.stack([tf.reduce_any(g != 0) for g in gradients]) for gradients in by]
            )

        strategy = tf.distribute.get_strategy()
        run = tf.function(lambda: strategy.run(reached), autograph=False)
        depends = strategy.experimental_local_results(run())[0].numpy()
        # An endpoint does not say how deep it is, either: the more variables it depends on, the
        # deeper.
        depends = depends[np.argsort(depends.sum(1), kind="stable")]
        depends[-1] = True  # and what none depends on is in the last
        stages = np.unique(depends.argmax(0), return_inverse=True)[1].reshape(-1)
        if stages.max() == 0:
            raise UserError(
                f"--layer_decay: module {self.module.handle!r} does not tell which of its "
                "variables are deep, for its endpoints "
                f"({', '.join(self.shapes)}) all depend on the same ones: leave it out"
            )
        return stages  # an array: Keras would make a tuple a part of checkpoints

    def choose(self, name: str) -> str:
        """The endpoint of that name; for "", pre_logits, or else the only vector.

        Raises:
          UserError: there is none, or more than one to choose from.
        """
        vectors = [n for n, shape in self.shapes.items() if len(shape) == 1]
        found = name or (
            PRE_LOGITS if PRE_LOGITS in self.shapes else vectors[0] if len(vectors) == 1 else ""
        )
        if found not in self.shapes:
            what = (
                f"has no endpoint {name!r}"
                if name
                else f"has no endpoint {PRE_LOGITS!r}, so name one"
            )
            raise UserError(
                f"module {self.module.handle!r} {what}: --endpoint={', '.join(self.shapes)}"
            )
        return found

    # Keras would go by what each variable says of itself; the module's own lists count.

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        return list(self.learned) if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        return list(self.others) if self.trainable else [*self.learned, *self.others]

    @property
    def endpoint_names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def endpoint_kinds(self) -> dict[str, str]:
        """{endpoint: one of `layers.KINDS`}."""
        kinds = {axes: kind for kind, axes in KINDS.items()}
        return {name: kinds[1 + len(shape)] for name, shape in self.shapes.items()}

    @property
    def min_image_size(self) -> int:
        return self.module.facts.get("min_image_size", 1)

    def config(self) -> dict[str, Any] | None:
        return None  # its graph is all that is known of it


def network_of(module: Module, **settings: Any) -> Network:
    """The network that a module of ours says it is, with the module's weights.

    Args:
      module: a loaded one.
      settings: of the network, which only training needs (`layers.TRAINING_ONLY`).

    Raises:
      UserError: the module does not say which network it is, or is another; the network does not
        have a setting.
    """
    config = module.facts.get("network")
    if not config or config.get("name") not in backbones.NAMES:
        raise UserError(
            f"module {module.handle!r} does not say which network it is of: those of tfssl-import, "
            "and of tfssl-export from this version on, do (one network, of ours); export the run "
            "again with --workdir"
        )
    variables = list(module.variables)
    try:
        network = backbones.build(**config, **settings)
        numbers = sum(math.prod(shape) for shape in variable_shapes(network.twin()))
        if numbers > sum(math.prod(v.shape) for v in variables):  # before their memory is taken
            raise ValueError(f"it has {numbers} weights, which are more than the module's")
        network.build((None, None, None, module.pixels["channels"]))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"module {module.handle!r}: its network cannot be built ({error})"
        ) from error
    variables = variables[: len(network.variables)]  # what follows is a head's
    if [v.shape for v in variables] != [v.shape for v in network.variables]:
        raise UserError(
            f"module {module.handle!r} has other variables than its network {config['name']}"
        )
    for mine, value in zip(network.variables, variables):
        mine.assign(tf.cast(value, mine.dtype))
    return network


def normalized(images: tf.Tensor, normalization: Mapping[str, Any]) -> tf.Tensor:
    """Images in [0, 1] as a module's facts say that its network takes them."""
    mean, std = (tf.constant(normalization[name], images.dtype) for name in ("mean", "std"))
    return (images - mean) / std


def _encoded(
    network: Network, normalization: Mapping[str, Any], images: tf.Tensor, training: bool
) -> dict[str, tf.Tensor]:
    return network(normalized(images, normalization), training=training)
