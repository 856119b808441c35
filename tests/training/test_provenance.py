"""What a run was trained on; whole runs that meet other data are in tests/test_train.py and
tests/test_finetune.py."""

import json
import shutil

import pytest
import tensorflow as tf

import tfssl
from tfssl.errors import UserError
from tfssl.training import provenance
from tfssl.training.provenance import Provenance


def begin(workdir, photos, split="train", step=0):
    made = Provenance(str(workdir), tfssl.open_source(f"folder:{photos}", split))
    made.write(step)
    return made


@pytest.fixture
def copy(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)


def test_the_record_tells_data_versions_and_machine(photos, tmp_path):
    begin(tmp_path, photos)
    (entry,) = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert (
        entry["step"] == 0 and entry["dataset"] == f"folder:{photos}" and entry["split"] == "train"
    )
    assert entry["data"]["num_examples"] == 48 and entry["data"]["class_names"] == ["cold", "warm"]
    assert (
        entry["machine"]["tensorflow"] == tf.__version__
        and entry["machine"]["tfssl"] == tfssl.__version__
    )
    assert entry["machine"]["threads"] >= 1 and isinstance(entry["machine"]["onednn"], bool)


def test_it_is_written_once(photos, copy, tmp_path):
    """A later start on the same data, elsewhere, changes no byte of it."""
    begin(tmp_path, photos)
    before = (tmp_path / "provenance.json").read_bytes()
    begin(tmp_path, copy, step=8).check()
    assert (tmp_path / "provenance.json").read_bytes() == before


def test_another_module_behind_a_flag_is_refused_or_accepted_and_noted(photos, tmp_path, capsys):
    """Whatever its path: a copy is the same one."""

    def start(name):
        source = tfssl.open_source(f"folder:{photos}")
        handle = f"{tmp_path}/{name}"
        return Provenance(str(tmp_path / "run"), source, {"teacher": handle + "#-1..1"})

    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(content)
    first = start("a")
    first.write(0)
    start("b").check()
    assert first.digests().keys() == {"versions", "data", "the module behind --teacher"}
    other = start("c")
    with pytest.raises(UserError, match="the module behind --teacher is not .*accept_changed"):
        other.check()
    other.check(accept=True)
    assert "accepted, and noted" in capsys.readouterr().out
    other.write(8)
    start("c").check()
    with pytest.raises(UserError, match="--teacher"):
        start("a").check()


def test_other_data_are_refused_by_name_or_accepted_and_noted(photos, copy, tmp_path, capsys):
    begin(tmp_path, photos)
    (copy / "cold").rename(copy / "zold")
    changed = Provenance(str(tmp_path), tfssl.open_source(f"folder:{copy}"))
    with pytest.raises(
        UserError, match=r"other classes \(gone: cold; new: zold\).*--accept_changed_data"
    ) as refusal:
        changed.check()
    assert str(photos) in str(refusal.value) and str(copy) in str(refusal.value)
    changed.check(accept=True)
    said = capsys.readouterr().out.splitlines()
    assert (
        len(said) == 3
        and "label 0 was cold and is warm" in said[1]
        and "label 1 was warm and is zold" in said[2]
    )
    changed.write(8)
    steps = [entry["step"] for entry in provenance.read(str(tmp_path / "provenance.json"))]
    assert steps == [0, 8]
    again = Provenance(str(tmp_path), tfssl.open_source(f"folder:{copy}"))
    again.check()  # they are the run's own now
    assert capsys.readouterr().out == ""


def test_a_run_from_before_gets_its_record(photos, tmp_path):
    old = Provenance(str(tmp_path), tfssl.open_source(f"folder:{photos}"))
    old.check()
    old.write(16)
    assert provenance.read(old.path)[0]["step"] == 16


def test_files_that_were_written_again_are_told(photos, copy, tmp_path, capsys):
    begin(tmp_path, copy)
    path = copy / "cold" / "000.jpg"
    path.write_bytes(path.read_bytes())
    Provenance(str(tmp_path), tfssl.open_source(f"folder:{copy}")).check()
    assert (
        "other times than when the run began (written again, or touched); their names and sizes "
        "are the same" in capsys.readouterr().out
    )


def test_a_deterministic_run_tells_of_another_machine(photos, tmp_path, monkeypatch, capsys):
    made = begin(tmp_path, photos)
    here = {
        **made.machine,
        "threads": 64,
        "onednn": not made.machine["onednn"],
        "processor": ["sse2", "unheard_of"],
    }
    monkeypatch.setattr(provenance, "machine", lambda: here)
    other = Provenance(str(tmp_path), tfssl.open_source(f"folder:{photos}"))
    other.check()
    assert capsys.readouterr().out == ""
    other.check(deterministic=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        f"threads 64, not {made.machine['threads']}" in line
        and "with unheard_of" in line
        and "oneDNN o" in line
    )


def test_files_of_the_same_size_with_other_contents_are_refused(photos, copy, tmp_path, capsys):
    """One byte of one image, written in place; at this number of images all are compared."""
    begin(tmp_path, copy)
    path = copy / "warm" / "017.jpg"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    changed = Provenance(str(tmp_path), tfssl.open_source(f"folder:{copy}"))
    with pytest.raises(
        UserError,
        match=r"same names and sizes, but some have other contents.*--accept_changed_data",
    ):
        changed.check()
    changed.check(accept=True)
    changed.write(8)
    assert "accepted, and noted" in capsys.readouterr().out
    Provenance(str(tmp_path), tfssl.open_source(f"folder:{copy}")).check()
    assert capsys.readouterr().out == ""


def test_a_record_from_before_contents_were_compared_is_no_refusal(photos, tmp_path):
    begin(tmp_path, photos)
    path = tmp_path / "provenance.json"
    record = json.loads(path.read_text())
    del record["starts"][0]["data"]["sample"]
    path.write_text(json.dumps(record))
    Provenance(str(tmp_path), tfssl.open_source(f"folder:{photos}")).check()


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"format": 1, "starts": [{}]}', '{"format": 2, "starts": []}', "\0\0"]
)
def test_a_damaged_record_is_one_line(photos, tmp_path, content):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UserError, match="provenance.json cannot be read.*remove it if you know"):
        Provenance(str(tmp_path), tfssl.open_source(f"folder:{photos}"))
