"""Each kind of file: its rows with their places, what is said about bad rows, and that reading goes on behind them."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from finetune.data import jsonarray, jsontext, streams
from finetune.data.readers import BATCH, TABLES, TEXTS, BadRow, LocatedRow, kind_of, read_file
from finetune.errors import DataError
from tests.data.memory import peak_growth

ROWS = [{"instruction": "Größe?", "output": "Klein 🍕"}, {"instruction": 'a, "b"\tc', "output": "one\ntwo"}]
PACKED = [text + packing for text in TEXTS for packing in (".gz", ".zst")]
MIB = 2**20


def pack(data: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(data)
    if packing == ".zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return data


def text_of(rows: Sequence[Mapping[str, object]], suffix: str) -> str:
    if suffix in (".csv", ".tsv"):
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        return "".join(mark.join('"' + str(c).replace('"', '""') + '"' for c in line) + "\n" for line in cells)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n" if suffix == ".json" else "\n".join(lines) + "\n"


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    suffix, packing = kind_of(path)
    if suffix in TEXTS:
        path.write_bytes(pack(text_of(rows, suffix).encode(), packing))
    elif suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_arrow(path, pyarrow.Table.from_pylist(rows), pyarrow.ipc.new_stream)
    return path


def write_arrow(path: Path, table: pyarrow.Table, kind: Callable[..., pyarrow.RecordBatchWriter]) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return path


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def told(path: Path) -> list[str]:
    """What is given out, row by row: good rows as JSON, bad rows as code and problem, places without the folder."""
    return [
        f"{found.where.removeprefix(f'{path.parent}/')} "
        + (json.dumps(found.row) if isinstance(found, LocatedRow) else f"{found.code}: {found.problem}")
        for found in read_file(path)
    ]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(read_file(path))
    return str(error.value).removeprefix(f"{path.parent}/")


@pytest.mark.parametrize("suffix", [*TEXTS, *PACKED, *TABLES, ".JSONL", ".Csv.GZ"])
def test_each_kind_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix.lower()}", ROWS)
    path = path.rename(tmp_path / f"rows{suffix}")
    found = list(read_file(path))
    assert [row.row for row in found if isinstance(row, LocatedRow)] == ROWS
    assert len({row.where for row in found}) == len(ROWS)
    assert all(row.where.startswith(f"{path}:") for row in found)


def test_both_forms_of_arrow_files_are_read(tmp_path: Path) -> None:
    rows = [{"n": n, "text": "x" * n} for n in range(2500)]
    for kind in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
        path = write_arrow(tmp_path / "rows.arrow", pyarrow.Table.from_pylist(rows), kind)
        found = list(read_file(path))
        assert [row.row for row in found if isinstance(row, LocatedRow)] == rows
        assert found[-1].where == f"{path}:row 2500"


def test_a_name_can_stand_for_the_path(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"a": 1}\n{\n')
    assert [found.where for found in read_file(path, "hf://x")] == ["hf://x:1", "hf://x:2"]
    with pytest.raises(DataError, match=r"^hf://y: no such data file; looked for /"):
        list(read_file(tmp_path / "none.jsonl", "hf://y"))


@pytest.mark.parametrize("suffix", [*TEXTS, *PACKED])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + text_of(ROWS, kind_of(path)[0]).encode(), kind_of(path)[1]))
    assert [row.row for row in read_file(path) if isinstance(row, LocatedRow)] == ROWS


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_wide_encodings_are_named(tmp_path: Path, suffix: str, encoding: str) -> None:
    for order in ("LE", "BE"):
        content = "\ufeff".encode(f"{encoding}-{order}") + text_of(ROWS, suffix).encode(f"{encoding}-{order}")
        path = put(tmp_path / f"rows{suffix}", content)
        assert refusal(path) == f"rows{suffix}: is {encoding} text; save it as UTF-8"


def test_lines_are_counted_with_empty_ones_and_windows_ends(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", b'{"a": 1}\r\n\r\n  \n {"a": 2} \n\n')
    assert told(path) == ['rows.jsonl:1 {"a": 1}', 'rows.jsonl:4 {"a": 2}']


END = "; the file seems to end in the middle of a row"


@pytest.mark.parametrize(
    ("line", "told_of_it"),
    [
        ('{"a": 1', "syntax: broken JSON at column 8: Expecting ',' delimiter"),
        ('  {"a" 1}', "syntax: broken JSON at column 8: Expecting ':' delimiter"),
        ('{"a": 1} {"a": 2}', "syntax: broken JSON at column 9: something stands behind the object"),
        ('{"a": "x\0y"}', "syntax: broken JSON at column 9: a NUL byte"),
        ('\ufeff{"a": 1}', "syntax: broken JSON at column 1: a byte order mark"),
        ('{"a": NaN}', "syntax: holds NaN, which is no JSON"),
        ('{"a": [-Infinity]}', "syntax: holds -Infinity, which is no JSON"),
        (f'{{"a": {"9" * 5000}}}', "syntax: holds a number of more than 4,300 digits"),
        ("[" * 200_000, "syntax: is nested too deeply"),
        ('{"a":' * 200_000, "syntax: is nested too deeply"),
        ('{"output": 1, "a": {}, "output": 2}', "syntax: key 'output' occurs twice"),
        ('{"a" : [{"b": 1, "b"\t: 1}]}', "syntax: key 'b' occurs twice"),
        (f'{{"{"k" * 99}": 1, "{"k" * 99}": 1}}', f"syntax: key '{'k' * 80}' occurs twice"),
        ('{"a": "x', "syntax: broken JSON at column 7: a text that is never closed"),
        ('{"a": "x\ty"}', "syntax: broken JSON at column 9: a control character in a text, where JSON wants an escape"),
        ("[1]", "shape: is a list, expected an object with named fields"),
        ('"text"', "shape: is a text, expected an object with named fields"),
        ("true", "shape: is true, expected an object with named fields"),
        ("null", "shape: is null, expected an object with named fields"),
        ("1.5", "shape: is a number, expected an object with named fields"),
        (
            b'{"a": "gr\xfc\xdfe"}',
            "encoding: is not UTF-8 text: byte 0xfc at position 10 of the line (invalid start byte)",
        ),
        (b"\x00\xff", "encoding: is not UTF-8 text: byte 0xff at position 2 of the line (invalid start byte)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_line_is_told_and_the_next_one_read(tmp_path: Path, line: str | bytes, told_of_it: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    path = put(tmp_path / "a.jsonl", b'{"a": 1}\n' + raw + b'\n{"a": 3}\n')
    first, bad, last = told(path)
    assert (first, last) == ('a.jsonl:1 {"a": 1}', 'a.jsonl:3 {"a": 3}')
    assert bad.startswith(f"a.jsonl:2 {told_of_it}")


@pytest.mark.parametrize("cut", ['{"a": 1', '{"a": "x', "{", '{"a": "\\ud83d\\ude', b'{"a": "gr\xc3'])
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, cut: str | bytes) -> None:
    raw = cut.encode() if isinstance(cut, str) else cut
    first, last = told(put(tmp_path / "a.jsonl", b'{"a": 1}\n' + raw))
    assert first == 'a.jsonl:1 {"a": 1}'
    assert last.startswith("a.jsonl:2 syntax: ")
    assert last.endswith(END)
    assert END not in told(put(tmp_path / "a.jsonl", raw + b"\n"))[0]


def test_a_last_line_without_an_end_may_be_whole(tmp_path: Path) -> None:
    assert told(put(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}')) == ['a.jsonl:1 {"a": 1}', 'a.jsonl:2 {"a": 2}']
    latin = told(put(tmp_path / "a.jsonl", b'{"a": "gr\xfc'))[0]
    assert "not UTF-8 text: byte 0xfc" in latin
    assert END not in latin


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab:"\\ {}', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a:"\\ ', max_size=3), inner, max_size=3),
    max_leaves=8,
)


def written_keys(text: str) -> Iterator[list[str]]:
    """The keys of every object in a JSON text, as often as they are written."""
    found: list[list[str]] = []
    json.loads(text, object_pairs_hook=lambda pairs: found.append([key for key, _ in pairs]))
    yield from found


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a:", 'a":', "\\"]), JSON), max_size=4), st.booleans())
@example([("a", '":'), ("a", 1)], False)  # as many ends of keys in texts as keys are lost
@example([("a", {"b": 1}), ("a", {"b": 1})], True)
def test_equal_keys_are_found_exactly_where_there_are_some(pairs: list[tuple[str, object]], tight: bool) -> None:
    colon = ":" if tight else " \t: "
    text = "{" + ",".join(json.dumps(key) + colon + json.dumps(value) for key, value in pairs) + "}"
    twice = any(len(set(keys)) < len(keys) for keys in written_keys(text))
    try:
        value, end = jsontext.parse(text)
    except jsontext.Refused as refused:
        assert twice
        assert "occurs twice" in refused.problem
    else:
        assert not twice
        assert (value, end) == (json.loads(text), len(text))


def test_a_json_list_gives_the_line_of_each_row(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", '\n[{"a": 1}, {"a":\n 2},\n\n{"a": 3}\n, 4, [5]]\n\n')
    assert told(path) == [
        'a.json:2 {"a": 1}',
        'a.json:2 (row 2) {"a": 2}',
        'a.json:5 {"a": 3}',
        "a.json:6 shape: is a number, expected an object with named fields",
        "a.json:6 (row 5) shape: is a list, expected an object with named fields",
    ]
    assert told(put(tmp_path / "a.json", " [ \n ] ")) == []


@pytest.mark.parametrize(
    ("row", "told_of_it"),
    [
        ('{"a": NaN}', "syntax: holds NaN, which is no JSON"),
        (f'{{"a": {"9" * 5000}}}', "syntax: holds a number of more than 4,300 digits"),
        ('{"a": 1, "a": 1}', "syntax: key 'a' occurs twice"),
        (b'{"a": "\xfc"}', "encoding: is not UTF-8 text: it holds byte 0xfc"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_row_of_a_json_list_is_told_and_the_next_one_read(
    tmp_path: Path, row: str | bytes, told_of_it: str
) -> None:
    raw = row.encode() if isinstance(row, str) else row
    path = put(tmp_path / "a.json", '[{"ä": 1},\n'.encode() + raw + b',\n{"a": 3}]')
    assert told(path) == ['a.json:1 {"\\u00e4": 1}', f"a.json:2 {told_of_it}", 'a.json:3 {"a": 3}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": }]', "a.json:2:8: broken JSON: Expecting value"),
        ('[{"a": 1}\n {"a": 2}]', "a.json:2:2: broken JSON: expected ',' or ']' behind a row"),
        ('[{"a": 1},]', "a.json:1:11: broken JSON: Expecting value"),
        ('[{"a": 1}] x', "a.json:1:12: broken JSON: something stands behind the list"),
        ('[{"a": 1},\n{"a": "x', f"a.json:2:7: broken JSON: a text that is never closed{END}"),
        ('[{"a": 1},\n', f"a.json:2:1: broken JSON: Expecting value{END}"),
        ('[{"a": 1}', f"a.json:1:10: broken JSON: expected ',' or ']' behind a row{END}"),
        ("[" * 200_000, "a.json:1: is nested too deeply"),
        ("", "a.json: is empty, expected a list of objects"),
        (" \n", "a.json: is empty, expected a list of objects"),
        ('{"a": 1}', "a.json: holds an object, expected a list of objects"),
        ('{"version": 1, "data": [{"a": 1}]}', "a.json: holds an object, expected a list of objects; its key 'data'"),
        ('{"data": [' + "0," * MIB + "0]}", "a.json: holds an object, expected a list of objects; its key 'data'"),
        ('{"a": 1}\n{"a": 2}', "a.json: holds one object behind the other, expected a list of objects; give its name"),
        ('{"a": }', "a.json:1:7: broken JSON: Expecting value"),
        ('{"a": NaN}', "a.json:1: holds NaN, which is no JSON"),
        ('"text"', "a.json: holds a text, expected a list of objects"),
        ("x", "a.json:1:1: broken JSON: Expecting value"),
    ],
    ids=lambda value: value[:30],
)
def test_a_broken_json_list_is_placed(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(put(tmp_path / "a.json", text)).startswith(message)


def test_rows_before_the_break_of_a_json_list_are_given_out(tmp_path: Path) -> None:
    rows = read_file(put(tmp_path / "a.json", '[{"a": 1}, {"b"}]'))
    assert next(rows) == LocatedRow({"a": 1}, f"{tmp_path / 'a.json'}:1")
    with pytest.raises(DataError, match=r"a\.json:1:16: broken JSON: Expecting ':' delimiter"):
        next(rows)


@settings(deadline=None)
@given(st.lists(JSON, max_size=8), st.integers(1, 9), st.sampled_from([None, 1]))
def test_a_json_list_reads_the_same_however_the_window_falls(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], chunk: int, indent: int | None
) -> None:
    values = [*values, {"text": "ü🍕\n"}, -12.5, "\ud83d"]
    text = json.dumps(values, indent=indent, ensure_ascii=False).replace("\ud83d", "\\ud83d")
    path = put(tmp_path_factory.mktemp("window") / "a.json", text)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as stream:
        patch.setattr(jsonarray, "CHUNK", chunk)
        found = list(jsonarray.read_array(stream, "a"))
        assert [value for value, _ in found] == values
        lines = [int(where.removeprefix("a:").split(" ")[0]) for _, where in found]
    assert lines == sorted(lines)
    assert lines[-1] == text.count("\n") + (0 if indent else 1)


def test_csv_cells_may_hold_lines(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", 'a,b\r\n\r\n"one\r\ntwo",x\r\ny,"z ""z"""\r\n')
    assert told(path) == [
        'rows.csv:3 {"a": "one\\r\\ntwo", "b": "x"}',
        'rows.csv:5 {"a": "y", "b": "z \\"z\\""}',
    ]


@pytest.mark.parametrize(
    ("row", "told_of_it"),
    [
        ("1,2,3", "shape: has 3 cells where the header has 2"),
        ("1", "shape: has 1 cells where the header has 2"),
        ('"1"x,2', "syntax: broken CSV: something stands behind a closing quote"),
        ('"1\n2"x,2', "syntax: broken CSV: something stands behind a closing quote (its quotes span the lines to 4)"),
        ("1,2\0", "syntax: holds a NUL byte"),
        ("1,x\ry", "syntax: broken CSV: a carriage return stands in a cell without quotes"),
        (b'"1\n2\xff\n",2', "encoding: is not UTF-8 text: byte 0xff at position 2 of the line (invalid start byte)"),
    ],
)
def test_a_bad_csv_row_is_told_and_the_next_one_read(tmp_path: Path, row: str | bytes, told_of_it: str) -> None:
    raw = row.encode() if isinstance(row, str) else row
    first, bad, last = told(put(tmp_path / "a.csv", b"a,b\n1,2\n" + raw + b"\n5,6\n"))
    assert first == 'a.csv:2 {"a": "1", "b": "2"}'
    assert bad.startswith(f"a.csv:3 {told_of_it}")
    number = 4 + raw.count(b"\n")
    assert last == f'a.csv:{number} {{"a": "5", "b": "6"}}'


def test_a_quote_that_is_never_closed_is_placed_where_it_opens(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'a,b\n1,2\n3,"4\n5,6\n')
    assert told(path)[1:] == ["a.csv:3 syntax: broken CSV: a quote is never closed (its quotes span the lines to 4)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", "a.csv:1: two columns are called 'a'"),
        ('a,"b"x\n', "a.csv:1: the header: broken CSV"),
        (b"gr\xf6\xdfe,b\n", "a.csv:1: the header: is not UTF-8 text: byte 0xf6 at position 3"),
    ],
)
def test_a_broken_csv_header_is_placed(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert refusal(put(tmp_path / "a.csv", content)).startswith(message)


@given(st.lists(st.lists(st.text('a," \n\r\tü', max_size=8), min_size=2, max_size=2), max_size=6))
def test_whatever_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path_factory.mktemp("csv") / f"a{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=mark).writerows([["x", "y"], *rows])
        found = list(read_file(path))
        assert [list(row.row.values()) for row in found if isinstance(row, LocatedRow)] == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_row_above_the_bound_is_named_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for module in (streams, jsonarray):
        monkeypatch.setattr(module, "MAX_ROW", 4 * MIB)
    monkeypatch.setattr("finetune.data.readers.MAX_ROW", 4 * MIB)
    rows = [{"a": "x"}, {"a": "y" * 40 * MIB}, {"a": "z"}]
    path = write(tmp_path / f"a{suffix}", rows)
    with peak_growth() as growth:
        if suffix == ".json":
            assert refusal(path) == "a.json:3: a row is larger than 4 MiB"
        else:
            _, bad, last = told(path)
            assert "syntax: is a row of 40.0 MiB; the largest that is read has 4 MiB" in bad
            assert '{"a": "z"}' in last
    assert growth.mib < 25


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_long_rows_below_the_bound_are_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": "x" * 5 * MIB + "ü"}, {"a": "z"}]
    found = list(read_file(write(tmp_path / f"a{suffix}", rows)))
    assert [row.row for row in found if isinstance(row, LocatedRow)] == rows


def test_a_csv_row_of_many_lines_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.readers.MAX_ROW", 1000)
    path = put(tmp_path / "a.csv", "a\n" + '"' + "x\n" * 600 + "y\n" * 3)
    assert told(path)[0].startswith("a.csv:2 syntax: is a row of 0.0 MiB")
    assert told(path)[-1] == 'a.csv:604 {"a": "y"}'


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".parquet", ".arrow"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", [{"n": str(n), "a": f"{n:08} {n * n:09} " * 180} for n in range(30_000)])
    for _ in range(2):  # what is imported and allocated once does not count
        with peak_growth() as growth:
            size = sum(len(found.row["a"]) for found in read_file(path) if isinstance(found, LocatedRow))
    assert size / MIB > 95
    assert growth.mib < 60  # the buffers of the slowest reader, and what allocators keep, not the rows


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_that_is_cut_off_or_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": f"{n * 7919 % 1000} {n}", "b": "x"} for n in range(20_000)]
    path = write(tmp_path / f"rows{suffix}", rows)
    packing = kind_of(path)[1]
    whole = path.read_bytes()
    broken = [whole[: len(whole) // 2], whole[:-3], b"plain text", whole + b"plain text", whole[:2]]
    for content in broken:
        message = refusal(put(path, content))
        assert message.startswith(f"rows{suffix}: the {packing} stream is cut off or damaged")


def test_rows_before_the_cut_of_a_packed_file_are_given_out(tmp_path: Path) -> None:
    rows = [{"a": f"{n * n} {n * 7919 % 1000}"} for n in range(100_000)]
    for packing in (".gz", ".zst"):
        path = write(tmp_path / f"rows.jsonl{packing}", rows)
        found = []
        with pytest.raises(DataError, match=r"damaged behind .*rows\.jsonl\.(gz|zst):\d+ "):
            for row in read_file(put(path, path.read_bytes()[:-1000])):
                found.append(row.row if isinstance(row, LocatedRow) else row)
        assert 50_000 < len(found) < len(rows)
        assert found == rows[: len(found)]


def test_files_packed_in_several_pieces_are_read_whole(tmp_path: Path) -> None:
    for packing in (".gz", ".zst"):
        path = put(tmp_path / f"a.jsonl{packing}", pack(b'{"a": 1}\n', packing) + pack(b'{"a": 2}\n', packing))
        assert [line.split(" ", 1)[1] for line in told(path)] == ['{"a": 1}', '{"a": 2}']


@pytest.mark.parametrize("suffix", [*TEXTS, ".jsonl.gz", ".jsonl.zst"])
def test_an_empty_text_has_no_rows(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a{suffix}", pack(b"", kind_of(tmp_path / f"a{suffix}")[1]))
    if suffix == ".json":
        assert "is empty" in refusal(path)
    else:
        assert told(path) == []


@pytest.mark.parametrize("suffix", TABLES)
def test_tables_that_are_broken_are_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [{"a": f"{n}"} for n in range(5000)])
    whole = path.read_bytes()
    for content in (b"", b"no table at all", whole[: len(whole) // 2], whole[:20]):
        assert refusal(put(path, content)).startswith(f"a{suffix}: broken {suffix} file")


def test_rows_before_the_cut_of_an_arrow_stream_are_given_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", [{"a": f"{n}"} for n in range(5000)])
    rows = read_file(put(path, path.read_bytes()[: path.stat().st_size // 2]))
    found = []
    with pytest.raises(DataError, match=r"broken \.arrow file behind row 2000: "):
        for row in rows:
            found.append(row)
    assert [row.where for row in found] == [f"{path}:row {n + 1}" for n in range(2000)]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    path = write_arrow(tmp_path / "a.arrow", table, pyarrow.ipc.new_stream)
    assert refusal(path) == "a.arrow: two columns are called 'a'"


def test_bad_cells_of_a_table_are_told_and_the_next_row_read(tmp_path: Path) -> None:
    texts = pyarrow.array([b"x", b"gr\xfcn", b"z"]).view(pyarrow.string())
    path = write_arrow(tmp_path / "a.arrow", pyarrow.table({"a": texts}), pyarrow.ipc.new_file)
    first, bad, last = read_file(path)
    assert (first, last) == (LocatedRow({"a": "x"}, f"{path}:row 1"), LocatedRow({"a": "z"}, f"{path}:row 3"))
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.code) == (f"{path}:row 2", "encoding")
    assert "Invalid UTF8" in bad.problem
    late = pyarrow.array([0, 2**62], pyarrow.timestamp("s"))
    first, bad = read_file(write_arrow(path, pyarrow.table({"a": late}), pyarrow.ipc.new_file))
    assert isinstance(bad, BadRow)
    assert bad.code == "syntax"


def test_offsets_that_lead_nowhere_are_not_followed(tmp_path: Path) -> None:
    count = 3 * BATCH
    table = pyarrow.table({"a": ["abc"] * count})
    path = write_arrow(tmp_path / "a.arrow", table, pyarrow.ipc.new_file)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<3i", 0, 3, 6)) + 4
    content[at : at + 4] = struct.pack("<i", 2**30)
    found = list(read_file(put(path, bytes(content))))
    assert [type(row) for row in found] == [BadRow, BadRow, *[LocatedRow] * (count - 2)]


def test_conversations_in_tables_come_as_plain_lists(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for suffix in TABLES:
        path = write(tmp_path / f"rows{suffix}", [row])
        assert list(read_file(path)) == [LocatedRow(row, f"{path}:row 1")]


def test_a_missing_or_unknown_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").startswith("none.jsonl: no such data file; looked for /")
    assert "cannot be read (File name too long)" in refusal(tmp_path / f"{'x' * 999}.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "no such data file" in refusal(tmp_path / "folder.jsonl")
    kinds = "use one of .jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst behind it), .parquet, .arrow"
    assert refusal(put(tmp_path / "a.txt", "")) == f"a.txt: unknown kind of data file '.txt'; {kinds}"
    assert refusal(put(tmp_path / "a.parquet.gz", "")).startswith(
        "a.parquet.gz: unknown kind of data file '.parquet.gz'"
    )
    assert refusal(put(tmp_path / "rows", "")).startswith("rows: unknown kind of data file ''")
