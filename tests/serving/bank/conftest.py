"""A store of small adapters whose ranks, layers and scales differ, and a bank that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.model.base import Base
from finetune.serving.bank import AdapterBank
from tests.conftest import MakeBase
from tests.serving.making import IDS, Oracle, write_adapter


@pytest.fixture
def store(tmp_path: Path, base: Base) -> Path:
    """Ranks, layers and scales that differ."""
    write_adapter(tmp_path / "a", base, 1)
    write_adapter(tmp_path / "b", base, 2, r=8, use_rslora=True)
    write_adapter(tmp_path / "c", base, 3, r=2, targets=("q_proj", "down_proj"), rank_pattern={"q_proj": 6})
    write_adapter(tmp_path / "d", base, 4, targets=("o_proj",))
    return tmp_path


@pytest.fixture
def bank(base: Base, store: Path) -> AdapterBank:
    found = AdapterBank(base, store=store)
    for name in ("a", "b", "c", "d"):
        found.load(name)
    return found


@pytest.fixture
def oracle(make_base: MakeBase, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    found = Oracle(make_base, IDS, tmp_path_factory.mktemp("contents"))
    for name in ("a", "b", "c", "d"):
        found.keep(store / name, name)
    return found
