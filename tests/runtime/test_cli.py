"""Flagfiles and one-line errors."""

import pytest

from tfssl.errors import UserError
from tfssl.runtime import cli


def test_nested_flagfiles_resolve_beside_the_including_file(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "all.flags").write_text("# a comment\n--flagfile=parts/net.flags\n\n--epochs=3\n")
    (tmp_path / "parts" / "net.flags").write_text("--backbone=b\n--flagfile=deeper.flags\n")
    (tmp_path / "parts" / "deeper.flags").write_text("--stem=small\n")
    argv = ["prog", f"--flagfile={tmp_path}/all.flags", "--epochs=5"]
    assert cli.expand_flagfiles(argv) == [
        "prog",
        "--backbone=b",
        "--stem=small",
        "--epochs=3",
        "--epochs=5",
    ]
    assert cli.expand_flagfiles(
        ["prog", "--flagfile", str(tmp_path / "parts" / "deeper.flags")]
    ) == [
        "prog",
        "--stem=small",
    ]


def test_installed_flagfiles_are_found_by_paper():
    assert "--task=rotation" in cli.expand_flagfiles(
        ["prog", "--flagfile=tfssl:revisiting/rotation.flags"]
    )


def test_flagfile_errors_name_the_file(tmp_path):
    (tmp_path / "loop.flags").write_text("--flagfile=loop.flags\n")
    with pytest.raises(UserError, match="includes itself"):
        cli.expand_flagfiles(["prog", f"--flagfile={tmp_path}/loop.flags"])
    with pytest.raises(UserError, match="no flagfile 'absent.flags'"):
        cli.expand_flagfiles(["prog", "--flagfile=absent.flags"])
    with pytest.raises(UserError, match=r"installed: .*revisiting/rotation.flags"):
        cli.expand_flagfiles(["prog", "--flagfile=tfssl:absent.flags"])
    with pytest.raises(UserError, match=r"installed: dino/imagenet.flags, .*\.\.\.$"):
        cli.expand_flagfiles(["prog", "--flagfile=tfssl:dnio/imagenet.flags"])


def test_flagfiles_of_other_editors(tmp_path):
    """A mark at the beginning and ends of lines as Windows has them are read; another encoding is
    named."""
    path = tmp_path / "a.flags"
    path.write_bytes(b"\xef\xbb\xbf--seed=1\r\n--task=rotation\r\n")
    assert cli.expand_flagfiles(["prog", f"--flagfile={path}"]) == [
        "prog",
        "--seed=1",
        "--task=rotation",
    ]
    for content in ("--seed=1".encode("utf-16"), "--dataset=folder:é".encode("latin-1")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.flags is not text in UTF-8"):
            cli.expand_flagfiles(["prog", f"--flagfile={path}"])


def test_arguments_that_are_no_text(tmp_path):
    name = b"--dataset=folder:caf\xe9".decode(
        errors="surrogateescape"
    )  # as Python has it of a shell
    with pytest.raises(UserError, match="UTF-8"):
        cli.expand_flagfiles(["prog", name])
    (tmp_path / "a.flags").write_text("--workdir=a\0b\n")
    with pytest.raises(UserError, match="UTF-8"):
        cli.expand_flagfiles(["prog", f"--flagfile={tmp_path}/a.flags"])


def test_every_installed_flagfile_is_accepted_by_its_binary(tfssl_command):
    """Each recipe parses: --help is printed only once the flags before it were expanded."""
    import pathlib

    recipes = sorted((pathlib.Path(cli.__file__).parents[2] / "flags").rglob("*.flags"))
    assert recipes
    for recipe in recipes:
        command = (
            "evaluate"
            if "eval" in recipe.stem
            else "finetune"
            if recipe.parent.name == "finetune"
            else "train"
        )
        done = tfssl_command(command, f"--flagfile={recipe}", "--no_such_flag")
        assert done.returncode == 1 and "no_such_flag" in done.stderr, (recipe, done.stderr)


def test_a_first_look_at_a_flag(tmp_path):
    """As absl reads it later: the last one counts, in a flagfile too, and nothing after a bare
    --."""
    (tmp_path / "a.flags").write_text("--task=simclr\n--epochs=3\n")
    flagfile = f"--flagfile={tmp_path}/a.flags"
    for argv, expected in (
        ([], None),
        (["--task=a:B"], "a:B"),
        (["--task", "a:B", "--epochs=1"], "a:B"),
        (["-task=moco"], "moco"),
        (["--task=moco", flagfile], "simclr"),
        ([flagfile, "--task=moco=1"], "moco=1"),
        (["--tasks=moco", "--", "--task=byol"], None),
        (["--task"], None),
    ):
        assert cli.peek(["prog", *argv], "task") == expected, argv
    assert cli.peek(["prog"], "task", "rotation") == "rotation"
    with pytest.raises(UserError, match="no flagfile 'absent.flags'"):
        cli.peek(["prog", "--flagfile=absent.flags"], "task")
