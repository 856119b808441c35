"""Files are complete or absent, whatever happens while they are written."""

import ast
import os
import pathlib
import subprocess
import sys
import threading

import pytest

import tfssl
from tfssl.errors import UserError
from tfssl.storage import files


def half(file):
    file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_write_that_fails_leaves_what_was_there(scheme, tmp_path):
    path = f"{scheme}{tmp_path}/folder/results.json"
    with pytest.raises(OSError, match="No space left"):
        files.write_file(path, half)
    assert not list(tmp_path.rglob("*.*"))
    for content, expected in (
        ("é\n", b"\xc3\xa9\n"),
        (b"\x00", b"\x00"),
        (lambda f: f.write(b"by parts"), b"by parts"),
    ):
        files.write_file(path, content)
        with pytest.raises(OSError, match="No space left"):
            files.write_file(path, half)
        assert (tmp_path / "folder" / "results.json").read_bytes() == expected
        assert os.listdir(tmp_path / "folder") == ["results.json"]


def test_an_object_store_gets_the_whole_under_its_name(tmp_path, monkeypatch):
    """A rename is a copy there."""
    import tensorflow as tf

    monkeypatch.setattr(files, "OBJECT_STORES", ("file://",))
    monkeypatch.setattr(tf.io.gfile, "rename", None)
    files.write_file(f"file://{tmp_path}/a", b"whole")
    with pytest.raises(OSError, match="No space left"):
        files.write_file(f"file://{tmp_path}/a", half)
    assert (tmp_path / "a").read_bytes() == b"whole" and os.listdir(tmp_path) == ["a"]


def test_content_is_on_the_disk_before_its_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append((a, b)), replace(a, b)))
    path = str(tmp_path / "a")
    files.write_file(path, b"1")
    content, renaming, names = done
    assert renaming == (content, path) and content != path and names == str(tmp_path)


def test_links_are_followed_and_pipes_stay_pipes(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_file(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"1"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_file(tmp_path / "pipe", b"2")
    reader.join(10)
    assert read == [b"2"] and (tmp_path / "pipe").is_fifo()


def test_the_leftovers_of_killed_writers_are_swept(tmp_path):
    mine = ["flags.flags", "a.tmp", "12-notes.tmp"]
    for name in (*mine, os.path.basename(files.temporary("flags.flags"))):
        (tmp_path / name).touch()
    files.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(mine)


def test_places_that_cannot_be_written_are_found_and_no_folder_is_made(tmp_path):
    (tmp_path / "file").touch()
    for folder in (
        tmp_path / "file",
        tmp_path / "file" / "run",
        "/proc/no/such",
        f"file://{tmp_path}/file/run",
    ):
        with pytest.raises(UserError, match="--workdir=.* cannot be written"):
            files.check_writable(str(folder), "--workdir")
    files.check_writable(str(tmp_path / "a" / "b"), "--workdir")
    assert os.listdir(tmp_path) == ["file"]


def test_files_that_cannot_be_written_are_found_too(tmp_path):
    (tmp_path / "file").touch()
    for path in (
        "",
        f"{tmp_path}/",
        str(tmp_path),
        f"{tmp_path}/file/table.csv",
        "/proc/no/such/table.csv",
    ):
        with pytest.raises(UserError, match="--output"):
            files.check_file(path, "--output")
    young, old, other = (
        tmp_path / f"{name}.12-0123abcd.tmp" for name in ("file", "table.csv", "other")
    )
    for path in (young, old, other):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    for path in (
        f"{tmp_path}/file",
        f"{tmp_path}/table.csv",
        f"{tmp_path}/new/table.csv",
        "/dev/null",
    ):
        files.check_file(path, "--output")
    assert sorted(os.listdir(tmp_path)) == ["file", young.name, other.name]


def test_scratch_folders_of_killed_processes_go(tmp_path, monkeypatch):
    """Those of living ones stay, however old they are."""
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tfssl.storage import files; "
        "print(files.scratch('x-'), flush=True); input()"
    )
    line = [sys.executable, "-c", code, os.path.dirname(os.path.dirname(tfssl.__file__))]
    others = [
        subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for _ in range(3)
    ]
    killed, living, finished = (other.stdout.readline().strip() for other in others)
    others[0].kill()
    others[2].communicate("\n")
    others[0].wait()
    assert os.path.isdir(killed) and not os.path.exists(finished)
    for folder in (killed, living):
        os.utime(folder, (1, 1))
    mine = files.scratch("x-")
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, (living, mine)))
    others[1].communicate("\n")


# Whatever else may open a file to write: (file, function) -> why it need not be complete or absent.
WRITERS = {
    ("tfssl/storage/files.py", None): "the one place",
    ("tfssl/storage/locks.py", None): "written under a name of its own, then linked",
    ("tfssl/runtime/console.py", None): "/dev/null",
    ("tfssl/training/callbacks.py", None): "metrics.jsonl: lines are appended",
    ("tfssl/storage/archive.py", "unpack"): "a folder is renamed when it is complete",
    ("tfssl/storage/archive.py", "write"): "into that folder",
    ("tfssl/pretext/parts/ab_bins.py", "save"): "into the file that write_file gives it",
    ("tfssl/data/sources/glyphs.py", "_drawn"): "into memory",
    ("tfssl/storage/npz.py", "fill"): "into the file that write_file gives it",
    ("tfssl/hub/precision.py", "_link"): "into a scratch folder",
    ("tfssl/export/converted.py", "_quiet"): "/dev/null",
    ("tfssl/export/converted.py", "save_keras3"): "a folder is renamed when it is complete",
    ("tfssl/hub/remote.py", None): "a download, renamed when its digest is right",
    (
        "tfssl/downstream/features/cache.py",
        None,
    ): "memory maps, which count when they are committed",
    ("tfssl/downstream/features/maps.py", None): "a file without a name",
    ("tfssl/downstream/report/plots.py", "_png"): "into memory",
    ("tfssl/downstream/report/neighbors.py", "plot"): "into memory",
    ("tfssl/downstream/pictures.py", "grid"): "into memory",
    (
        "tfssl/export/folder.py",
        "_publish",
    ): "assets in a temporary folder, which SavedModel copies; renamed when it is complete",
    ("tfssl/export/folder.py", "pack"): "into the file that write_file gives it",
    ("tfssl/export/folder.py", "_write_tarball"): "a temporary copy of a remote module",
}
OPENERS = {"open", "GFile", "fdopen", "TarFile", "ZipFile", "memmap", "open_memmap", "FileIO"}
WRITING = {
    "save", "savez", "savez_compressed", "savefig", "imsave", "tofile", "write_text", "write_bytes", "write_file", "dump", "copyfile",
    "copy2", "to_csv", "rename", "replace", "copy", "TFRecordWriter", "open_memmap",
}  # fmt: skip
HARMLESS = {"copy", "replace", "rename", "save", "dump"}  # of objects other than these modules
MODULES = {"np", "numpy", "os", "shutil", "pickle", "json", "gfile", "io", "tf"}


def writes(call):
    """Whether a call may write a file."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    owner = getattr(owner, "attr", getattr(owner, "id", None))
    if name in OPENERS:
        values = [
            a.value
            for a in [*call.args[1:], *(k.value for k in call.keywords)]
            if isinstance(a, ast.Constant)
        ]
        return any(isinstance(v, str) and (v[0] in "wax" or "+" in v) for v in values if v)
    if name == "write_file":  # ours, but TensorFlow's is none
        return owner == "io"
    return name in WRITING and (name not in HARMLESS or owner in MODULES)


def test_nobody_writes_past_write_file():
    root = pathlib.Path(tfssl.__file__).parents[1]
    found = {}
    for folder in ("tfssl", "export"):
        for path in sorted((root / folder).rglob("*.py")):
            name = str(path.relative_to(root))
            name = f"tfssl/{name}" if folder == "export" else name
            tree = ast.parse(path.read_text(encoding="utf-8"))
            within = {}
            for node in ast.walk(tree):  # outer functions first
                if isinstance(node, ast.FunctionDef):
                    within.update({id(inner): node.name for inner in ast.walk(node)})
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and writes(node):
                    key = (name, within.get(id(node)))
                    if key not in WRITERS and (name, None) not in WRITERS:
                        found[key] = f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"
    assert not found, "\n".join(
        ["to be written by tfssl.storage.files.write_file:", *found.values()]
    )


def test_room_is_claimed_and_contents_stay(tmp_path, monkeypatch):
    """A sparse file has no blocks; with `claim` it has as many as its bytes take, also where the
    system has no call for that (macOS)."""
    for number in range(2):
        with open(tmp_path / f"{number}", "w+b") as file:
            file.write(b"head")
            file.truncate(1 << 20)
            assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
            files.claim(file)
            file.flush()
            os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
            file.seek(0)
            assert file.read() == b"head".ljust(1 << 20, b"\0")
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
