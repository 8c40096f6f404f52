"""Files that nobody meant to write: whatever the bytes are, rows or a DataError come out, soon and in little memory.

FUZZ_CASES sets how many hostile files the ordinary suite reads. Each is made from its number alone.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data.readers import BadRow, LocatedRow, kind_of, read_file
from finetune.errors import DataError
from tests.data.memory import peak_growth
from tests.data.test_readers import pack, text_of

CASES = int(os.environ.get("FUZZ_CASES", "2500"))
SECONDS, MIB = 1.0, 200.0
LONG = 10 * 2**20  # bytes of the longest line
TEXT_SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".csv.zst", ".tsv.gz"]
TABLE_SUFFIXES = [".parquet", ".arrow"]
WORDS = ["pizza", "Größe", "🍕", 'a "b"', "x, y", "one\ntwo", "\t", "\\", "a:", "{", "]", "", "null", "1e9", "\u2028"]
TOKENS = [
    *(
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\r",
        b"\n",
        b"\r\n",
        b"\x1a",
    ),
    *(b'"', b'\\"', b"\\", b"\\ud83d", b"\\u00", b"{", b"}", b"[", b"]", b",", b":", b'":', b"\t", b" ", b"''"),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-",
        b"0x1",
        b"01",
        b"tru",
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b"," * 3000,
    ),
    *(b'{"a": 1, "a": 2}\n', b"[1, 2]\n", b'"text"\n', b"null\n", b"5\n", b"\n\n", b"{}\n", b'"' * 99, b'"\n"\n"'),
]


def test_a_file_cut_at_any_byte_gives_the_rows_before_the_cut(tmp_path: Path) -> None:
    rows = [{"instruction": f"{WORDS[n % len(WORDS)]} {n}", "n": [n, {"ü": None}]} for n in range(50)]
    whole = text_of(rows, ".jsonl").encode()
    path = tmp_path / "cut.jsonl"
    for length in range(len(whole) + 1):
        part = whole[:length]
        path.write_bytes(part)
        found = list(read_file(path))
        good = [row.row for row in found if isinstance(row, LocatedRow)]
        lines = [line for line in part.split(b"\n") if line.strip()]
        assert len(found) == len(lines)
        assert good == rows[: len(good)]
        assert part.count(b"\n") <= len(good) <= len(lines)
        assert [row.where for row in found] == [f"{path}:{n + 1}" for n in range(len(found))]


def valid(suffix: str, random: Random) -> bytes:
    if suffix in TABLE_SUFFIXES:
        return random.choice(tables(suffix))
    keys = random.sample(["instruction", "output", "messages", "ä", "x"], random.randint(1, 3))
    rows = [{key: " ".join(random.choices(WORDS, k=random.randint(0, 9))) for key in keys} for _ in range(12)]
    return text_of(rows, kind_of(Path(f"a{suffix}"))[0]).encode(
        random.choice(["utf-8"] * 12 + ["latin-1", "utf-16"]), "replace"
    )


@cache
def tables(suffix: str) -> list[bytes]:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"text": f"Größe {n}", "n": n, "x": n / 3 if n % 5 else None, "messages": turns[: n % 3]} for n in range(60)
    ]
    table = pyarrow.Table.from_pylist(rows)
    made = []
    for packing in ("none", "zstd", "lz4"):
        sink = pyarrow.BufferOutputStream()
        if suffix == ".parquet":
            parquet.write_table(table, sink, compression=packing, row_group_size=25, use_dictionary=packing != "zstd")
        else:
            kind = pyarrow.ipc.new_file if packing == "lz4" else pyarrow.ipc.new_stream
            options = pyarrow.ipc.IpcWriteOptions(compression=None if packing == "none" else packing)
            with kind(sink, table.schema, options=options) as writer:
                writer.write_table(table, max_chunksize=25)
        made.append(bytes(sink.getvalue()))
    return made


def mutated(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 3, 20])):
        # Headers and footers are where damage goes far.
        at = random.choice([random.randrange(len(data) + 1), random.randrange(min(len(data), 64) + 1), -1])
        at = max(0, len(data) - random.randrange(1500)) if at == -1 else at
        change = random.randrange(7)
        if change == 0:
            del data[at:]
        elif change == 1:
            del data[at : at + random.randrange(40)]
        elif change == 2:
            data[at:at] = random.choice(TOKENS)
        elif change == 3:
            data[at:at] = data[at : at + random.randrange(400)]
        elif change == 4:
            data[at : at + 1] = random.randbytes(random.randrange(9))
        elif at < len(data):
            data[at] ^= 1 << random.randrange(8)
    return bytes(data)


def long_line(random: Random) -> bytes:
    piece = random.choice([b"x", b'"', b"[", b",", b" ", "🍕".encode(), b'\\"', b"\0", b"\xff", b'":', b"1", b"a\r"])
    start, end = random.choice(
        [(b"", b""), (b'{"a": "', b'"}'), (b'[{"a": "', b'"}]'), (b'a,b\n1,"', b'"\n'), (b"a\n", b"")]
    )
    return start + piece * (LONG // len(piece)) + end + random.choice([b"", b'\n{"a": 1}\n'])


def noise(random: Random) -> bytes:
    return random.choice([random.randbytes(random.randrange(2000)), b"".join(random.choices(TOKENS, k=30)), b""])


def hostile(number: int) -> tuple[str, bytes]:
    """Make the file of a number: its suffix and bytes."""
    random = Random(number)
    suffix = random.choice(TEXT_SUFFIXES * 2 + TABLE_SUFFIXES * 3)
    packing = kind_of(Path(f"a{suffix}"))[1]
    if number % 250 == 249:
        return suffix, pack(long_line(random), packing)
    make: Callable[[Random], bytes] = random.choice(
        [noise, *[lambda random: mutated(valid(suffix, random), random)] * 9]
    )
    content = make(random)
    if packing and random.random() < 0.5:  # else the packed bytes are broken, or there are none
        return suffix, pack(content, packing)
    return suffix, mutated(pack(valid(suffix, random), packing), random) if packing else content


def read_hostile(path: Path) -> Iterator[str]:
    """Read a file; yield one word for each thing that came out, after looking at it."""
    try:
        for found in read_file(path):
            assert found.where.startswith(f"{path}:")
            if isinstance(found, BadRow):
                assert found.code in ("encoding", "syntax", "shape")
                assert found.problem
                assert len(found.problem) < 400
                assert "\n" not in found.problem
            else:
                assert isinstance(found.row, dict)
            yield type(found).__name__
    except DataError as error:
        assert error.where
        assert error.where.startswith(str(path))
        assert len(str(error)) < 1000
        yield "DataError"


def measured(path: Path, outcomes: Counter[str]) -> list[str]:
    """Read a file and name the limits it broke."""
    start = time.perf_counter()
    with peak_growth() as growth:
        outcomes.update(read_hostile(path))
    seconds = time.perf_counter() - start
    slow = [f"took {seconds:.1f} s"] if seconds > SECONDS else []
    return slow + ([f"took {growth.mib:.0f} MiB"] if growth.mib > MIB else [])


def read_all(folder: Path, numbers: range) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for suffix in TEXT_SUFFIXES + TABLE_SUFFIXES:  # what is imported and allocated once
        path = folder / f"warm{suffix}"
        path.write_bytes(pack(valid(suffix, Random(0)), kind_of(path)[1]))
        list(read_hostile(path))
    for number in numbers:
        suffix, content = hostile(number)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        del content
        try:
            broken = measured(path, outcomes) and measured(path, outcomes)  # a busy machine may be slow once
        except Exception as error:
            raise AssertionError(f"case {number} ({suffix})") from error
        assert not broken, f"case {number} ({suffix}) {' and '.join(broken)}"
    return outcomes


def test_hostile_files_give_rows_or_a_data_error(tmp_path: Path) -> None:
    outcomes = read_all(tmp_path, range(CASES))
    # The files are broken enough to be refused, and whole enough to be read.
    assert min(outcomes[name] for name in ("LocatedRow", "BadRow", "DataError")) > CASES / 10


@pytest.mark.slow
def test_many_hostile_files_give_rows_or_a_data_error(tmp_path: Path) -> None:
    read_all(tmp_path, range(10**6, 10**6 + 50_000))


def test_the_cases_hold_what_they_should() -> None:
    """Every kind of file is there, long lines among them, and a number always makes the same file."""
    kinds = Counter(hostile(number)[0] for number in range(400))
    assert set(kinds) == {*TEXT_SUFFIXES, *TABLE_SUFFIXES}
    assert hostile(7) == hostile(7) != hostile(8)
    assert any(len(hostile(number)[1]) > LONG for number in range(249, 2500, 250))
