"""Writing recipes for tests, and reading what is said about bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import load_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
REQUIRED = "name: pizza\nbase: {model: tiny}\ndata: {path: rows.jsonl}\n"


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def family(folder: Path, texts: Mapping[str, str]) -> Path:
    """Write several files and return the first."""
    paths = [written(folder, text, name) for name, text in texts.items()]
    return paths[0]


def refusal(folder: Path, text: str, *overrides: str) -> str:
    return refusal_of(written(folder, text), *overrides).replace(f"{folder}/", "")


def refusal_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)
