"""Which adapters are to be served, and over which base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune.errors import AdapterError
from finetune.recipe import BaseSection
from finetune.store.folders import StoredAdapter, find_adapter, list_adapters


@dataclass(frozen=True)
class Choice:
    """What is to be served; adapters that were `asked` for by name must load, others only if they fit."""

    base: BaseSection
    adapters: tuple[StoredAdapter, ...]
    asked: bool


def choose(names: Sequence[str], base: str | None, store: Path) -> Choice:
    """Find the adapters, or all of the store, and their base. Raises AdapterError."""
    found = tuple(find_adapter(name, store) for name in names) if names else tuple(list_adapters(store))
    if base is not None or not found:
        return Choice(BaseSection(model=base or "tiny"), found, bool(names))
    first = found[0]
    try:
        given = first.card.base.model_dump(include={"model", "revision", "quantization"})
        return Choice(BaseSection.model_validate(given), found, bool(names))
    except ValidationError as error:
        what = f"its card names no base: {error.errors()[0]['msg']}"
        raise AdapterError(what, where=str(first.folder), fix="name the base with --base") from None
