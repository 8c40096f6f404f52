"""What a judge has said, kept on disk so that nothing is asked and paid for twice."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from finetune.errors import FinetuneError
from finetune.files import atomic_write_text

FILE = "judge.jsonl"
SAVE_EVERY = 20  # new verdicts; a killed process loses fewer


class Verdicts:
    """Verdicts by what was judged, in memory and, given a folder, in its file `judge.jsonl`.

    Use it as a context manager: what is new is written when the block ends, also by an exception.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / FILE if folder else None
        self._known: dict[str, str] = _read(self._file)
        self._new: dict[str, str] = {}

    def __enter__(self) -> Verdicts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.save()

    def get(self, key: str) -> object:
        """Return what was kept, or None."""
        return json.loads(self._known[key]) if key in self._known else None

    def put(self, key: str, verdict: object) -> None:
        """Keep what JSON can hold."""
        self._known[key] = self._new[key] = json.dumps(verdict)
        if len(self._new) >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is new, beside what another process wrote meanwhile."""
        if self._file is None or not self._new:
            return
        lines = {**_read(self._file), **self._new}
        text = "".join(f'{{"key": "{key}", "verdict": {verdict}}}\n' for key, verdict in lines.items())
        try:
            atomic_write_text(self._file, text)
        except OSError as error:
            raise _unusable(self._file, error) from None
        self._new.clear()


def key_of(*parts: object) -> str:
    """Name what was judged; equal parts have equal names."""
    return sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path | None) -> dict[str, str]:
    """Read what can be read; a damaged line costs another question to the judge and no more."""
    try:
        lines = file.read_bytes().splitlines() if file else []
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(file, error) from None
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
            found[bytes.fromhex(entry["key"]).hex()] = json.dumps(entry["verdict"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _unusable(file: Path | None, error: OSError) -> FinetuneError:
    what = f"the judge's verdicts cannot be kept ({error.strerror or error})"
    return FinetuneError(what, where=str(file), fix="make the folder writable or remove the file")
