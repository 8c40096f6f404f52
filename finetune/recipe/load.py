"""YAML -> Recipe: strict, every mistake at once, each with file, line and column.

A recipe is resolved in layers: the file that it extends, the file itself, then each override.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune.errors import RecipeError
from finetune.recipe.contradictions import Location
from finetune.recipe.explain import explain
from finetune.recipe.layers import merged, override, read_layers
from finetune.recipe.schema import Recipe
from finetune.recipe.yaml_tree import Budget, Entry, Map, Place, expand, printable

DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """A recipe and where each of its values comes from."""

    recipe: Recipe
    origins: Mapping[str, str]  # dotted key -> "default", "file:line" or "override key=value"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are dotted assignments such as `train.epochs=1`.

    Raises RecipeError naming every mistake, one a line, as file:line:column.
    """
    return resolve_recipe(path, overrides).recipe


def resolve_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read a recipe, what it extends and the overrides, and say where every value comes from.

    Raises RecipeError as `load_recipe` does.
    """
    budget = Budget()
    tree = Map()
    for layer in read_layers(Path(path), budget):
        tree = merged(tree, layer)
    tree = override(tree, overrides, budget)
    plain, places = expand(Entry(Place(printable(str(path))), tree), budget)
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(explain(error, places, str(path))) from None
    return Resolved(recipe, {".".join(map(str, at)): _origin(places, at) for at in leaves(recipe)})


def leaves(value: Any, at: Location = ()) -> list[Location]:
    """Where the values of a recipe stand: single ones, lists of them, and empty collections."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields if (*at, name) != ("extends",)}
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*at, key))]
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*at, index))]
    return [at]


def _origin(places: Mapping[Location, Place], at: Location) -> str:
    return places[at].origin if at in places else DEFAULT
