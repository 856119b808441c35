"""Names of modules from their handles."""

import pytest

from tfssl.errors import UserError
from tfssl.hub import handles


def test_a_star_stands_for_the_modules_of_a_folder_in_the_order_of_their_steps(tmp_path):
    for name in ("1000", "200", "random", "no_module"):
        (tmp_path / "run[1]" / "module" / name).mkdir(parents=True)
        if name != "no_module":
            (tmp_path / "run[1]" / "module" / name / "saved_model.pb").touch()
    folder = f"{tmp_path}/run[1]/module"
    steps = [f"{folder}/{name}" for name in ("200", "1000", "random")]
    assert handles.named([f"{folder}/*"]) == dict(
        zip(("run[1]/200", "run[1]/1000", "run[1]/random"), steps)
    )
    assert list(handles.named([f"a={folder}/*0", f"b={folder}/random"])) == ["a/200", "a/1000", "b"]
    with pytest.raises(UserError, match="no module there"):
        handles.named([f"{folder}/x*"])
