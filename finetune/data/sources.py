"""What a recipe's path names -> files, and their rows and hashes.

A path is a file, a folder, a glob, or hf://datasets/OWNER/NAME@REVISION[/GLOB] for files of a data set on the Hub.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from finetune.data.readers import TABLES, TEXTS, BadRow, LocatedRow, kind_of, read_file, unknown_kind
from finetune.data.streams import PACKINGS
from finetune.errors import DataError
from finetune.files import sha256_file
from finetune.hubs import find_cause, is_hub_error, reachable

HUB = "hf://"
SHOWN_FILES = 10  # named in one message
SHOWN_ERROR = 300  # characters of an error of the Hub that is not known here
# What `datasets` writes beside the rows.
NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HUB_PATH = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<pattern>.+))?"
)
_ALL_KINDS = [f"*{ending}" for ending in (*TEXTS, *TABLES, *(text + packing for text in TEXTS for packing in PACKINGS))]
_TRAIN = re.compile(r"(?<![a-z])train", re.IGNORECASE)
# Exception class (anywhere in the chain) -> what is wrong, what to do.
_CAUSES = {
    "GatedRepoError": (
        "the data set is gated: its owner must grant access first",
        "accept its terms on the Hub, then run `hf auth login`",
    ),
    "RevisionNotFoundError": ("the Hub has no such revision of it", "check what stands behind the @"),
    "RepositoryNotFoundError": (
        "the Hub has no such data set, or it is private",
        "check the spelling, or run `hf auth login`",
    ),
    "HFValidationError": ("it is no valid Hub id", "write hf://datasets/OWNER/NAME@REVISION"),
    "IncompleteSnapshotError": (
        "only some of its files are in the local cache and the Hub cannot be reached",
        "check the network, or name the files that are there",
    ),
    "LocalEntryNotFoundError": (
        "it is not in the local cache and the Hub cannot be reached",
        "check the network, or name a local file",
    ),
}
_OFFLINE = ("it is not in the local cache and offline mode is on (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE")


class _File(NamedTuple):
    path: Path
    name: str  # in messages


def find_files(path: str) -> tuple[Path, ...]:
    """Return the data files that a path names, sorted, at least one. Raises DataError."""
    return tuple(file.path for file in _find(path))


def read_rows(path: str) -> Iterator[LocatedRow | BadRow]:
    """Yield the rows of all files that a path names. Raises DataError for what concerns a file as a whole."""
    for file in _find(path):
        yield from read_file(file.path, file.name)


def content_hashes(path: str) -> dict[str, str]:
    """Map the name of each file that a path names, as it stands in `where`, to its SHA-256. Raises DataError."""
    files = _find(path)
    with _readable(path):
        return {file.name: sha256_file(file.path) for file in files}


def _find(path: str) -> list[_File]:
    if path.startswith(HUB):
        return _hub_files(path)
    with _readable(path):
        return [_File(file, str(file)) for file in _local_files(path)]


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = path if error.filename is None else str(error.filename)
        raise DataError(f"cannot be read ({error.strerror or error})", where=where) from None


def _local_files(path: str) -> list[Path]:
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises for an unknown user
    if expanded.is_dir():
        return _in_folder(expanded, path)
    if glob.has_magic(path) and not expanded.exists():
        return _matching(path, Path(), str(expanded))
    if not kind_of(expanded)[0] and (expanded.exists() or expanded.suffix):
        raise unknown_kind(expanded, path)
    if not expanded.exists():
        raise DataError("no such data file", where=path, fix=_advice(expanded))
    return [expanded]


def _advice(path: Path) -> str:
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, [name for name in beside if not name.startswith(".")], 1)
    return f"did you mean {path.parent / close[0]}?" if close else f"looked for {path.resolve()}"


def _in_folder(folder: Path, where: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        raise DataError("holds several splits of a data set", where=where, fix=f"name one, such as {where}/train")
    seen = sorted(_walk(folder))
    found = [file for file in seen if _is_rows(file)]
    if not found:
        raise DataError(f"holds no data file but {_listing(seen, folder)}", where=where)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file that is not hidden, behind links too, each folder once."""
    entered = {os.path.realpath(folder)}

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        yield from (Path(root, name) for name in names if not name.startswith("."))
        inner = {name: os.path.realpath(Path(root, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, real in inner.items() if real not in entered]
        entered.update(inner.values())


def _is_rows(file: Path) -> bool:
    return bool(kind_of(file)[0]) and file.name not in NOT_ROWS


def _matching(where: str, root: Path, pattern: str) -> list[Path]:
    names = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    seen = sorted({root / name for name in names if not (root / name).is_dir()})
    found = [file for file in seen if _is_rows(file)]
    if not found:
        what = f"matches no data file but {_listing(seen, root)}" if seen else "matches no file"
        raise DataError(what, where=where, fix=None if seen else f"looked in {root.resolve()}")
    return found


def _listing(files: list[Path], root: Path) -> str:
    names = [str(file.relative_to(root) if root in file.parents else file) for file in files]
    more = len(names) - SHOWN_FILES
    return ", ".join(names[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "") or "nothing"


def _hub_files(path: str) -> list[_File]:
    parts = _HUB_PATH.fullmatch(path)
    if parts is None:
        fix = "write hf://datasets/OWNER/NAME@REVISION, and /GLOB behind it to choose files"
        raise DataError("names no data set on the Hub", where=path, fix=fix)
    repo, revision, pattern = parts["repo"], parts["revision"], (parts["pattern"] or "").strip("/")
    if revision is None:
        raise _unpinned(path, repo, pattern)
    root = _download(path, repo, unquote(revision), pattern)
    with _readable(path):
        if not pattern:
            files = _training_files(_in_folder(root, path), root, path)
        elif (root / pattern).is_dir():
            files = _in_folder(root / pattern, path)
        else:
            files = _matching(path, root, pattern)
    prefix = f"hf://datasets/{repo}@{revision}"
    return [_File(file, f"{prefix}/{file.relative_to(root).as_posix()}") for file in files]


def _download(path: str, repo: str, revision: str, pattern: str) -> Path:
    from huggingface_hub import constants, snapshot_download  # here: slow to import

    # The Hub's patterns know no `**` that stands for nothing, and no folders.
    wanted = [pattern, pattern.replace("**/", ""), f"{pattern}/*"] if pattern else _ALL_KINDS
    offline = constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=wanted,
            local_files_only=offline or not reachable(),
        )
    except Exception as error:
        if not is_hub_error(error):
            raise
        causes = {**_CAUSES, "LocalEntryNotFoundError": _OFFLINE} if offline else _CAUSES
        what, fix = find_cause(error, causes) or (" ".join(str(error).split())[:SHOWN_ERROR], None)
        raise DataError(f"cannot load the data set: {what}", where=path, fix=fix) from error
    return Path(folder)


def _training_files(files: list[Path], root: Path, path: str) -> list[Path]:
    """Choose the training split by the names of files, else of folders; all files if none says so."""
    by_name = [file for file in files if _TRAIN.search(file.name)]
    by_folder = [file for file in files if _TRAIN.search(file.parent.relative_to(root).as_posix())]
    chosen = by_name or by_folder or files
    if len({(file.parent, kind_of(file)) for file in chosen}) > 1:
        what = f"has files in several folders or of several kinds: {_listing(chosen, root)}"
        raise DataError(what, where=path, fix=f"choose some: {path}/GLOB")
    return chosen


def _unpinned(path: str, repo: str, pattern: str) -> DataError:
    commit = _current_commit(repo)
    pinned = f"hf://datasets/{repo}@{commit or 'COMMIT'}{'/' + pattern if pattern else ''}"
    fix = f"pin {'the current' if commit else 'a'} commit: {pinned}"
    return DataError("names no revision, so its rows may change from run to run", where=path, fix=fix)


def _current_commit(repo: str) -> str | None:
    """Ask the Hub for the newest commit; None without an answer."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or not reachable():
        return None
    try:
        return HfApi().dataset_info(repo, timeout=10).sha
    except Exception as error:
        if not is_hub_error(error):
            raise
        return None
