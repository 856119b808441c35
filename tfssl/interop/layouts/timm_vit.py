"""Vision transformers as timm names them, and with it DINO, MAE and MoCo v3."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

import tensorflow as tf

from tfssl.backbones.vit import SIZES
from tfssl.errors import UserError
from tfssl.interop.layouts.layout import Shapes, counted, with_prefix
from tfssl.interop.links import CONV, POSITIONS, SAME, Link, affine, layer_norm

_WIDTHS = {channels: name for name, (channels, _, _) in SIZES.items()}


class TimmViT:
    """cls_token, pos_embed, patch_embed.proj, blocks.0.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
    mlp.fc2}, ..., norm; ls1.gamma and register tokens where there are some (DINOv2)."""

    def keys(self, names: Collection[str], prefix: str) -> dict[str, dict[str, str]]:
        found = with_prefix(names, prefix, "patch_embed.proj.weight")
        aliases = {"register_tokens": "reg_token"}  # DINOv2's own files, and timm's
        return {
            p: {aliases.get(key, key): name for key, name in keys.items()}
            for p, keys in found.items()
        }

    def settings(self, shapes: Shapes) -> dict[str, Any]:
        (blocks,) = counted(shapes, r"blocks\.(\d+)\.norm1\.weight") or [0]
        channels, _, patch, *_ = *shapes["patch_embed.proj.weight"], 0, 0, 0
        if channels not in _WIDTHS or not blocks or "pos_embed" not in shapes:
            sizes = ", ".join(f"{name} {channels}" for channels, name in _WIDTHS.items())
            raise UserError(
                f"--weights: a ViT of {channels} channels and {blocks} blocks, with or without "
                f"positions, is none of those here: {sizes}"
            )
        name, cls = _WIDTHS[channels], "cls_token" in shapes
        return {
            "name": name,
            "depth": 0 if blocks == SIZES[name][1] else blocks,
            "patch": patch,
            "pool": "cls" if cls else "mean",
            "class_token": cls,
            "registers": shapes["reg_token"][1] if len(shapes.get("reg_token", ())) == 3 else 0,
            "grid": math.isqrt(shapes["pos_embed"][1]) if len(shapes["pos_embed"]) == 3 else 0,
            "layer_scale": 1.0 if "blocks.0.ls1.gamma" in shapes else 0.0,
        }

    def links(self, backbone: Any) -> list[Link]:
        if not hasattr(backbone, "patch_embed"):
            raise UserError(f"backbone {backbone.name} is no ViT")
        if backbone.positions != "learned":
            raise UserError(
                f"backbone {backbone.name} computes its positions, for which timm has no names: "
                "only learned ones are exported"
            )
        positions: tuple[tf.Variable, ...] = (backbone.patch_positions,)
        found = affine("patch_embed.proj", backbone.patch_embed, CONV)
        if backbone.class_token:
            found.append(Link("cls_token", (backbone.cls_token,), SAME))
            positions = (backbone.cls_position, *positions)
        if backbone.registers:
            found.append(Link("reg_token", (backbone.register_tokens,), SAME))
        found.append(Link("pos_embed", positions, POSITIONS))
        for i, block in enumerate(backbone.blocks):
            key = f"blocks.{i}"
            found += [
                *layer_norm(f"{key}.norm1", block.norm1),
                *affine(f"{key}.attn.qkv", block.attn.qkv),
                *affine(f"{key}.attn.proj", block.attn.out),
                *layer_norm(f"{key}.norm2", block.norm2),
                *affine(f"{key}.mlp.fc1", block.fc1),
                *affine(f"{key}.mlp.fc2", block.fc2),
            ]
            found += [
                Link(f"{key}.ls{n}.gamma", (scale,), SAME)
                for n, scale in enumerate(block.scales, 1)
            ]
        return [*found, *layer_norm("norm", backbone.last_norm)]

    def is_own(self, name: str) -> bool:
        return bool(re.match(r"(cls_token|pos_embed|reg_token|patch_embed|blocks|norm)\b", name))
