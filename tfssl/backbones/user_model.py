"""A user's own Keras model as a backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfssl.backbones import layers
from tfssl.backbones.norm import Norm
from tfssl.errors import UserError
from tfssl.precision import at_least_float32


class UserModel(tf.keras.Model):
    """A user's own model as a backbone; `build` tells what it may return.

    A map becomes the endpoints `features` [N, h, w, D] and `pre_logits` [N, D]. Of a dict every
    entry is an endpoint, in its order but for `pre_logits`, the last. What a subclassed model
    returns is known once it has been called.

    Args:
      model: the model.
      made_by: arguments of `tfssl.backbones.build` that make it again, where it was made by them.

    Attributes:
      norm_policy: what the batch normalizations of a task's head follow; the model's own layers are
        its own.
    """

    def __init__(self, model: tf.keras.Model, made_by: Mapping[str, Any] | None = None) -> None:
        super().__init__(name=model.name)
        self.model = model
        self._made_by = dict(made_by) if made_by else None
        self.norm_policy = (made_by or {}).get("norm_policy", Norm())
        self._kinds: dict[str, str] | None = None
        self.input_channels: int = (made_by or {}).get("input_channels", 3)
        self.min_image_size = 1
        if model.inputs:  # a functional model knows what it takes and returns
            shapes = [tuple(tensor.shape) for tensor in model.inputs]
            if len(shapes) != 1 or len(shapes[0]) != 4:
                raise UserError(
                    f"model {self.name!r} takes {shapes}; a backbone takes images [N, H, W, C], no "
                    "more"
                )
            self.input_channels = shapes[0][-1] or 3
            self.min_image_size = max(side or 1 for side in shapes[0][1:3])
            self._remember(self.in_order(model.output))

    @property
    def autograph(self) -> bool:
        """Whether there is code of its own in the model, in which a tensor may stand where Python
        wants a bool; Keras's has none."""
        modules = {type(m).__module__.split(".")[0] for m in (self.model, *self.model.submodules)}
        return not modules <= {"keras", "tf_keras", "tensorflow", "tfssl"}

    def twin(self) -> UserModel:
        """A network of the same form, with weights of its own.

        Raises:
          UserError: it is neither functional nor has a configuration to make it again from.
        """
        try:
            if self._made_by:
                settings = {name: value for name, value in self._made_by.items() if name != "name"}
                twin = UserModel(type(self.model)(**settings), self._made_by)
            elif self.model.inputs or isinstance(self.model, tf.keras.Sequential):
                twin = UserModel(tf.keras.models.clone_model(self.model))
            else:
                twin = UserModel(type(self.model).from_config(self.model.get_config()))
        except (NotImplementedError, TypeError, ValueError) as e:
            raise UserError(
                f"model {self.name!r} cannot be made twice, as a task with a target network must: "
                "write its get_config and from_config, "
                "or make it functional"
            ) from e
        twin.norm_policy = self.norm_policy
        return twin

    def in_order(self, output: tf.Tensor | Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What the user's model returns, as a dict of endpoints in depth order; its pre_logits may
        still be a map."""
        if not isinstance(output, Mapping):
            output = (
                {"features": output, "pre_logits": output}
                if rank(output) == 4
                else {"pre_logits": output}
            )
        endpoints = {key: output[key] for key in sorted(output, key="pre_logits".__eq__)}
        if not {rank(x) for x in endpoints.values()} <= {*layers.KINDS.values()} or rank(
            endpoints.get("pre_logits")
        ) not in (2, 4):
            found = [
                f"{key} {getattr(value, 'shape', type(value).__name__)}"
                for key, value in endpoints.items()
            ]
            raise UserError(
                f"model {self.name!r} returns {', '.join(found)}; it should return features [N, "
                "D], a map [N, h, w, D] "
                "or a dict of tensors, one of these as its pre_logits"
            )
        return endpoints

    def call(
        self, images: tf.Tensor, training: bool | None = None, keep: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """The endpoints; `keep`, see `layers.Network.call`, is for models whose own call takes
        it."""
        more = {} if keep is None else {"keep": keep}
        if more and "keep" not in inspect.signature(self.model.call).parameters:
            raise UserError(
                f"keep says which tokens a network computes with, and the call of {self.name!r} "
                "takes none"
            )
        # Keras hands our `training` on to every layer that takes one.
        endpoints = self.in_order(self.model(images, **more))
        self._remember(endpoints)
        last = endpoints["pre_logits"]
        endpoints["pre_logits"] = (
            layers.global_mean(last) if rank(last) == 4 else at_least_float32(last)
        )
        return endpoints

    @property
    def endpoint_names(self) -> tuple[str, ...]:
        return tuple(self.endpoint_kinds)

    @property
    def endpoint_kinds(self) -> dict[str, str]:
        """{endpoint: one of `layers.KINDS`}, by the number of its axes."""
        if self._kinds is None:
            raise UserError(
                f"what model {self.name!r} returns is known once it has seen images: call it first"
            )
        return dict(self._kinds)

    def _remember(self, endpoints: Mapping[str, tf.Tensor]) -> None:
        kinds = {axes: kind for kind, axes in layers.KINDS.items()}
        self._kinds = {name: kinds[rank(x) or 0] for name, x in endpoints.items()} | {
            "pre_logits": "vector"
        }

    def config(self) -> dict[str, Any] | None:
        """As `layers.Network.config`; None of a model that only its author can make again."""
        if not self._made_by:
            return None
        return {
            name: value for name, value in self._made_by.items() if name not in layers.TRAINING_ONLY
        }


def rank(value: object) -> int | None:
    """Number of axes of a tensor; None if that is unknown, or if this is no tensor."""
    return getattr(getattr(value, "shape", None), "rank", None)
