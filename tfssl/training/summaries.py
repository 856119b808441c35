"""Pictures of what the network sees and attends to, and the flags, for TensorBoard."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfssl.backbones.vit import ViT
from tfssl.config.configs import Config
from tfssl.data import pipeline
from tfssl.data.ops.draws import Draws
from tfssl.data.sources.base import Source
from tfssl.data.sources.subset import evenly_spaced
from tfssl.downstream.pictures import attention as show_attention
from tfssl.pretext.task import Pretext


def first_views(
    model: Pretext, source: Source, batch_size: int, seed: int, count: int = 16
) -> np.ndarray | None:
    """Up to `count` images that the network sees in step 0: [n, H, W, 3] in [0, 1], after all
    augmentation, on host and device; None where no image can be read."""
    source = model.with_frames(source)
    batch = next(
        iter(pipeline.first_examples(source, model.example, min(batch_size, count), seed)), None
    )
    if batch is None:
        return None
    batch = model.to_float(batch)
    return np.clip(model.preview(model.augment(batch, Draws(batch)))[:count].numpy(), 0, 1)


def pictures(model: Pretext, source: Source, count: int = 8) -> dict[str, Callable[[], np.ndarray]]:
    """{name: function () -> picture} of images spread over a source: "pictures", the task's own, in
    three columns; and "attention" of an encoder that is a vision transformer with a class token, a
    row for each image and a column for each head. What there is not is left out."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    part = evenly_spaced(source, count)
    if type(model).pictures is not Pretext.pictures:
        batch = next(iter(model.evaluation_dataset(part, part.num_examples)))
        # On a replica: outside of one, statistics of several hosts would be averaged, and they do
        # not all come here.
        strategy = model.distribute_strategy
        show = tf.function(
            lambda batch: strategy.run(model.pictures, (batch,)), autograph=model.autograph
        )

        def own() -> np.ndarray:
            return grid(np.clip(strategy.experimental_local_results(show(batch))[0], 0, 1), 3)

        found["pictures"] = own
    encoder = model.published[0]
    if isinstance(encoder, ViT) and encoder.class_token:
        found["attention"] = _attention(model, encoder, part)
    return found


def _attention(model: Pretext, encoder: ViT, source: Source) -> Callable[[], np.ndarray]:
    crops = pipeline.evaluation_crops(source, *model.evaluation_size, source.num_examples)
    batch = next(iter(crops))
    real = batch["weight"].numpy() > 0
    inputs = tf.boolean_mask(pipeline.as_floats(batch["image"]), real)
    shown = np.rint(255 * inputs.numpy()).astype(np.uint8)
    shown = shown[..., :3] if shown.shape[-1] > 2 else shown[..., :1].repeat(3, -1)
    attend = tf.function(lambda x: encoder.attention(model.normalize(x)), autograph=False)

    def picture() -> np.ndarray:
        rows, titles = show_attention(shown, attend(inputs).numpy())
        return grid(np.stack([image for row in rows for image in row]) / 255, len(titles))

    return picture


def grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """[N, H, W, 3] in [0, 1] -> one uint8 picture of them, row by row, on white."""
    n, h, w, channels = images.shape
    images = images[..., : 3 if channels > 2 else 1]  # of many, the first three
    columns = min(columns, n)
    rows = -(-n // columns)
    picture = np.ones([rows * (h + 2) + 2, columns * (w + 2) + 2, 3])
    for i, (row, column) in zip(range(n), itertools.product(range(rows), range(columns))):
        y, x = row * (h + 2) + 2, column * (w + 2) + 2
        picture[y : y + h, x : x + w] = images[i]
    return (picture * 255).round().astype(np.uint8)


def write_start(
    writer: tf.summary.SummaryWriter, model: Pretext, source: Source, config: Config
) -> None:
    """The first views and the flags, at step 0."""
    o, values = config.optimization, config.flags()
    table = "| flag | value |\n|---|---|\n" + "\n".join(
        f"| {k} | {v} |" for k, v in values.items() if v is not None
    )
    views = first_views(model, source, o.batch_size, o.seed)
    with writer.as_default():
        if views is not None:
            tf.summary.image("views", grid(views)[None], step=0)
        tf.summary.text("flags", table, step=0)
    writer.flush()
