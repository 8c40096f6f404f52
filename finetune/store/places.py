"""Names of adapters, and files that are opened only where they belong."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from finetune.errors import AdapterError
from finetune.recipe.schema import NAME

_NAME = re.compile(NAME[1:-1])


def check_name(name: str) -> str:
    """Return a name that an adapter may have in a store: no path, nothing hidden. Raises AdapterError."""
    if not _NAME.fullmatch(name):
        raise AdapterError(
            f"{name[:80]!r} is no adapter name",
            fix="a name has 1 to 64 of the letters a-z and A-Z, digits, '.', '_', '-', the first no sign",
        )
    return name


def place_in_store(name: str, store: str | Path) -> Path:
    """The folder that a name stands for, which lies in the store also when it is a link. Raises AdapterError."""
    folder = Path(store) / check_name(name)
    _refuse_outside(folder, Path(store))
    return folder


def check_inside(folder: Path, name: str) -> Path:
    """The path of a file of an adapter folder, which must lie in the folder. Raises AdapterError.

    In the Hub's cache, a file of a snapshot is a link to a neighbouring folder of the same repository.
    """
    path = folder / name
    root = folder.resolve()
    _refuse_outside(path, root.parent.parent if root.parent.name == "snapshots" else root)
    return path


@contextmanager
def opened(folder: Path, name: str) -> Iterator[FileIO]:
    """Open a regular file of an adapter folder for reading; no link leads out of it. Raises AdapterError."""
    path = check_inside(folder, name)
    try:
        handle = os.open(path.resolve(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would block for ever
    except OSError as error:
        raise AdapterError(f"cannot be read ({error.strerror or error})", where=str(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise AdapterError("is no ordinary file", where=str(path))
    with FileIO(handle, "rb") as file:
        yield file


def copy_file(source: Path, target: Path, name: str) -> None:
    """Copy a file of one adapter folder into another one that is being made. Raises AdapterError."""
    with opened(source, name) as file, (target / name).open("wb") as copy:
        while part := file.read(1 << 20):
            copy.write(part)


def _refuse_outside(path: Path, root: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise AdapterError(f"cannot be resolved ({error})", where=repr(str(path))) from None
    if not inside:
        raise AdapterError(
            f"is a link that leads out of {root}", where=str(path), fix="copy what it points to into the folder"
        )
