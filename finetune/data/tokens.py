"""Tokenised rows on the disk: memory-mapped, and made anew whenever something changes that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.encoding import Encoded
from finetune.data.examples import Source
from finetune.data.formats import custom_file
from finetune.data.sources import content_hashes, find_files
from finetune.data.template import ChatTemplate
from finetune.errors import DataError
from finetune.files import cache_folder, replace_folder, sha256_file
from finetune.provenance import code_sha256

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_BATCH = 1024
MAX_CACHE_BYTES = 20 << 30  # least recently used entries go beyond this
TOKENS = "tokens.arrow"
NUMBERS = ("length", "trained", "bytes")  # tokens, tokens with a label, bytes of the trained text


class Tokens(Sequence[Encoded]):
    """Tokenised rows of one source. Rows are read from the disk when they are asked for."""

    def __init__(self, folder: Path) -> None:
        import pyarrow  # here: slow to import, and not everything that imports this module reads tokens

        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / TOKENS))).read_all()
        self.batches = [_Batch(batch) for batch in table.to_batches()]
        self.starts = np.cumsum([0, *(len(batch.where) for batch in self.batches)])
        self.lengths, self.trained, self.bytes = map(self._column, NUMBERS)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        batch, row = self.batches[number], index - int(self.starts[number])
        start, end = batch.offsets[row : row + 2]
        ids, mask = batch.ids[start:end].tolist(), batch.mask[start:end].tolist()
        return Encoded(ids, mask, batch.where[row].as_py(), int(self.bytes[index]))

    def _column(self, name: str) -> Any:
        parts = [batch.numbers[name] for batch in self.batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)


class _Batch:
    """Views of one batch of rows; nothing is copied."""

    def __init__(self, batch: pyarrow.RecordBatch) -> None:
        ids, mask = batch.column("ids"), batch.column("mask")
        self.offsets = ids.offsets.to_numpy()
        self.ids, self.mask = ids.values.to_numpy(), mask.values.to_numpy()
        self.where = batch.column("where")
        self.numbers = {name: batch.column(name).to_numpy() for name in NUMBERS}


class TokenWriter:
    """Writes tokenised rows one after the other."""

    def __init__(self, folder: Path) -> None:
        import pyarrow

        numbers = dict.fromkeys(NUMBERS, pyarrow.int32())
        lists = {"ids": pyarrow.list_(pyarrow.int32()), "mask": pyarrow.list_(pyarrow.uint8())}
        self.schema = pyarrow.schema({**lists, "where": pyarrow.string(), **numbers})
        self.file = pyarrow.ipc.new_file(str(folder / TOKENS), self.schema)
        self.rows: list[Encoded] = []

    def append(self, row: Encoded) -> None:
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_BATCH:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.file.close()

    def _flush(self) -> None:
        import pyarrow

        rows, self.rows = self.rows, []
        lengths = np.fromiter((len(row.ids) for row in rows), np.int32, len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = array("i")
        for row in rows:
            ids.fromlist(row.ids)
        mask = np.frombuffer(b"".join(bytes(row.loss_mask) for row in rows), np.uint8)
        columns: list[pyarrow.Array] = [
            pyarrow.ListArray.from_arrays(offsets, np.frombuffer(ids, np.int32)),
            pyarrow.ListArray.from_arrays(offsets, mask),
            pyarrow.array([row.where for row in rows], pyarrow.string()),
            pyarrow.array(lengths),
            # A trained first token has nothing to be predicted from.
            pyarrow.array([sum(row.loss_mask[1:]) for row in rows], pyarrow.int32()),
            pyarrow.array([row.trained_bytes for row in rows], pyarrow.int32()),
        ]
        self.file.write_batch(pyarrow.record_batch(columns, schema=self.schema))


@dataclass(frozen=True)
class Entry:
    """A place in the cache: a source with its contents, tokenizer and template, and the code that reads it."""

    source: Source
    key: str
    sha256: dict[str, str]  # of every file
    states: list[tuple[str, int, int]]  # path, size and time of change of every file


def find_entry(source: Source, template: ChatTemplate) -> Entry:
    """Hash the files of a source and say where its tokens belong."""
    states = _states(source.path)  # taken before the files are read
    hashes = content_hashes(source.path)
    return Entry(source, cache_key(source, template, hashes), hashes, states)


def cached(entry: Entry) -> Tokens | None:
    """Return the tokens of a source if they have been made from just these bytes in just this way."""
    import pyarrow

    folder = cache_folder("tokens") / entry.key
    try:
        tokens = Tokens(folder)
    except (OSError, pyarrow.ArrowException):  # not there, or damaged: it is made anew
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return tokens


@contextmanager
def writing(entry: Entry) -> Iterator[TokenWriter]:
    """Yield a writer; when the block ends well, `cached` finds what was written.

    Raises DataError if a file was changed in the meantime, whose tokens would stand under the old
    hash, or if the cache cannot be written.
    """
    target = cache_folder("tokens") / entry.key
    try:
        with replace_folder(target) as folder:
            writer = TokenWriter(folder)
            try:
                yield writer
            finally:
                writer.close()
            if _states(entry.source.path) != entry.states:
                raise DataError("was changed while it was being read", where=entry.source.path, fix="run it again")
        _prune(target)
    except OSError as error:
        what = f"the cache of tokenised rows cannot be written ({error.strerror or error})"
        raise DataError(what, where=str(target.parent), fix="set FINETUNE_CACHE to a folder with room") from None


def cache_key(source: Source, template: ChatTemplate, hashes: Mapping[str, str]) -> str:
    """Hash everything that the tokens depend on: contents, format, tokenizer, template and our own code."""
    module = custom_file(source.format)
    parts = {
        "files": sorted(hashes.items()),
        "source": [source.format, source.columns, source.system, source.heldout_share, source.heldout],
        "custom format": sha256_file(module) if module else "",
        "tokenizer": tokenizer_sha256(template.tokenizer),
        "template": str(template.tokenizer.chat_template),
        "code": code_sha256(Path(__file__).parent),  # a new release never reads an older one's tokens
        "versions": [version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True)
    return hashlib.sha256((text + special).encode()).hexdigest()


def _states(path: str) -> list[tuple[str, int, int]]:
    """Sizes and times of the files of a source: what changes when one is edited."""
    states = [(str(file), file.stat()) for file in find_files(path)]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _prune(keep: Path) -> None:
    """Remove what was not used for longest when the cache has grown too large."""
    entries = sorted((p for p in keep.parent.iterdir() if (p / TOKENS).exists()), key=lambda p: p.stat().st_mtime)
    sizes = {entry: (entry / TOKENS).stat().st_size for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total <= MAX_CACHE_BYTES or entry == keep:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= sizes[entry]
