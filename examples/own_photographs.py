"""Pretrain an encoder on a folder of photographs, publish it, and look at what it finds alike.

    python examples/own_photographs.py photos                  # all images below the folder; labels are not needed
    python examples/own_photographs.py photos --steps 5000     # longer is better

`tfssl-train`, `tfssl-export` and `tfssl-eval --neighbors` do the same with checkpoints, exact
resume, logs and a page to look at.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

import tfssl


def pretrain(
    photos: str, image_size: int, batch_size: int, steps: int, width: float
) -> tf.keras.Model:
    """SimCLR on the photographs: two augmented crops of one image are told from those of all
    others."""
    source = tfssl.open_source(f"folder:{photos}")
    backbone = tfssl.backbones.build("resnet18_v2", width_multiplier=width, bn_momentum=0.9)
    task = tfssl.pretext.build("simclr", backbone, image_size=image_size)
    rate = tf.keras.optimizers.schedules.CosineDecay(0.1, steps)
    task.compile(optimizer=tf.keras.optimizers.SGD(rate, momentum=0.9))
    task.fit(task.dataset(source, batch_size, seed=0), steps_per_epoch=steps)
    return task


def neighbors(features: np.ndarray, rows: Sequence[int], count: int) -> np.ndarray:
    """For each of some rows of features [N, D], the rows most similar to it by cosine: int
    [len(rows), count]."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit[rows] @ unit.T
    similarity[np.arange(len(rows)), rows] = -np.inf  # an image is no neighbor of itself
    return np.argsort(-similarity, axis=1)[:, :count]


def main(argv: Optional[Sequence[str]] = None) -> dict[str, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="a folder of images, or an archive of one")
    parser.add_argument(
        "--out",
        default="runs/photos/module/1000",
        help="folder of the published module; it must not exist yet",
    )
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=float, default=0.5, help="times ResNet-18's channels")
    parser.add_argument(
        "--queries", type=int, default=5, help="photographs whose neighbors are printed"
    )
    args = parser.parse_args(argv)
    if os.path.exists(args.out):
        parser.error(f"{args.out} exists: published modules never change; give another --out")

    task = pretrain(args.photos, args.image_size, args.batch_size, args.steps, args.width)
    module = tfssl.export.save(task, args.out, step=args.steps)
    print(f"published: {module}; in Keras: hub.KerasLayer({module!r}, trainable=True)")

    source = tfssl.open_source(f"folder:{args.photos}")
    features = tfssl.downstream.extract(module, source)
    names = [
        source.name(index) for index in features.index
    ]  # without images that could not be read
    queries = np.random.default_rng(0).permutation(len(names))[: args.queries]
    nearest = neighbors(features.endpoints["pre_logits"], queries, count=3)
    similar = {names[query]: [names[row] for row in rows] for query, rows in zip(queries, nearest)}
    for name, others in similar.items():
        print(f"{name}: {', '.join(others)}")
    return similar


if __name__ == "__main__":
    main()
