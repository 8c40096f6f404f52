"""The bytes of a text file: unpacked, without its byte order mark, and never more than one bounded row at a time."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from finetune.errors import DataError

MAX_ROW = 64 * 2**20  # bytes
CHUNK = 2**20  # bytes read at once
PACKINGS = (".gz", ".zst")
UNPACKING_ERRORS = (EOFError, zlib.error)  # a stream cut off, a stream damaged; everything else is an OSError
# UTF-32 goes first: its mark begins with that of UTF-16.
_FOREIGN_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def open_text(path: Path, packing: str, name: str) -> Iterator[BinaryIO]:
    """Open the bytes behind `.gz`, `.zst` or nothing. Raises DataError for text in UTF-16 or UTF-32."""
    with path.open("rb") as file, _unpacked(file, packing) as stream:
        start = stream.peek(4)
        for mark, encoding in _FOREIGN_MARKS.items():
            if start.startswith(mark):
                raise DataError(f"is {encoding} text", where=name, fix="save it as UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield cast(BinaryIO, stream)


def read_line(stream: BinaryIO) -> bytes | int:
    """Return the next line with its end, b"" behind the last, or the size of a line that is larger than MAX_ROW."""
    line = stream.readline(MAX_ROW + 1)
    if len(line) <= MAX_ROW:
        return line
    size = len(line)
    while line and not line.endswith(b"\n"):
        line = stream.readline(CHUNK)
        size += len(line)
    return size


def too_large(size: int) -> str:
    """Say that a row of `size` bytes exceeds the bound."""
    return f"is a row of {size / 2**20:,.1f} MiB; the largest that is read has {MAX_ROW // 2**20} MiB"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say which byte of a line is no UTF-8."""
    byte = error.object[error.start]
    return f"is not UTF-8 text: byte 0x{byte:02x} at position {error.start + 1} of the line ({error.reason})"


def _unpacked(file: BinaryIO, packing: str) -> io.BufferedReader:
    raw: object = file
    if packing == ".gz":
        raw = gzip.GzipFile(fileobj=file)
    elif packing == ".zst":
        import pyarrow  # here: slow to import

        raw = pyarrow.CompressedInputStream(file, "zstd")
    else:
        return cast(io.BufferedReader, file)
    # Both can `readinto`, and that is all that is asked of them.
    return io.BufferedReader(cast(io.RawIOBase, raw), CHUNK)
