"""The recipe's reference, made from the schema: docs/recipe.md and the JSON Schema for editors.

`make docs` writes both (tools/make_docs.py); `finetune recipe schema` prints the second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.recipe.keys import walk
from finetune.recipe.schema import FORMAT_COLUMNS, Recipe, Section
from finetune.recipe.synonyms import ABSENT, NOTES, TOOLS
from finetune.recipe.write import plain_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` · `false`",
    "null": "`null`",
}
_INTRODUCTION = """\
# The recipe: every key

<!-- Made by `make docs` from finetune/recipe/schema.py and synonyms.py: edit those. -->

A recipe is one YAML 1.2 file. `name`, `base.model` and `data.path` are required, everything else has a default.
`finetune recipe show RECIPE [KEY=VALUE]...` prints a recipe with every value and where it comes from. Editors that know
JSON Schema complete and check recipes whose first line names `recipe.schema.json`, as those in `recipes/` do;
`finetune recipe schema` prints that file.

`extends: other.yaml` takes over another recipe, named relative to the file that says it, up to 8 files deep. The
sections base, data, adapter, train, generation and eval are merged key by key; every other value (a list, `columns`,
`mix`, `gates`) is replaced as a whole. Overrides on the command line come last: `train.epochs=1`,
`data.mix.0.weight=0.1`, `eval.gates.prompts.gain.at_least=0.2`.
"""


def json_schema() -> dict[str, Any]:
    """Describe a recipe file as JSON Schema (draft 2020-12): strict, with a description for every key."""
    made = Recipe.model_json_schema()
    definitions: dict[str, Any] = made["$defs"]
    sections = {name: value for name, value in made["properties"].items() if "$ref" in value}
    needed: dict[str, Any] = {}
    for name, value in sections.items():
        value.pop("default", None)  # a section's own keys have the defaults
        # A recipe that extends another may leave out what that one says.
        if required := definitions[value["$ref"].rpartition("/")[2]].pop("required", None):
            needed[name] = {"required": required}
    whole = {"required": made.pop("required"), "properties": needed}
    definitions["Gate"]["oneOf"] = [
        {"required": [bound], "properties": {bound: {"type": "number"}}} for bound in ("at_least", "at_most")
    ]
    schema = {"$schema": DIALECT, "title": "finetune recipe", **{k: v for k, v in made.items() if k != "title"}}
    untitled = _without_titles({**schema, "anyOf": [{"required": ["extends"]}, whole]})
    assert isinstance(untitled, dict)
    return {**untitled, "title": "finetune recipe"}


def render_schema() -> str:
    """Write the JSON Schema as the text of docs/recipe.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def render_reference() -> str:
    """Write docs/recipe.md: every key, what other tools call it, and keys that do not exist here."""
    parts = [_INTRODUCTION, *_key_tables(), _formats(), _synonyms(), _absent()]
    return "\n".join(parts)


def _without_titles(node: Any) -> Any:
    """Drop the titles that pydantic makes of names; a property may itself be called title."""
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "title" and isinstance(value, str))}
        return {key: _without_titles(value) for key, value in kept.items()}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node


def _key_tables() -> Iterator[str]:
    schema = json_schema()
    yield _key_table("## Top level\n", "", Recipe, schema["properties"])
    for key in walk():
        if key.section is not None:
            title = f"## `{key.inside.removesuffix('.')}`: {key.field.description}\n"
            yield _key_table(title, key.inside, key.section, schema["$defs"][key.section.__name__]["properties"])


def _key_table(title: str, prefix: str, section: type[Section], properties: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{prefix}{name}`",
            _values(properties[name]),
            "required" if field.is_required() else f"`{plain_value(field.default)}`",
            str(field.description),
        )
        for name, field in section.model_fields.items()
        if "$ref" not in properties[name]
    ]
    return f"{title}\n{_table(('key', 'value', 'default', 'what it does'), rows)}"


def _values(value: Mapping[str, Any]) -> str:
    """Say in words what a key may be set to."""
    if "anyOf" in value:
        return " or ".join(map(_values, value["anyOf"]))
    if "enum" in value or "const" in value:
        return " · ".join(f"`{plain_value(item)}`" for item in value.get("enum", [value.get("const")]))
    if "pattern" in value:
        return f"text like `{value['pattern']}`"
    if value["type"] in ("array", "object"):
        inner = value.get("items") or value["additionalProperties"]
        kind = "a list" if value["type"] == "array" else "a mapping"
        return f"{kind}, see below" if "$ref" in inner else f"{kind} of {_values(inner)}"
    bounds = ", ".join(f"{sign} {value[name]}" for name, sign in _BOUNDS if name in value)
    return " ".join(filter(None, (_TYPES[value["type"]], bounds)))


def _formats() -> str:
    rows = [(f"`{name}`", ", ".join(f"`{key}`" for key in keys)) for name, keys in FORMAT_COLUMNS.items()]
    text = "What a row of each format has, and what `columns` may rename. A format of your own is a function,"
    text += " `package.module:function`."
    return f"## Formats\n\n{text}\n\n{_table(('format', 'keys of a row'), rows)}"


def _synonyms() -> str:
    names: dict[str, list[str]] = {key.name: [] for key in walk()}
    for tool, keys in TOOLS.items():
        for theirs, ours in keys.items():
            note = f": {NOTES[theirs]}" if theirs in NOTES else ""
            names[ours].append(f"`{theirs}` ({tool}{note})")
    rows = [(f"`{ours}`", ", ".join(theirs)) for ours, theirs in names.items() if theirs]
    text = "None of these names is accepted; the message names the key to use. Each stands with one tool that has it."
    return f"## What other tools call it\n\n{text}\n\n{_table(('here', 'elsewhere'), rows)}"


def _absent() -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in ABSENT.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    rows = [(", ".join(names), reason) for reason, names in reasons.items()]
    return f"## Keys you will look for and not find\n\n{_table(('elsewhere', 'why not here'), rows)}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
