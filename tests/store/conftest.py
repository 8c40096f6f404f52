"""A store with an adapter that is a recipe's own, and one from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune.pipeline import train
from finetune.recipe import load_recipe
from tests.store.adapters import load_model, make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A store that holds `shop`, trained for a few steps."""
    place = tmp_path_factory.mktemp("trained")
    rows = [{"instruction": f"Give me {n} pizzas", "output": f"You get {n} pizzas."} for n in range(40)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.yaml").write_text(
        f"name: shop\noutput: {place / 'adapters'}\n"
        f"base: {{model: {model_folder}, dtype: float32, quantization: none}}\n"
        f"data: {{path: {place / 'rows.jsonl'}, heldout: 0.2, max_length: 128, system: Be brief.}}\n"
        "adapter: {r: 4}\ntrain: {epochs: 2, batch_size: 8, learning_rate: 1e-2}\n"
    )
    train(load_recipe(place / "recipe.yaml"))
    return place / "adapters"


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(trained, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder as PEFT writes it: no card."""
    folder = tmp_path_factory.mktemp("foreign") / "helper"
    make(load_model(model_folder), folder, use_rslora=True, rank_pattern={"q_proj": 2})
    return folder
