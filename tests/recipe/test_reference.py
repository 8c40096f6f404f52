"""The generated reference: docs/ is what the schema says, and editors are told the same as the loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from finetune.recipe.keys import walk
from finetune.recipe.reference import DIALECT, json_schema, render_reference, render_schema
from finetune.recipe.synonyms import ABSENT, SYNONYMS
from tests.recipe.helpers import SHIPPED

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["recipe.md", "recipe.schema.json"])
def test_the_files_in_docs_are_what_the_schema_makes(name: str) -> None:
    text = render_reference() if name.endswith(".md") else render_schema()
    assert (DOCS / name).read_text(encoding="utf-8") == text, "run `make docs`"


def test_the_reference_has_a_row_for_every_key() -> None:
    rows = [line.split(" | ") for line in render_reference().splitlines() if line.startswith("| `")]
    told = {row[0].removeprefix("| ").strip("`"): row[1:] for row in rows if len(row) == 4}
    keys = [key for key in walk() if key.field.annotation is not key.section]
    assert set(told) == {key.name for key in keys}
    for key in keys:
        values, default, description = told[key.name]
        assert values
        assert (default == "required") == key.field.is_required()
        assert description.removesuffix(" |") == key.field.description


def test_the_reference_has_every_foreign_name() -> None:
    text = render_reference()
    assert [name for name in [*SYNONYMS, *ABSENT] if f"`{name}`" not in text] == []


def sections(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    yield from schema["$defs"].values()


def test_the_json_schema_is_strict_and_describes_every_key() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    for section in sections(schema):
        assert section["additionalProperties"] is False
        assert [name for name, value in section["properties"].items() if not value.get("description")] == []
    told = sorted(name for section in sections(schema) for name in section["properties"])
    assert told == sorted(key.name.rpartition(".")[2] for key in walk())


def test_a_recipe_that_extends_another_may_leave_out_what_is_required() -> None:
    schema = json_schema()
    assert "required" not in schema
    extending, whole = schema["anyOf"]
    assert extending == {"required": ["extends"]}
    assert whole["required"] == ["name", "base", "data"]
    assert whole["properties"] == {"base": {"required": ["model"]}, "data": {"required": ["path"]}}
    assert schema["$defs"]["MixSource"]["required"] == ["path", "weight"]


def test_the_json_schema_is_printed_as_json() -> None:
    assert json.loads(render_schema()) == json_schema()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_names_the_schema_for_editors(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    mark = "# yaml-language-server: $schema="
    assert first.startswith(mark)
    assert (path.parent / first.removeprefix(mark)).resolve() == (DOCS / "recipe.schema.json").resolve()
    assert second.startswith("# "), "a recipe begins by saying what it is for"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_fit_the_schema_that_editors_use(path: Path) -> None:
    validator = Draft202012Validator(json_schema())
    tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"nme": "x"},
        {"name": "a b"},
        {"train": {"epoch": 1}},
        {"train": {"batch_size": 0}},
        {"data": {"path": "a", "format": "csv"}},
        {"eval": {"gates": {"prompts.pas_rate": {"at_least": 1}}}},
    ],
)
def test_what_the_loader_refuses_does_not_fit_the_schema(change: dict[str, object]) -> None:
    sound = {"name": "x", "base": {"model": "tiny"}, "data": {"path": "a"}}
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(sound)
    assert not validator.is_valid({**sound, **change})
