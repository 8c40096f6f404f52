"""Files that are either whole or not there: nothing is written in place.

A folder is written beside its target and swapped in by renaming:

    .name.<pid>.new    being written, flocked by its writer
    .name.<pid>.old    the former target, for the moment between the two renames
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import FinetuneError

SWAP_ATTEMPTS = 100  # a reader may put the old folder back between our two renames


@contextmanager
def replace_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `target` when the block ends well.

    After an exception the old target stands untouched. Kill the process at any moment and
    `recover_folder` finds the old or the new folder, complete. Of two processes the last one wins;
    two writers in one process are refused with a FinetuneError.
    """
    path = _real(target)
    if path.exists() and not path.is_dir():
        raise FinetuneError("is a file, a folder was expected", where=str(target), fix="choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    _remove_leftovers(path)
    new = _sibling(path, "new")
    try:
        new.mkdir()
    except FileExistsError:
        raise FinetuneError("is already being written", where=str(target), fix=f"or remove {new}") from None
    lock = _flock(new)
    try:
        yield new
        _share(new)
        _sync_tree(new)
        _swap(new, path)
    except BaseException:  # Ctrl-C too: a half-written folder is never left behind
        shutil.rmtree(new, ignore_errors=True)
        recover_folder(path)
        raise
    finally:
        os.close(lock)


def recover_folder(target: str | Path) -> bool:
    """Put the old folder back if a writer was killed between its two renames; True if it was.

    Call it before reading a folder that `replace_folder` writes.
    """
    path = _real(target)
    if path.exists():
        return False
    # Renaming updates a folder's change time, so the latest is the one the last writer put aside.
    for old in sorted(_siblings(path, "old"), key=lambda p: p.stat().st_ctime, reverse=True):
        with suppress(OSError):  # another process was faster
            old.rename(path)
            return True
    return False


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file that is seen either as it was or complete, also after a power cut."""
    target = _real(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in _siblings(target, "new"):
        if _is_abandoned(left):  # its writer was killed
            left.unlink(missing_ok=True)
    new = _sibling(target, "new")
    try:
        with new.open("w", encoding="utf-8", newline="\n") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of things that can be made again: below $FINETUNE_CACHE, else the user's cache."""
    named = os.environ.get("FINETUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(named) if named else base / "finetune") / kind


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _real(path: str | Path) -> Path:
    """Follow links, so that a linked folder is replaced where it really stands."""
    return Path(os.path.realpath(path))


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _siblings(path: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.{kind}")
    return [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)] if path.parent.is_dir() else []


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers left; a folder that is being written is locked and stays."""
    for new in _siblings(path, "new"):
        if _is_abandoned(new):
            shutil.rmtree(new, ignore_errors=True)
    if path.exists():
        for old in _siblings(path, "old"):
            shutil.rmtree(old, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Say whether no process holds the lock. A process id would not tell: containers reuse them."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: leave it alone
        return False
    finally:
        os.close(lock)
    return True


def _flock(folder: Path) -> int:
    lock = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _share(folder: Path) -> None:
    """Let whoever may list the folder read its files: safetensors writes them for their owner alone."""
    readers = folder.stat().st_mode & 0o044
    for file in folder.rglob("*"):
        file.chmod(file.stat().st_mode | readers)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(new: Path, path: Path) -> None:
    old = _sibling(path, "old")
    for _ in range(SWAP_ATTEMPTS):
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if not path.exists():
                raise
            continue  # a reader recovered the old folder just now
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
        return
    raise FinetuneError("cannot be replaced: another process keeps restoring it", where=str(path))
