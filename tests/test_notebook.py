"""The README's notebook example, run as it stands but for path, backbone, sizes and epochs."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"
CHANGES = {
    '"resnet50_v2", width_multiplier=1.0, stem="imagenet"': '"resnet18_v2", width_multiplier=0.125, stem="small"',
    "image_size=224": "image_size=16",
    "batch_size=256": "batch_size=8",
    "epochs=10, steps_per_epoch=100": "epochs=2, steps_per_epoch=3",
    "folder:photos": "folder:{photos}",
    "modules/photos/1": "{modules}/photos/1",
}


def test_the_example_runs(photos, tmp_path):
    section = README.read_text(encoding="utf-8").split("## In a notebook")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    for old, new in CHANGES.items():
        assert old in code, old
        code = code.replace(old, new.format(photos=photos, modules=tmp_path))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    results = [line for line in printed.getvalue().splitlines() if line.startswith("Result(")]
    assert any("pre_logits" in line and "knn" in line for line in results), printed.getvalue()
    assert (tmp_path / "photos" / "1" / "saved_model.pb").exists()
