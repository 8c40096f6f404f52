"""What pydantic found wrong -> lines that a person can act on: place, key, value, what to write instead."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from finetune.recipe.schema import Recipe
from finetune.recipe.synonyms import SYNONYMS

Location = tuple[str | int, ...]
MAX_SHOWN = 80  # characters of a wrong value

# pydantic's words for Python types -> what one writes in YAML.
_WORDS = (
    ("a valid tuple", "a list"),
    ("a valid string", "text"),
    ("a valid boolean", "true or false"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a finite number", "a finite number"),
)


def explain(error: ValidationError, lines: Mapping[Location, str], file: str) -> str:
    """Return every mistake, one a line, as file:line:column: key: what is wrong."""
    found: dict[tuple[Location, str], list[str]] = {}
    for item in error.errors():
        at = _existing(item["loc"], lines)
        # A value that fits no member of a union gives one message per member; say them as one.
        kind = str(item["loc"]) if item["type"] == "missing" else ""
        found.setdefault((at, kind), []).append(_message(item, at))
    return "\n".join(
        f"{lines.get(at) or file}: {'.'.join(map(str, at)) or 'recipe'}: {' or '.join(dict.fromkeys(texts))}"
        for (at, _), texts in found.items()
    )


def all_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe, sections included; not those of list items."""
    out: list[str] = []
    for name, field in section.model_fields.items():
        out.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            out += all_keys(field.annotation, f"{prefix}{name}.")
    return out


def _existing(loc: Location, lines: Mapping[Location, str]) -> Location:
    """Drop the parts that pydantic adds to a location for unions and dictionary keys."""
    for end in range(len(loc), 0, -1):
        if loc[:end] in lines:
            return loc[:end]
    return ()


def _message(item: Any, at: Location) -> str:
    kind, text = item["type"], item["msg"]
    if kind == "extra_forbidden":
        return f"no such key; {_suggest(at)}"
    if kind == "missing":
        return f"required key {'.'.join(map(str, item['loc']))!r} is missing"
    if kind in ("model_type", "dict_type"):
        text = "should be a section: `key: value` lines"
    text = text.removeprefix("Value error, ").replace("Input should", "should")
    for python, words in _WORDS:
        text = text.replace(python, words)
    value = repr(item["input"])
    value = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."
    return f"{value} {text}" if text.startswith("should") else f"{text} (got {value})"


def _suggest(at: Location) -> str:
    key = str(at[-1])
    here = list(next(_sections_at(at[:-1]), Recipe).model_fields)
    if key in SYNONYMS:
        return f"here it is called {SYNONYMS[key]!r}"
    if close := difflib.get_close_matches(key, here, n=1, cutoff=0.8):
        return f"did you mean {close[0]!r}?"
    if elsewhere := [name for name in all_keys() if name.rpartition(".")[2] == key]:
        return f"did you mean {elsewhere[0]!r}?"
    if close := difflib.get_close_matches(key, here, n=1) or difflib.get_close_matches(key, SYNONYMS, n=1):
        return f"did you mean {SYNONYMS.get(close[0], close[0])!r}?"
    return f"this section has {', '.join(here)}"


def _sections_at(at: Location) -> Iterator[type[BaseModel]]:
    """Yield the sections that may stand at a location; those of list items and of mappings, too."""
    kinds: list[Any] = [Recipe]
    for part in at:
        fields = [k.model_fields for k in kinds if _is_section(k)]
        inner = [f[str(part)].annotation for f in fields if str(part) in f]
        inner += [argument for k in kinds if not _is_section(k) for argument in get_args(k)]
        kinds = [member for kind in inner for member in _members(kind)]
    yield from (kind for kind in kinds if _is_section(kind))


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel)
