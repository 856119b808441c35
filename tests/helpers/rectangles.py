"""Bright and dark rectangles on gray in Pascal VOC's layout, for tests of detectors."""

import numpy as np
from PIL import Image

import tfssl


def sources(root):
    """[train, test]: images of two sizes, two objects in each but the first, which has none."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", 32), ("test", 12)):
        names = [f"{split}{i}" for i in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            height, width = (48, 64) if i % 2 else (60, 50)
            pixels, text = np.full([height, width, 3], 128.0), ""
            for column in range(2 * (i > 0)):
                y, x = rng.integers(2, height - 22), rng.integers(2, 8) + 24 * column
                h, w = rng.integers(12, 20, 2)
                kind = rng.integers(2)
                pixels[y : y + h, x : x + w] = 30 + 195 * kind
                ends = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                box = "".join(f"<{k}>{v}</{k}>" for k, v in ends.items())
                text += f"<object><name>{('dark', 'bright')[kind]}</name><bndbox>{box}</bndbox></object>"
            pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg", quality=95)
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    return [tfssl.open_source(f"boxes:{root}", split) for split in ("train", "test")]
