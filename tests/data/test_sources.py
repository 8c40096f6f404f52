"""Each kind of file: its rows with their places, and what is said about a file that is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from finetune.data.sources import READERS, read_rows
from finetune.errors import DataError

ROWS = [{"instruction": "Größe?", "output": "Klein 🍕"}, {"instruction": 'a, "b"', "output": "c"}]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join('"' + v.replace('"', '""') + '"' for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(read_rows(path))
    return str(error.value).removeprefix(f"{path.parent}/")


@pytest.mark.parametrize("suffix", [*READERS, ".JSONL"])
def test_each_kind_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix.lower()}", ROWS)
    path = path.rename(path.with_suffix(suffix))
    found = list(read_rows(str(path)))
    assert [row.row for row in found] == ROWS
    assert len({row.where for row in found}) == len(ROWS)
    assert all(row.where.startswith(f"{path}:") for row in found)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row.row for row in read_rows(path)] == ROWS


def test_lines_are_counted_with_empty_ones_and_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n  \n{"a": 2}\n\n')
    assert [(row.row, row.where) for row in read_rows(path)] == [({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:4")]


def test_csv_cells_may_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"one\ntwo",x\ny,z\n', newline="")
    assert [row.row for row in read_rows(path)] == [{"a": "one\ntwo", "b": "x"}, {"a": "y", "b": "z"}]
    assert [row.where for row in read_rows(path)][1] == f"{path}:4"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n{"a": 1\n',
            "a.jsonl:2: broken JSON: Expecting ',' delimiter at column 8; each line must",
        ),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "a.jsonl:3: the row is list, expected an object"),
        ("a.jsonl", '"text"\n', "a.jsonl:1: the row is str"),
        ("a.jsonl", f'{{"a": {"9" * 5000}}}\n', "a.jsonl:1: JSON that cannot be read"),
        ("a.jsonl", "[" * 200_000, "a.jsonl:1: JSON that cannot be read"),
        ("a.json", '[{"a": 1},\n {"a": }]', "a.json:2:8: broken JSON"),
        ("a.json", '{"a": 1}', "a.json: holds one dict, expected a list of objects"),
        ("a.json", '[{"a": 1}, 5]', "a.json:row 2: the row is int"),
        ("a.json", "[" * 200_000, "a.json: JSON that cannot be read"),
        ("a.json", "", "a.json:1:1: broken JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3: the row has another number of cells than the 2 headers"),
        ("a.csv", "a,b\n1\n", "a.csv:2: the row has another number of cells than the 2 headers"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv:2: broken CSV"),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: two columns are called 'a'"),
        ("a.parquet", "no parquet", "a.parquet: broken Parquet file"),
        ("a.parquet", "", "a.parquet: broken Parquet file"),
        ("a.txt", "text", "a.txt: unknown kind of data file '.txt'; use one of .jsonl, .json, .csv, .parquet"),
        ("rows", "text", "rows: unknown kind of data file ''"),
    ],
)
def test_a_broken_file_is_placed(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    assert refusal(tmp_path / name).startswith(message)


def test_rows_before_a_broken_line_are_given_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{\n')
    rows = read_rows(path)
    assert next(rows).row == {"a": 1}
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes("größe,b".encode("latin-1"))
    assert refusal(path).startswith(f"rows{suffix}: is not UTF-8 text (invalid start byte at byte 2)")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS * 500)
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith("rows.parquet: broken Parquet file")


def test_parquet_conversations_come_as_plain_lists(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert [(r.row, r.where) for r in read_rows(path)] == [(row, f"{path}:row 1")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").startswith("none.jsonl: no such data file; looked for /")
    assert "cannot be read (File name too long)" in refusal(tmp_path / f"{'x' * 999}.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "no such data file" in refusal(tmp_path / "folder.jsonl")
