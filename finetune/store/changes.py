"""An adapter's name changed, and an adapter removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from finetune.errors import AdapterError
from finetune.files import atomic_write_text, recover_folder
from finetune.store.folders import CARD, CONFIG, StoredAdapter, find_in_store
from finetune.store.places import place_in_store
from finetune.store.readme import render_readme

README = "README.md"


def rename_adapter(name: str, new: str, store: str | Path = "adapters") -> StoredAdapter:
    """Give an adapter of the store another name. Raises AdapterError if there is none, or one of that name."""
    adapter, target = find_in_store(name, store), place_in_store(new, store)
    if target.exists() or target.is_symlink():
        raise AdapterError("is there already", where=str(target), fix="choose another name, or remove it first")
    try:
        adapter.folder.rename(target)
    except OSError as error:
        raise AdapterError(f"cannot be renamed ({error.strerror or error})", where=str(adapter.folder)) from None
    card = adapter.card.model_copy(update={"name": new})
    atomic_write_text(target / CARD, card.model_dump_json(indent=2) + "\n")
    if (target / README).is_file() and not (target / README).is_symlink():
        atomic_write_text(target / README, render_readme(card))
    return find_in_store(new, store)


def remove_adapter(name: str, store: str | Path = "adapters") -> Path:
    """Remove an adapter of the store, also one that can no longer be loaded; return where it was. Raises AdapterError.

    Of a link in the store, the link alone is removed.
    """
    folder = (
        Path(store) / name if (Path(store) / name).is_symlink() and "/" not in name else place_in_store(name, store)
    )
    if folder.is_symlink():
        folder.unlink()
        return folder
    recover_folder(folder)
    if not folder.is_dir() or not ((folder / CARD).exists() or (folder / CONFIG).exists()):
        known = sorted(path.parent.name for path in Path(store).glob(f"*/{CARD}"))
        fix = f"there are {', '.join(known)}" if known else f"{store} holds no adapter"
        raise AdapterError(f"no adapter {name!r}", where=str(folder), fix=fix)
    gone = folder.with_name(f".{name}.{os.getpid()}.gone")
    try:
        folder.rename(gone)  # from here on nobody finds half of it
        shutil.rmtree(gone)
    except OSError as error:
        raise AdapterError(f"cannot be removed ({error.strerror or error})", where=str(folder)) from None
    return folder
