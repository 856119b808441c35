"""Pictures of dense predictions and of attention: for reports, PNG bytes of a grid of images; of
one image with its boxes, a JPEG."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE = 4, 14  # pixels between images, and of a line of text


def colors(count: int) -> np.ndarray:
    """A color for each class, and gray for none (index -1): uint8 [count + 1, 3]."""
    i = np.arange(count)
    # golden-ratio steps: adjacent classes differ
    hue, light = i * 0.618034 % 1, 0.55 + 0.35 * (i % 3) / 2
    wheel = np.clip(np.abs((hue[:, None] * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    return np.concatenate(
        [255 * (1 - (1 - wheel) * 0.7) * light[:, None], [[128, 128, 128]]]
    ).astype(np.uint8)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    names: Sequence[str] = (),
    palette: Iterable[np.ndarray] = (),
) -> bytes:
    """PNG bytes of rows of uint8 images [H, W, 3] of one size, with a title above each column and a
    legend of classes below."""
    height, width = rows[0][0].shape[:2]
    wide, end = len(titles) * (width + _GAP) - _GAP, _LINE + len(rows) * (height + _GAP)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, positions = 2.0, end, []
    for name in names:
        length = pen.textlength(name) + 2 * _LINE
        if left + length > wide:
            left, top = 2.0, top + _LINE
        positions.append((left, top))
        left += length
    canvas = Image.new("RGB", (wide, top + _LINE if names else end - _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for (x, y), name, color in zip(positions, names, palette):
        draw.rectangle((x, y + 2, x + 9, y + 11), fill=tuple(int(v) for v in color))
        draw.text((x + _LINE, y + 1), name, fill="black")
    for column, title in enumerate(titles):
        draw.text((column * (width + _GAP) + 2, 1), title, fill="black")
        for row, images in enumerate(rows):
            canvas.paste(
                Image.fromarray(np.ascontiguousarray(images[column])),
                (column * (width + _GAP), _LINE + row * (height + _GAP)),
            )
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def boxed(
    image: np.ndarray, boxes: np.ndarray, of_class: np.ndarray, palette: np.ndarray
) -> np.ndarray:
    """A copy of an image uint8 [H, W, 3] with boxes (ymin, xmin, ymax, xmax) in pixels, framed in
    the color of their class."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for (top, left, bottom, right), c in zip(boxes, of_class):
        ends = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        draw.rectangle([float(v) for v in ends], outline=tuple(int(v) for v in palette[c]), width=2)
    return np.asarray(picture)


def attention(
    images: np.ndarray, weights: np.ndarray, sides: tuple[int, int] = (64, 128)
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Rows and titles for `grid`: each image, and beside it what each head attends to, from dark to
    bright, where bright is the head's largest weight in this image.

    Args:
      images: uint8 [n, H, W, 3].
      weights: [n, heads, h, w].
      sides: least and greatest width of each picture, in pixels.
    """
    from matplotlib import colormaps

    count, heads = weights.shape[:2]
    height, width = images.shape[1:3]
    wide = min(max(width, sides[0]), sides[1])
    size = wide, round(height * wide / width)
    shown = weights / np.maximum(weights.max((2, 3), keepdims=True), 1e-12)
    colored = np.rint(255 * colormaps["viridis"](shown)[..., :3]).astype(np.uint8)

    def resized(picture: np.ndarray, how: int) -> np.ndarray:
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, how))

    rows = [
        [
            resized(images[i], Image.Resampling.BOX),
            *(resized(head, Image.Resampling.NEAREST) for head in colored[i]),
        ]
        for i in range(count)
    ]
    return rows, ["image", *(f"head {i + 1}" for i in range(heads))]


def labeled(
    image: np.ndarray,
    boxes: np.ndarray,
    of_class: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
) -> bytes:
    """JPEG bytes of an image uint8 [H, W, 3] with boxes (ymin, xmin, ymax, xmax) in pixels, each
    with its class and score; lines and letters grow with the image."""
    picture, palette = Image.fromarray(image), colors(len(names))
    draw, side = ImageDraw.Draw(picture), max(image.shape[:2])
    font = ImageFont.load_default(max(10, side // 60))
    for (top, left, bottom, right), c, score in reversed(list(zip(boxes, of_class, scores))):
        color = tuple(int(v) for v in palette[c])
        ends = [float(v) for v in (left, top, max(left, right), max(top, bottom))]
        draw.rectangle(ends, outline=color, width=max(2, side // 400))
        text = f"{names[c]} {score:.2f}"
        _, _, wide, high = draw.textbbox((0, 0), text, font, "lt")
        # above the box, and within the image
        x, y = max(0.0, min(ends[0], image.shape[1] - wide - 2)), max(0.0, ends[1] - high - 2)
        draw.rectangle((x, y, x + wide + 2, y + high + 2), fill=color)
        ink = "black" if np.mean(color) > 140 else "white"
        draw.text((x + 1, y + 1), text, ink, font, "lt")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0)  # thin lines keep their color
    return buffer.getvalue()
