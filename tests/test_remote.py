"""Every path may be a URL that TensorFlow can open. `file://` stands for `gs://` here: Python's own
file functions open neither."""

import json


def test_data_workdir_and_modules_are_urls(photos, tmp_path, tfssl_command):
    there = f"file://{tmp_path}"
    (tmp_path / "photos").symlink_to(photos)
    data = f"--dataset=folder:{there}/photos"
    settings = (
        data, "--backbone=resnet18_v2", "--width_multiplier=0.0625", "--stem=small", "--image_size=16", "--batch_size=8",
        "--train_steps=6", "--checkpoint_steps=3", "--log_steps=3",
    )  # fmt: skip
    commands = [
        ("train", f"--workdir={there}/run", *settings),
        ("train", f"--flagfile={there}/run/flags.flags"),
        ("export", f"--workdir={there}/run", f"--export_dir={there}/module/1", "--tarball"),
        (
            "evaluate", f"--module=a={there}/module/1,b={there}/module/1.tar.gz", data, f"--workdir={there}/eval",
            "--train_split=train[:70%]", "--test_split=train[70%:]", "--endpoints=pre_logits",
        ),
    ]  # fmt: skip
    for command, *flags in commands:
        done = tfssl_command(command, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("file:*"))  # nothing was taken for a local name
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [3, 6]
    results = json.loads((tmp_path / "eval" / "results.json").read_text())["results"]
    values = {r["module"]: r["value"] for r in results if r["endpoint"] == "pre_logits"}
    assert values["a"] == values["b"]  # the folder and the tarball are one module
    assert (tmp_path / "eval" / "results.png").stat().st_size > 1000
