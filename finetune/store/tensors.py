"""Safetensors files from anywhere: looked through before a byte of the tensors is read, and never trusted.

Layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the length of the header,
little-endian; the header, JSON: name -> dtype, shape, data_offsets; the tensors, without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from finetune.errors import AdapterError
from finetune.store.places import opened

MAX_HEADER = 4 << 20  # bytes; 560 modules of a 70 B model need 0.2 MiB
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = {b"PK\x03\x04": "a zip of pickles", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the header; `begin` and `end` count bytes from behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass
class TensorFile:
    """An open safetensors file whose header fits its length."""

    where: str
    entries: Mapping[str, Entry]
    size: int  # bytes of the tensors
    _head: bytes
    _file: FileIO
    sha256: str = field(default="", init=False)  # of the whole file, once it was loaded

    def load(self) -> dict[str, Tensor]:
        """Read all tensors, which share one buffer of the file's size. Raises AdapterError."""
        data = bytearray(self.size)
        _fill(self._file, data, self.where)
        digest = hashlib.sha256(self._head)
        digest.update(data)
        self.sha256 = digest.hexdigest()
        return {name: _tensor(data, entry) for name, entry in self.entries.items()}


@contextmanager
def tensor_file(folder: Path, name: str) -> Iterator[TensorFile]:
    """Open a safetensors file of an adapter folder and check its header. Raises AdapterError with the cause."""
    where = str(folder / name)
    with opened(folder, name) as file:
        total = file.seek(0, 2)
        file.seek(0)
        first = bytearray(min(8, total))
        _fill(file, first, where)
        length = int.from_bytes(first, "little")
        for magic, kind in _PICKLES.items():
            if first.startswith(magic):
                _refuse(where, f"is {kind}, not safetensors; it could run code, so it is not opened")
        if total < 8 or length > total - 8:
            _refuse(where, f"is cut off or no safetensors file: {total} bytes, the header alone says {length}")
        if length > MAX_HEADER:
            _refuse(where, f"has a header of {length:,} bytes, more than the {MAX_HEADER:,} that are read")
        head = bytearray(length)
        _fill(file, head, where)
        entries = _entries(bytes(head), where)
        size = max((entry.end for entry in entries.values()), default=0)
        if size != total - 8 - length:
            _refuse(where, f"holds {total - 8 - length:,} bytes of tensors, its header describes {size:,}")
        yield TensorFile(where, entries, size, bytes(first + head), file)


def _entries(head: bytes, where: str) -> dict[str, Entry]:
    try:
        found = json.loads(head, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"has a header that is no JSON ({' '.join(str(error).split())[:80]})")
    if not isinstance(found, dict):
        _refuse(where, "has a header that is no JSON object")
    found.pop("__metadata__", None)
    entries = {name: _entry(name, value, where) for name, value in found.items()}
    ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    if ordered and ordered[0][1].begin != 0:
        _refuse(where, f"{ordered[0][0][:120]!r} begins at byte {ordered[0][1].begin}, the first tensor begins at 0")
    for (left, before), (right, after) in pairwise(ordered):
        if before.end != after.begin:
            _refuse(where, f"{left[:120]!r} ends at byte {before.end}, {right[:120]!r} begins at {after.begin}")
    return entries


def _entry(name: str, value: Any, where: str) -> Entry:
    what = f"tensor {name[:120]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(where, f"{what} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        _refuse(where, f"{what} is {str(kind)[:20]!r}; an adapter's tensors are F32, F16 or BF16")
    if not _are_counts(shape) or len(shape) > 8:
        _refuse(where, f"{what} has the shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(where, f"{what} has the offsets {str(offsets)[:80]}")
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        _refuse(where, f"{what} of shape {shape} in {kind} does not fill bytes {offsets[0]} to {offsets[1]}")
    return Entry(dtype, tuple(shape), *offsets)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _tensor(data: bytearray, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if entry.begin % entry.dtype.itemsize:  # a header of odd length leaves tensors at odd places
        data = data[entry.begin : entry.end]
        return torch.frombuffer(data, dtype=entry.dtype, count=count).reshape(entry.shape)
    return torch.frombuffer(data, dtype=entry.dtype, count=count, offset=entry.begin).reshape(entry.shape)


def _fill(file: FileIO, data: bytearray, where: str) -> None:
    rest = memoryview(data)
    while rest:
        count = file.readinto(rest)
        if not count:
            _refuse(where, "became shorter while it was read")
        rest = rest[count:]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _refuse(where: str, what: str) -> NoReturn:
    raise AdapterError(what, where=where)
