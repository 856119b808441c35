"""Text files with a name on each line."""

import pytest

from tfssl.data.listing.text import read_lines, to_lines
from tfssl.errors import UserError


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_text_in_utf_8(tmp_path, coding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(f"café{end}{end}b c{end}".encode(coding))
    assert read_lines(str(path), "boxes:x") == ["café", "", "b c"]


@pytest.mark.parametrize("coding", ["utf-16", "latin-1"])
def test_text_in_other_encodings_is_named(tmp_path, coding):
    path = tmp_path / "list.txt"
    path.write_text("café\n", encoding=coding)
    with pytest.raises(UserError) as error:
        read_lines(str(path), "boxes:x")
    assert str(error.value) == f"boxes:x: {str(path)!r} is not text in UTF-8: save it as such"


def test_a_name_takes_one_line(tmp_path):
    names = ["cat", "polar\nbear", "a\r\nb", "end\n", 7]
    text = to_lines(names)
    assert text == "cat\npolar bear\na b\nend\n7\n"
    (tmp_path / "list.txt").write_text(text)
    assert len(read_lines(str(tmp_path / "list.txt"), "x")) == len(names)
