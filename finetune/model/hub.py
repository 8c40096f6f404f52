"""Where a model comes from, and what its loading errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.hubs import find_cause, reachable
from finetune.recipe import BaseSection

TINY = "tiny"

# Exception class (anywhere in the chain) -> what is wrong, what to do.
_CAUSES: dict[str, tuple[str, str]] = {
    "GatedRepoError": (
        "the model is gated: its owner must grant access first",
        "accept its terms on the Hub, then run `hf auth login`",
    ),
    "RevisionNotFoundError": ("the Hub has no such revision of it", "check base.revision"),
    "RepositoryNotFoundError": (
        "the Hub has no such model, or it is private",
        "check the spelling, or run `hf auth login`",
    ),
    "LocalEntryNotFoundError": (
        "it is not in the local cache and the Hub cannot be reached",
        "check the network, name a local folder, or use the built-in `base: {model: tiny}`",
    ),
    "OfflineModeIsEnabled": (
        "it is not in the local cache and offline mode is on (HF_HUB_OFFLINE)",
        "unset HF_HUB_OFFLINE, name a local folder, or use the built-in `base: {model: tiny}`",
    ),
    "HFValidationError": ("it is neither a folder nor a valid Hub id", "check base.model"),
}
_CAUSES["ConnectError"] = _CAUSES["ConnectTimeout"] = _CAUSES["ConnectionError"] = _CAUSES["LocalEntryNotFoundError"]


def local_path(section: BaseSection) -> str:
    """The folder or Hub id that transformers loads. Raises ModelError for a folder that is not there."""
    if section.model == TINY:
        return str(files("finetune.model") / TINY)
    path = Path(section.model).expanduser()
    looks_local = section.model.startswith((".", "/", "~")) or section.model.count("/") != 1
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError("the folder has no config.json", where=section.model, fix="name a saved model's folder")
        return str(path)
    if looks_local and section.model.count("/") != 0:
        raise ModelError("no such folder", where=section.model, fix=f"looked for {path.resolve()}")
    return section.model


def hub_options(section: BaseSection) -> dict[str, Any]:
    """Keyword arguments for every from_pretrained call of this base."""
    return {
        "revision": section.revision or "main",
        "trust_remote_code": section.trust_remote_code,
        "local_files_only": not (Path(local_path(section)).is_dir() or reachable()),
    }


@contextmanager
def explain(name: str) -> Iterator[None]:
    """Turn what transformers and huggingface_hub raise while loading into a ModelError."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        what, fix = _cause(error)
        raise ModelError(f"cannot load the model: {what}", where=name, fix=fix) from error


def _cause(error: BaseException) -> tuple[str, str | None]:
    if known := find_cause(error, _CAUSES):
        return known
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs its own Python code", "read that code, then set base.trust_remote_code: true"
    return text[:300], None
