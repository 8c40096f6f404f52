"""One file -> its rows, each with the place where it stands.

A row that cannot be read is given out too, as a BadRow, and reading goes on behind it; what concerns the file as a
whole is a DataError. No reader holds more than one bounded row, chunk or record batch.

To add a kind of file: write a reader and add it to TEXTS (its bytes may be packed) or to TABLES.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

from finetune.data.jsonarray import read_array
from finetune.data.jsontext import BLANKS, SHOWN_KEY, Refused, explain, noun, parse
from finetune.data.streams import CHUNK, MAX_ROW, PACKINGS, UNPACKING_ERRORS, not_utf8, open_text, read_line, too_large
from finetune.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BATCH = 1024  # rows of a table that are turned into Python objects at once
ARROW_FILE = b"ARROW1"  # begins an IPC file; an IPC stream begins otherwise
SHOWN_ERROR = 200  # characters of what pyarrow says
# What the csv module says -> plain words.
CSV_ERRORS = {
    "unexpected end of data": "a quote is never closed",
    "expected after": "something stands behind a closing quote",
    "new-line character": "a carriage return stands in a cell without quotes",
}


class LocatedRow(NamedTuple):
    row: Mapping[str, object]
    where: str  # path:LINE, or path:row N where the format has no lines


class BadRow(NamedTuple):
    where: str
    problem: str
    code: str  # encoding, syntax or shape


Found: TypeAlias = LocatedRow | BadRow


def read_file(path: Path, name: str | None = None) -> Iterator[Found]:
    """Yield the rows of a file, good and bad; `name` stands for it in messages.

    Raises DataError if the file is missing, of an unknown kind, or broken as a whole.
    """
    name = name or str(path)
    suffix, packing = kind_of(path)
    if not suffix:
        raise unknown_kind(path, name)
    last = ""
    try:
        if not path.is_file():
            raise DataError("no such data file", where=name, fix=f"looked for {path.resolve()}")
        for found in _rows(path, suffix, packing, name):
            last = f" behind {found.where}"
            yield found
    except (OSError, *UNPACKING_ERRORS) as error:
        what = f"cannot be read{last} ({getattr(error, 'strerror', None) or error})"
        if packing and getattr(error, "errno", None) is None:  # not from the operating system
            what = f"the {packing} stream is cut off or damaged{last} ({error})"
        raise DataError(what, where=name) from None


def kind_of(path: Path) -> tuple[str, str]:
    """Return the ending that says what a file holds ("" for no data) and the one of its packing ("" for none)."""
    endings = [f".{ending}" for ending in path.name.lower().split(".")[1:]]
    if endings and (endings[-1] in TEXTS or endings[-1] in TABLES):
        return endings[-1], ""
    if len(endings) > 1 and endings[-1] in PACKINGS and endings[-2] in TEXTS:
        return endings[-2], endings[-1]
    return "", ""


def unknown_kind(path: Path, name: str) -> DataError:
    """Say which kinds there are."""
    ending = "".join(path.suffixes[-2:]) if path.suffix.lower() in PACKINGS else path.suffix
    fix = f"use one of {', '.join(TEXTS)} (each also with {' or '.join(PACKINGS)} behind it), {', '.join(TABLES)}"
    return DataError(f"unknown kind of data file {ending!r}", where=name, fix=fix)


def _rows(path: Path, suffix: str, packing: str, name: str) -> Iterator[Found]:
    if suffix in TABLES:
        yield from _read_table(path, suffix, name)
        return
    with open_text(path, packing, name) as stream:
        yield from TEXTS[suffix](stream, name)


def _read_jsonl(stream: BinaryIO, name: str) -> Iterator[Found]:
    number = 0
    while line := read_line(stream):
        number += 1
        if isinstance(line, int):
            yield BadRow(f"{name}:{number}", too_large(line), "syntax")
        elif not line.isspace():
            yield _json_row(line, f"{name}:{number}")


def _json_row(line: bytes, where: str) -> Found:
    cut = "" if line.endswith(b"\n") else "; the file seems to end in the middle of a row"
    try:
        text = line.decode().rstrip(BLANKS)
        row, end = parse(text, 0 if text[0] == "{" else len(text) - len(text.lstrip(BLANKS)))
        if end < len(text):
            raise JSONDecodeError("something stands behind the object", text, end)
    except UnicodeDecodeError as error:
        if cut and error.end == len(line) and error.reason == "unexpected end of data":
            return BadRow(where, f"ends inside of a character{cut}", "syntax")
        return BadRow(where, not_utf8(error), "encoding")
    except JSONDecodeError as error:
        return BadRow(where, f"broken JSON at column {error.colno}: {explain(error)}{cut}", "syntax")
    except Refused as error:
        return BadRow(where, error.problem, error.code)
    return _located(row, where)


def _read_json(stream: BinaryIO, name: str) -> Iterator[Found]:
    for value, where in read_array(stream, name):
        yield BadRow(where, value.problem, value.code) if isinstance(value, Refused) else _located(value, where)


def _located(row: object, where: str) -> Found:
    if isinstance(row, dict):
        return LocatedRow(row, where)
    return BadRow(where, f"is {noun(row)}, expected an object with named fields", "shape")


class _CsvLines:
    """Hands lines to the csv module and keeps what it does not: where a row begins, and why its text is bad."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.number = 0
        self.begin_row()

    def begin_row(self) -> None:
        self.first, self._size = self.number + 1, 0
        self.bad: Refused | None = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = read_line(self._stream)
        if not line:
            raise StopIteration
        self.number += 1
        self._size += line if isinstance(line, int) else len(line)
        if isinstance(line, int) or self._size > MAX_ROW:
            raise Refused(too_large(self._size))
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self.bad = Refused(not_utf8(error), "encoding")
            text = line.decode(errors="replace")  # so that the quotes still pair up
        if "\0" in text:
            self.bad = Refused("holds a NUL byte")
        return text


def _read_csv(stream: BinaryIO, name: str, delimiter: str = ",") -> Iterator[Found]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    lines = _CsvLines(stream)
    headers: list[str] = []
    for cells in _csv_rows(lines, delimiter):
        where = f"{name}:{lines.first}"
        if not headers:
            headers = _headers(cells, where)
        elif isinstance(cells, Refused):
            yield BadRow(where, cells.problem, cells.code)
        elif len(cells) != len(headers):
            yield BadRow(where, f"has {len(cells)} cells where the header has {len(headers)}", "shape")
        else:
            yield LocatedRow(dict(zip(headers, cells, strict=True)), where)


def _csv_rows(lines: _CsvLines, delimiter: str) -> Iterator[list[str] | Refused]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            upto = f" (its quotes span the lines to {lines.number})" if lines.number > lines.first else ""
            plain = next((plain for part, plain in CSV_ERRORS.items() if part in str(error)), str(error))
            yield Refused(f"broken CSV: {plain}{upto}")
        except Refused as error:
            yield error
        else:
            if cells or lines.bad:  # a blank line has no cells
                yield lines.bad or cells


def _headers(cells: list[str] | Refused, where: str) -> list[str]:
    if isinstance(cells, Refused):
        raise DataError(f"the header: {cells.problem}", where=where)
    _check_names(cells, where)
    return cells


def _check_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise DataError("has no columns", where=where)
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"two columns are called {name[:SHOWN_KEY]!r}", where=where)


def _read_table(path: Path, suffix: str, name: str) -> Iterator[Found]:
    import pyarrow  # here: slow to import

    number = 0
    try:
        with path.open("rb") as file:
            for batch in TABLES[suffix](file):
                _check_names(batch.schema.names, name)
                for row in _batch_rows(batch):
                    number += 1
                    where = f"{name}:row {number}"
                    yield BadRow(where, row.problem, row.code) if isinstance(row, Refused) else _located(row, where)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        behind = f" behind row {number}" if number else ""
        raise DataError(f"broken {suffix} file{behind}: {_short(error)}", where=name) from None


def _parquet_batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    # With a buffer, pages are read as they are needed; without, the whole of a row group's column.
    yield from parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False).iter_batches(batch_size=BATCH)


def _arrow_batches(file: BinaryIO) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    magic = file.read(len(ARROW_FILE))
    file.seek(0)
    if magic == ARROW_FILE:
        reader = pyarrow.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(file)


def _batch_rows(batch: pyarrow.RecordBatch) -> Iterator[object]:
    for start in range(0, batch.num_rows, BATCH):
        part = batch.slice(start, BATCH)
        try:
            yield from _python_rows(part)
        except (ValueError, OverflowError):
            yield from (_one_row(part.slice(index, 1)) for index in range(part.num_rows))


def _one_row(row: pyarrow.RecordBatch) -> object:
    try:
        return _python_rows(row)[0]
    except (ValueError, OverflowError) as error:  # pyarrow's ArrowInvalid is a ValueError
        bad_text = isinstance(error, UnicodeError) or "UTF8" in str(error)
        return Refused(f"cannot be read: {_short(error)}", "encoding" if bad_text else "syntax")


def _python_rows(batch: pyarrow.RecordBatch) -> list[object]:
    batch.validate(full=True)  # before Python follows its offsets, which may lead out of memory
    return batch.to_pylist()  # type: ignore[no-any-return]


def _short(error: BaseException) -> str:
    if isinstance(error, MemoryError):  # a length that was damaged
        return "it asks for more memory than there is"
    return " ".join(str(error).split())[:SHOWN_ERROR]


TEXTS: dict[str, Callable[[BinaryIO, str], Iterator[Found]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
}
TABLES: dict[str, Callable[[BinaryIO], Iterator[pyarrow.RecordBatch]]] = {
    ".parquet": _parquet_batches,
    ".arrow": _arrow_batches,
}
