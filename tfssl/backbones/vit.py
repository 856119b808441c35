"""Vision transformers: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv
2010.11929).

The network is that of DINO's, MAE's and timm's code: pre-norm blocks, one linear layer for queries,
keys and values, an exact GELU, layer normalization with epsilon 1e-6. Registers: Darcet et al.
(arXiv 2309.16588). Layer scale: Touvron et al. (arXiv 2103.17239). Drop path: see `drop_path`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.backbones import drop_path as stochastic_depth
from tfssl.backbones.layers import Network, build_chain
from tfssl.backbones.norm import LayerNorm, Norm
from tfssl.backbones.rematerialize import rematerialize
from tfssl.errors import UserError, check_choice
from tfssl.precision import at_least_float32

# channels, blocks, heads
SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}
EPSILON = 1e-6


def _normal(stddev: float) -> dict[str, Any]:
    return {"class_name": "RandomNormal", "config": {"stddev": stddev}}


class Attention(tf.keras.layers.Layer):
    """Multi-head self-attention over the tokens: [N, L, D] -> [N, L, D]; the softmax is in float32
    at least."""

    def __init__(
        self, channels: int, heads: int, dense: dict[str, Any], name: str = "attn"
    ) -> None:
        super().__init__(name=name)
        self.heads, self.size = heads, channels // heads
        self.qkv = tf.keras.layers.Dense(3 * channels, name="qkv", **dense)
        self.out = tf.keras.layers.Dense(channels, name="out", **dense)

    def build(self, shape: tf.TensorShape) -> None:
        for layer in (self.qkv, self.out):
            build_chain([layer], shape[-1], rank=3)
        self.built = True

    def weights_and_values(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What each token attends to, [N, heads, L, L], and the values of the tokens,
        [N, heads, L, D / heads]."""
        length = tf.shape(x)[1] if x.shape[1] is None else x.shape[1]
        qkv = tf.reshape(self.qkv(x), [-1, length, 3, self.heads, self.size])
        q, k, v = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]), axis=0)  # N x heads x L x d
        logits = tf.matmul(q * tf.cast(self.size**-0.5, q.dtype), k, transpose_b=True)
        return tf.nn.softmax(at_least_float32(logits)), v

    def call(self, x: tf.Tensor) -> tf.Tensor:
        weights, v = self.weights_and_values(x)
        y = tf.transpose(tf.matmul(tf.cast(weights, v.dtype), v), [0, 2, 1, 3])
        return self.out(tf.reshape(y, [-1, y.shape[1] or tf.shape(y)[1], self.heads * self.size]))


class Block(tf.keras.layers.Layer):
    """Attention, and two linear layers with a GELU between them, each added to what it is given:
    [N, L, D] -> [N, L, D]. `factors` [N, 2], of `drop_path.factors`, multiply the two terms."""

    def __init__(
        self, channels: int, heads: int, layer_scale: float, dense: dict[str, Any], name: str
    ) -> None:
        super().__init__(name=name)
        self.norm1, self.norm2 = (LayerNorm(epsilon=EPSILON, name=f"norm{i}") for i in (1, 2))
        self.attn = Attention(channels, heads, dense)
        self.fc1 = tf.keras.layers.Dense(4 * channels, name="fc1", **dense)
        self.fc2 = tf.keras.layers.Dense(channels, name="fc2", **dense)
        self.filters, self.layer_scale = channels, layer_scale

    def build(self, shape: tf.TensorShape) -> None:
        build_chain([self.norm1, self.attn, self.norm2], shape[-1], rank=3)
        with tf.name_scope("mlp"):
            build_chain([self.fc1, self.fc2], shape[-1], rank=3)
        self.scales = [
            self.add_weight(
                f"scale{i}/gamma",
                [shape[-1]],
                initializer=tf.keras.initializers.Constant(self.layer_scale),
            )
            for i in (1, 2)
            if self.layer_scale
        ]
        self.built = True

    def _scaled(self, x: tf.Tensor, i: int, factors: tf.Tensor | None) -> tf.Tensor:
        if self.scales:
            x *= tf.cast(self.scales[i], x.dtype)
        return x if factors is None else x * tf.cast(factors[:, i, None, None], x.dtype)

    def call(
        self, x: tf.Tensor, training: bool | None = None, factors: tf.Tensor | None = None
    ) -> tf.Tensor:
        x += self._scaled(self.attn(self.norm1(x)), 0, factors)
        y = self.fc2(tf.nn.gelu(self.fc1(self.norm2(x)), approximate=False))
        return x + self._scaled(y, 1, factors)


class ViT(Network):
    """Images [N, H, W, C] with any number of channels to a dict of endpoints; made by
    `tfssl.backbones.build`.

    `block1` and so on are the patches' tokens after each block as maps [N, H / patch, W / patch,
    D], those of the last block after the last layer normalization; `cls` [N, D] is the class token
    after it, `pre_logits` the class token or the mean of the patches. With `keep` [N, K] the blocks
    see those patches alone (and class token and registers), and their endpoints are tokens
    [N, K, D]. Rows and columns of pixels beyond a multiple of the patch are not seen.

    Args:
      name: vit_tiny, vit_small, vit_base or vit_large.
      width_multiplier: Times all channels, but not the heads, of which they have to be a multiple.
      depth: Blocks of a ViT; 0: as many as its name says.
      patch: Side of a ViT's patches, in pixels.
      pool: ViT: what pre_logits are: cls, the class token (DINO, MoCo v3), or mean, of the patches
        (LeJEPA).
      class_token: ViT: whether there is one.
      registers: ViT: tokens beside class token and patches (DINOv2 with registers: 4).
      positions: ViT: of the patches: learned, or fixed, sines and cosines (MAE, MoCo v3).
      grid: ViT: side of the square grid that positions are of, in patches; other images have them
        interpolated. 0: that of the first images.
      heads: ViT: attention heads; 0: as many as its name says (MoCo v3's ViT-S: 12, not 6).
      layer_scale: ViT: of each block's two terms, a factor for each channel that begins with this
        (DINOv2: 1e-5); 0: none.
      drop_path: ViT: in training, probability with which an example skips each of the last block's
        two terms; it grows linearly with depth, from 0 in the first block (MAE's fine-tuning: 0.1;
        DINO: 0.1).
      train_patches: ViT: no: the projection of the patches stays as it began (MoCo v3).
      representation_size: see `Network`.
      initializer: of the kernels: normal, of deviation 0.02 (DINO), or glorot_uniform (MAE).
      norm_policy: of the batch normalizations of heads; a ViT has none.
      remat: in training, keep the inputs of the blocks only.
    """

    flag_names = {"grid": "position_grid", "heads": "attention_heads"}
    flag_bounds = {
        "patch": (1, 64),
        "depth": (0, 100),
        "registers": (0, 64),
        "layer_scale": (0, 1_000_000),
        "grid": (0, 512),
        "heads": (0, 1024),
    }

    def __init__(
        self,
        name: str,
        width_multiplier: float = 1.0,
        depth: int = 0,
        patch: int = 16,
        pool: str = "cls",
        class_token: bool = True,
        registers: int = 0,
        positions: str = "learned",
        grid: int = 0,
        heads: int = 0,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        train_patches: bool = True,
        representation_size: int = 0,
        initializer: str = "normal",
        norm_policy: Norm | None = None,
        remat: bool = False,
    ) -> None:
        super().__init__(
            name,
            width_multiplier=width_multiplier,
            representation_size=representation_size,
            norm_policy=norm_policy,
            remat=remat,
        )
        check_choice("initializer", initializer, ("normal", "glorot_uniform"))
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("positions", positions, ("learned", "fixed"))
        channels, blocks, standard_heads = SIZES[name]
        self.channels, self.depth = self.scaled(channels), depth or blocks
        self.heads = heads or standard_heads
        if self.channels % self.heads or (positions == "fixed" and self.channels % 4):
            raise UserError(
                f"width_multiplier={width_multiplier} gives {name} {self.channels} channels, which "
                f"are not a multiple of its {self.heads} "
                "heads" + (", and of 4 for fixed positions" if positions == "fixed" else "")
            )
        if not 0 <= drop_path < 1:
            raise UserError(f"drop_path={drop_path} is a probability, at least 0 and below 1")
        if pool == "cls" and not class_token:
            raise UserError(
                "pool=cls needs the class token: take pool=mean, or leave class_token on"
            )
        self.initializer, self.patch, self.pool, self.class_token = (
            initializer,
            patch,
            pool,
            class_token,
        )
        self.registers, self.positions, self.grid = registers, positions, grid
        self.layer_scale, self.train_patches = layer_scale, train_patches
        self.drop_path = drop_path
        # By configuration: an initializer that layers share would give them all the same values.
        kernel = _normal(0.02) if initializer == "normal" else initializer
        dense = {"kernel_initializer": kernel}
        self.patch_embed = tf.keras.layers.Conv2D(
            self.channels, patch, patch, name="patch_embed", trainable=train_patches
        )
        self.blocks = [
            Block(self.channels, self.heads, layer_scale, dense, f"block{i}")
            for i in range(1, self.depth + 1)
        ]
        self.last_norm = LayerNorm(epsilon=EPSILON, name="norm")
        self.min_image_size = patch
        self.endpoint_names = (
            *(block.name for block in self.blocks),
            *(["cls"] if class_token and pool == "mean" else []),
            "pre_logits",
        )

    @property
    def endpoint_kinds(self) -> dict[str, str]:
        return {
            name: "map" if name.startswith("block") else "vector" for name in self.endpoint_names
        }

    def set_initializers(self) -> None:
        """PyTorch's default for the patches' kernel, or Xavier's of [patch * patch * C, D]: see
        `build_layers`, which knows C."""

    def build_layers(self, input_shape: tf.TensorShape) -> int:
        inputs = self.patch**2 * input_shape[-1]
        bound = (
            inputs**-0.5
            if self.initializer == "normal"
            else math.sqrt(6 / (inputs + self.channels))
        )
        self.patch_embed.kernel_initializer = tf.keras.initializers.RandomUniform(-bound, bound)
        build_chain([self.patch_embed], input_shape[-1])
        normal = _normal(0.02)
        if self.class_token:
            self.cls_token = self.add_weight("cls", [1, 1, self.channels], initializer=normal)
        if self.registers:
            self.register_tokens = self.add_weight(
                "registers", [1, self.registers, self.channels], initializer=_normal(1e-6)
            )
        if not self.grid and None not in input_shape[1:3]:
            self.grid = max(1, max(input_shape[1:3]) // self.patch)
        if self.positions == "learned":
            if not self.grid:
                raise UserError(
                    f"{self.name} learns a position for each place of its images: set grid, or "
                    "call it first with images of a known height and width"
                )
            self.patch_positions = self.add_weight(
                "positions", [self.grid, self.grid, self.channels], initializer=normal
            )
            if self.class_token:
                self.cls_position = self.add_weight(
                    "cls_position", [1, 1, self.channels], initializer=normal
                )
        return build_chain([*self.blocks, self.last_norm], self.channels, rank=3)

    def tokens(
        self,
        images: tf.Tensor,
        seen: tf.Tensor | None = None,
        mask_token: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tuple[Any, Any]]:
        """Images [N, H, W, C] -> the embedded patches with their positions, [N, h * w, D], in
        raster order, and (h, w). Where `seen` [N, h * w] is 0 and not 1, a `mask_token` [1, 1, D]
        replaces what a patch is embedded as (SimMIM)."""
        if min(side or self.patch for side in images.shape[1:3]) < self.patch:
            raise UserError(
                f"{self.name} cuts images into patches of {self.patch} pixels, and these have "
                f"{images.shape[1]}x{images.shape[2]}: take larger images, or a smaller patch"
            )
        x = self.patch_embed(images)
        height, width = (x.shape[i] or tf.shape(x)[i] for i in (1, 2))
        if seen is not None:
            shown = tf.cast(tf.reshape(seen, [-1, height, width, 1]), x.dtype)
            x = shown * x + (1 - shown) * tf.cast(mask_token, x.dtype)[:, None]
        if self.positions == "learned":
            rows, columns = (interpolation(side, self.grid) for side in (height, width))
            positions = tf.cast(self.patch_positions, rows.dtype)
            if tuple(x.shape[1:3]) != (self.grid, self.grid):
                positions = tf.einsum("hg,gkd,wk->hwd", rows, positions, columns)
        else:
            positions = sinusoids(height, width, self.channels, self.grid)
        x += tf.cast(positions, x.dtype)
        return tf.reshape(x, [-1, height * width, self.channels]), (height, width)

    def transform(
        self, tokens: tf.Tensor, training: bool | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor | None]:
        """Patches' tokens [N, K, D] through the blocks -> those after each block [N, K, D], and the
        class token [N, D], or None; the last two after the last normalization."""
        x = self._sequence(tokens)
        before, after = int(self.class_token) + self.registers, []
        dropped = (
            stochastic_depth.factors(self.drop_path, self.depth, x.shape[0]) if training else None
        )
        for i, block in enumerate(self.blocks):
            factors = None if dropped is None else dropped[:, i]
            x = (
                rematerialize(block, x, factors=factors)
                if self.remat and training
                else block(x, training=training, factors=factors)
            )
            after.append(x[:, before:])
        x = self.last_norm(x)
        after[-1] = x[:, before:]
        return after, x[:, 0] if self.class_token else None

    def _sequence(self, tokens: tf.Tensor) -> tf.Tensor:
        """What the blocks see: class token and registers in front of the patches' tokens."""
        count = tf.shape(tokens)[0] if tokens.shape[0] is None else tokens.shape[0]
        front = []
        if self.class_token:
            cls = (
                self.cls_token + self.cls_position
                if self.positions == "learned"
                else self.cls_token
            )
            front.append(cls)
        if self.registers:
            front.append(self.register_tokens)
        return tf.concat(
            [*(tf.tile(tf.cast(token, tokens.dtype), [count, 1, 1]) for token in front), tokens], 1
        )

    def attention(self, images: tf.Tensor) -> tf.Tensor:
        """What the class token attends to in the last block: [N, heads, H / patch, W / patch], in
        float32 at least. Each head's sum is 1 less what goes to class token and registers (DINO,
        Figure 1).

        Raises:
          UserError: there is no class token.
        """
        if not self.class_token:
            raise UserError(f"{self.name} without a class token has no attention of one to show")
        tokens, (height, width) = self.tokens(images)
        x = self._sequence(tokens)
        for block in self.blocks[:-1]:
            x = block(x, training=False)
        last = self.blocks[-1]
        weights, _ = last.attn.weights_and_values(last.norm1(x))  # N x heads x L x L
        patches = weights[:, :, 0, 1 + self.registers :]
        return tf.reshape(patches, [-1, self.heads, height, width])

    def endpoints(
        self, images: tf.Tensor, training: bool | None, keep: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        tokens, (height, width) = self.tokens(images)
        if keep is not None:
            tokens = tf.gather(tokens, keep, axis=1, batch_dims=1)
        after, cls = self.transform(tokens, training)
        pooled = self.pooled(after[-1], cls)
        if keep is None:
            after = [tf.reshape(x, [-1, height, width, self.channels]) for x in after]
        endpoints = {block.name: x for block, x in zip(self.blocks, after)}
        if "cls" in self.endpoint_names:
            endpoints["cls"] = at_least_float32(cls)
        endpoints["pre_logits"] = pooled
        return endpoints

    def pooled(self, tokens: tf.Tensor, cls: tf.Tensor | None) -> tf.Tensor:
        """pre_logits [N, D] in float32 at least, of the last tokens [N, K, D] and class token."""
        if self.pool == "mean":
            return tf.reduce_mean(at_least_float32(tokens), 1)
        return at_least_float32(cls)


def stage(name: str) -> int | None:
    """How deep a variable of a ViT lies, by its name: 0 for all that makes tokens of an image (the
    projection of patches, class token, registers, positions), i for block i; None for what comes
    after the blocks. MAE's and timm's groups of layer-wise learning rate decay."""
    _, _, path = name.partition("/")
    block = re.match(r"block(\d+)/", path)
    if block:
        return int(block[1])
    first = re.split("[/:]", path)[0]
    return 0 if first in ("patch_embed", "cls", "registers", "positions", "cls_position") else None


def interpolation(size: int | tf.Tensor, grid: int) -> tf.Tensor:
    """The matrix that resizes `grid` positions to `size` by PyTorch's bicubic interpolation (a =
    -0.75, edges repeated, not antialiased): [size, grid] of Keras's floatx. (tf.image's has other
    weights, and does not compile with XLA in TensorFlow 2.15.)"""
    floatx = tf.keras.backend.floatx()
    at = (tf.cast(tf.range(size), "float64") + 0.5) * grid / tf.cast(size, "float64") - 0.5
    first = tf.floor(at)
    matrix = tf.zeros([size, grid], "float64")
    for offset in (-1, 0, 1, 2):
        distance = tf.abs(at - (first + offset))
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weight = tf.where(distance <= 1, near, far)
        neighbor = tf.clip_by_value(tf.cast(first, tf.int32) + offset, 0, grid - 1)
        matrix += weight[:, None] * tf.one_hot(neighbor, grid, dtype="float64")
    return tf.cast(matrix, floatx)


def sinusoids(
    height: int | tf.Tensor, width: int | tf.Tensor, channels: int, grid: int = 0
) -> tf.Tensor:
    """Fixed positions as MAE's code has them, [height, width, channels] of Keras's floatx: sines
    and cosines of the column, then of the row, with D / 4 frequencies from 1 down to nearly 1 /
    10,000. Those of a square `grid` lie between its first and its last row and column, whatever
    height and width, as interpolated ones do; 0: each image has its own."""
    quarter = channels // 4
    frequencies = tf.constant(10000.0 ** -(np.arange(quarter) / quarter))

    def one(size: int | tf.Tensor) -> tf.Tensor:
        at = tf.cast(tf.range(size), "float64")
        if grid:
            at = (at + 0.5) * (grid / tf.cast(size, "float64")) - 0.5
        angle = at[:, None] * frequencies
        return tf.concat([tf.sin(angle), tf.cos(angle)], 1)  # size x D/2

    rows, columns = one(height)[:, None], one(width)[None]
    shape = [height, width, 2 * quarter]
    both = [tf.broadcast_to(columns, shape), tf.broadcast_to(rows, shape)]
    return tf.cast(tf.concat(both, 2), tf.keras.backend.floatx())
