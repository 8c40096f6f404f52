"""Results kept on disk one by one as they come: a killed process goes on where it was, and nothing is done twice.

One line per result, `{"key": ..., "sum": ..., "value": ...}`, only ever appended. A line that is cut
or damaged does not match its sum: its result is computed again and no more is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError

MAX_BYTES = 1 << 30  # of all journals in one folder; the least recently used go beyond this


class Journal:
    """What JSON can hold, by the key of what it was computed from; without a file nothing is kept."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.computed = self.recalled = 0  # results of `once`
        self._known, self._whole = _read(file)

    def get(self, key: str) -> Any:
        """Return what was kept, or None."""
        return json.loads(self._known[key]) if key in self._known else None

    def put(self, key: str, value: object) -> None:
        """Keep a value, on disk before this returns. Raises FinetuneError if the file cannot be written."""
        text = json.dumps(value)
        self._known[key] = text
        if self._file is None:
            return
        line = f'{{"key": "{key}", "sum": "{_sum(key, text)}", "value": {text}}}\n'
        # One write of whole lines in append mode: processes with the same file do not mix theirs.
        try:
            with self._file.open("ab", buffering=0) as file:
                file.write((line if self._whole else f"\n{line}").encode())
        except OSError as error:
            raise _unusable(self._file, error) from None
        self._whole = True

    def once(self, parts: object, compute: Callable[[], Any]) -> Any:
        """Return what is kept for these parts, or compute and keep it."""
        if self._file is None:
            return compute()
        key = key_of(parts)
        if key in self._known:
            self.recalled += 1
        else:
            self.put(key, compute())
            self.computed += 1
        return self.get(key)


def open_journal(folder: Path, conditions: object, *, fresh: bool = False) -> Journal:
    """Open the journal in `folder` that belongs to these conditions, which JSON must hold; `fresh`: empty.

    Raises FinetuneError if the folder cannot be used.
    """
    file = folder / f"{key_of(conditions)[:32]}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            file.unlink(missing_ok=True)
        file.touch()  # used now: the last to go
        _make_room(folder)
    except OSError as error:
        raise _unusable(file, error) from None
    return Journal(file)


def key_of(*parts: object) -> str:
    """Name what JSON can hold; equal parts have equal names."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sum(key: str, text: str) -> str:
    return sha256(f"{key} {text}".encode()).hexdigest()[:16]


def _read(file: Path | None) -> tuple[dict[str, str], bool]:
    """Read the sound lines, and whether the last one is complete."""
    try:
        content = file.read_bytes() if file else b""
    except FileNotFoundError:
        return {}, True
    except OSError as error:
        raise _unusable(file, error) from None
    found = {}
    for line in content.splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # damaged: as if it were not there
            entry = json.loads(line)
            key, text = entry["key"], json.dumps(entry["value"])
            if entry["sum"] == _sum(key, text):
                found[key] = text
    return found, not content or content.endswith(b"\n")


def _make_room(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    left = MAX_BYTES
    for place, path in enumerate(files):
        left -= path.stat().st_size
        if left < 0 and place:
            path.unlink(missing_ok=True)


def _unusable(file: Path | None, error: OSError) -> FinetuneError:
    what = f"results cannot be kept ({error.strerror or error})"
    return FinetuneError(what, where=str(file), fix="make it writable, remove it, or set FINETUNE_CACHE to a folder")
