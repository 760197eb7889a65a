"""Label files in the dialects and encodings in which people have them."""

import json
import re
from pathlib import Path

import pytest

from sslrun.base.errors import UserError
from sslrun.data.label_table import read_table

ROWS = [["file", "label"], ["a.jpg", "cat"], ["b, c.jpg", "thé"]]


@pytest.mark.parametrize(
    "text",
    [
        'file,label\na.jpg,cat\n"b, c.jpg",thé\n',
        "file\tlabel\na.jpg\tcat\nb, c.jpg\tthé\n",
        "file;label\r\na.jpg;cat\r\nb, c.jpg;thé\r\n",
        "file|label\na.jpg|cat\nb, c.jpg|thé",
        'sep=;\nfile;label\na.jpg;cat\n"b, c.jpg";thé\n',
        '\n file , label \n\na.jpg,  cat\n "b, c.jpg"  , thé \n , \n',
    ],
    ids=["comma", "tab", "semicolon", "bar", "declared", "spaces and empty lines"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-16-be"])
def test_separators_and_encodings_are_recognized(text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + text.encode(encoding))
    assert read_table(path).rows == ROWS


def test_a_quoted_value_with_a_line_break_a_quote_and_a_short_row(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('file,label,note\na.jpg,"a ""big"" cat","two\nlines"\nb.jpg,dog\n')
    assert read_table(path).rows[1:] == [["a.jpg", 'a "big" cat', "two\nlines"], ["b.jpg", "dog", ""]]


def test_a_list_of_names_and_numbers_separated_by_spaces(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("a/1.jpg 0\na/2.jpg 12\n")
    assert read_table(path).rows == [["a/1.jpg", "0"], ["a/2.jpg", "12"]]


def test_json_lines_with_missing_keys_numbers_and_nulls(tmp_path: Path) -> None:
    records = [{"file_name": "a.jpg", "label": 3}, {"file_name": "b.jpg", "label": None, "boxes": [1]}, {"label": "x"}]
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    table = read_table(path)
    assert table.columns == ["file_name", "label", "boxes"]
    assert [r[:2] for r in table.rows] == [["a.jpg", "3"], ["b.jpg", ""], ["", "x"]]
    assert table.nested == {"boxes"}


def test_a_limit_reads_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n" + "".join(f"{i}.jpg,cat\n" for i in range(100)))
    rows = read_table(path, 200).rows
    assert 10 < len(rows) < 25
    assert all(row[1] in ("label", "cat") for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty"),
        (b" \n\n", "labels.csv is empty"),
        (b"PK\x03\x04...", "labels.csv is an Excel workbook or an archive: save it as CSV"),
        (b"\x00\x01\x02,\x00", "labels.csv is not a text file: save it as CSV in UTF-8"),
        (b"file,label\na.jpg,cat, black\n", "row 2 has 3 values, the first row has 2: put values that contain a comma"),
        (b'file,label\na.jpg,"cat\nb.jpg,dog\n', "line 3: unexpected end of data: check the quotes"),
        (b'{"file": "a.jpg"}\n{"file": \n', "line 2 is not JSON"),
        (b'{"file": "a.jpg"}\n[1]\n', "line 2 is not a JSON object; expected JSON lines, one object per line"),
        (b",,\n,,\n", "labels.csv has no rows"),
    ],
)
def test_a_broken_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_table(path)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(UserError, match=r"labels.csv cannot be opened: Is a directory"):
        read_table(tmp_path / "labels.csv")


def test_a_line_separator_of_unicode_is_no_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"file": "a.jpg", "label": "x\u2028y"}\n', encoding="utf-8")
    assert read_table(path).rows == [["a.jpg", "x\u2028y"]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-8-sig", "utf-32"])
def test_a_limit_may_cut_a_character(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(("file,label\n" + "猫.jpg,犬\n" * 50).encode(encoding))
    for limit in range(200, 216):
        table = read_table(path, limit)
        assert table.rows[0] == ["file", "label"]
        assert table.rows[1:] == [["猫.jpg", "犬"]] * (len(table.rows) - 1)
        assert table.encoding != "Windows-1252"
