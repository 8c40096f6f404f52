"""Which adapters are to be served, and over which base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import AdapterError
from finetune.recipe import BaseSection
from finetune.store.cards import base_named, base_section
from finetune.store.folders import StoredAdapter, find_adapter, read_store


@dataclass(frozen=True)
class Choice:
    """What is to be served; adapters that were `asked` for by name must load, others only if they fit."""

    base: BaseSection
    adapters: tuple[StoredAdapter, ...]
    asked: bool
    unreadable: tuple[AdapterError, ...] = ()  # adapters of the store that were not asked for and cannot be read
    force: bool = False  # serve adapters of another base, too


def choose(names: Sequence[str], base: str | None, store: Path, *, force: bool = False) -> Choice:
    """Find the adapters, or all of the store, and their base. Raises AdapterError or ModelError."""
    found, unreadable = ([find_adapter(name, store) for name in names], []) if names else read_store(store)
    section = base_section(found[0]) if base is None and found else base_named(base or "tiny")
    return Choice(section, tuple(found), bool(names), tuple(unreadable), force)
