"""Files -> rows, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.data.formats import Row
from finetune.errors import DataError


class LocatedRow(NamedTuple):
    row: Row
    where: str  # file:line, or file:row N where the format has no lines


def read_rows(path: str | Path) -> Iterator[LocatedRow]:
    """Yield the rows of a .jsonl, .json, .csv or .parquet file. Raises DataError with file and line."""
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"unknown kind of data file {path.suffix!r}", where=str(path), fix=f"use one of {', '.join(READERS)}"
        )
    try:
        if not path.is_file():
            raise DataError("no such data file", where=str(path), fix=f"looked for {path.resolve()}")
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def _read_jsonl(path: Path) -> Iterator[LocatedRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _located(_parse(line, path, number), f"{path}:{number}")


def _parse(line: str, path: Path, number: int) -> object:
    try:
        return json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        what, fix = f"broken JSON: {error.msg} at column {error.colno}", "each line must be one JSON object"
        raise DataError(what, where=f"{path}:{number}", fix=fix) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise DataError(f"JSON that cannot be read: {error}", where=f"{path}:{number}") from None


def _read_json(path: Path) -> Iterator[LocatedRow]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"JSON that cannot be read: {error}", where=str(path)) from None
    if not isinstance(rows, list):
        raise DataError(f"holds one {type(rows).__name__}, expected a list of objects", where=str(path))
    for number, row in enumerate(rows, 1):
        yield _located(row, f"{path}:row {number}")


def _read_csv(path: Path) -> Iterator[LocatedRow]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            headers = reader.fieldnames or ()
            if twice := sorted({name for name in headers if headers.count(name) > 1}):
                raise DataError(f"two columns are called {twice[0]!r}", where=f"{path}:1")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"the row has another number of cells than the {len(headers)} headers", where=where)
                yield LocatedRow(row, where)
        except csv.Error as error:
            # DictReader's own count lags behind a row that fails.
            raise DataError(f"broken CSV: {error}", where=f"{path}:{reader.reader.line_num}") from None


def _read_parquet(path: Path) -> Iterator[LocatedRow]:
    import pyarrow  # here: with `datasets`, and slow to import
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield _located(row, f"{path}:row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"broken Parquet file: {error}", where=str(path)) from None


def _located(row: object, where: str) -> LocatedRow:
    if not isinstance(row, dict):
        raise DataError(f"the row is {type(row).__name__}, expected an object with named fields", where=where)
    return LocatedRow(row, where)


READERS: dict[str, Callable[[Path], Iterator[LocatedRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
