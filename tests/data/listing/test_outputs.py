"""What tfssl writes among images is not taken for data."""

import pytest

import tfssl
from tfssl.data.listing import outputs
from tfssl.data.sources.folder import unlabelled

PATHS = ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/results.png"]  # the last is somebody's own


def content(source):
    return source.class_names, [source.name(i) for i in range(source.num_examples)]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_run_an_evaluation_and_a_dry_run_change_nothing(write_images, tmp_path, scheme):
    root = write_images(PATHS)
    before = content(tfssl.open_source(f"folder:{scheme}{root}"))
    write_images(
        [
            "dry_run.png", "cat/dry_run.png", "eval/results.png", "eval/results_curve.png", "eval/a_neighbors.png", "old/results.png",
            "run/module/8/assets/x.png", "model/variables/x.png",
        ]
    )  # fmt: skip
    outputs.mark(f"{scheme}{root}/eval")
    outputs.mark(f"{scheme}{root}/eval")
    for name in (
        "old/results.json",
        "run/flags.flags",
        "run/module/8/saved_model.pb",
        "model/saved_model.pb",
    ):
        (tmp_path / "photos" / name).write_text("")
    source = tfssl.open_source(f"folder:{scheme}{root}")
    assert content(source) == before and len(before[1]) == 4
    assert len(unlabelled(root).names()) == 4
    (note,) = source.notes()
    assert (
        "left out: what tfssl itself wrote there: cat/dry_run.png, dry_run.png, " in note
        and "\n" not in note
    )


def test_a_workdir_that_is_the_images_folder(write_images, tmp_path):
    """What is not ours stays data there."""
    root = write_images([*PATHS, "results.png", "features/x.png"])
    outputs.mark(root)
    found = tfssl.open_source(f"folder:{root}")
    assert found.class_names == ["cat", "dog"] and found.num_examples == 4
    assert found.left_out["what tfssl itself wrote there"] == ["features", "results.png"]
