"""What pydantic found wrong -> lines that a person can act on: place, key, value, what to write instead."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from finetune.recipe.contradictions import KIND, Location, Mistake
from finetune.recipe.keys import all_keys
from finetune.recipe.schema import Recipe
from finetune.recipe.synonyms import ABSENT, NOTES, SYNONYMS
from finetune.recipe.yaml_tree import MAX_SHOWN, Place, printable, shown

MAX_MISTAKES = 50  # told at once

_SUBJECT = re.compile(r"^(Value error, )?((Input|String|Tuple|Dictionary)(?= should) )?")
# pydantic's words for Python types -> what one writes in YAML.
_WORDS = (
    ("a valid tuple", "a list"),
    ("a valid string", "text"),
    ("a valid boolean", "true or false"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a finite number", "a finite number"),
)


def explain(error: ValidationError, places: Mapping[Location, Place], file: str) -> str:
    """Return every mistake, one a line, as file:line:column: key: what is wrong."""
    found: dict[tuple[Location, str], list[str]] = {}
    for item in _items(error):
        at = item["loc"] if item["type"] == KIND else _existing(item["loc"], places)
        # A value that fits no member of a union gives one message per member; say them as one.
        kind = str(item["loc"]) if item["type"] == "missing" else ""
        if (at, kind) not in found and len(found) == MAX_MISTAKES:
            return "\n".join([*_told(found, places, file), f"... and more mistakes in {printable(file)}"])
        found.setdefault((at, kind), []).append(_message(item, at))
    return "\n".join(_told(found, places, file))


def _items(error: ValidationError) -> Iterator[dict[str, Any]]:
    """Yield pydantic's errors, a contradiction for each of its mistakes."""
    for item in error.errors(include_url=False):
        mistakes: tuple[Mistake, ...] = item["ctx"]["mistakes"] if item["type"] == KIND else ()
        yield from ({**item, "loc": (*item["loc"], *mistake.at), "msg": mistake.text} for mistake in mistakes)
        if not mistakes:
            yield dict(item)


def _told(
    found: Mapping[tuple[Location, str], list[str]], places: Mapping[Location, Place], file: str
) -> Iterator[str]:
    for (at, _), texts in found.items():
        place = places.get(_existing(at, places)) or printable(file)
        yield f"{place}: {shown('.'.join(map(str, at))) or 'recipe'}: {' or '.join(dict.fromkeys(texts))}"


def _existing(loc: Location, places: Mapping[Location, Place]) -> Location:
    """Drop the parts that pydantic adds to a location for unions and dictionary keys."""
    for end in range(len(loc), 0, -1):
        if loc[:end] in places:
            return loc[:end]
    return ()


def _message(item: Mapping[str, Any], at: Location) -> str:
    kind, text = item["type"], str(item["msg"])
    if kind == KIND:
        return text
    if kind == "extra_forbidden":
        return f"no such key; {_suggest(at)}"
    if kind == "missing":
        return f"required key {'.'.join(map(str, item['loc']))!r} is missing"
    if kind in ("model_type", "dict_type"):
        text = "should be a section: `key: value` lines"
    text = _SUBJECT.sub("", text)
    for python, words in _WORDS:
        text = text.replace(python, words)
    value = _value(item["input"])
    return f"{value} {text}" if text.startswith(("should", "is no")) else f"{text} (got {value})"


def _value(value: object) -> str:
    """Show a value as YAML has it; a huge one costs no more than a small one."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    elif isinstance(value, tuple):
        value = list(value[:MAX_SHOWN])
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _suggest(at: Location) -> str:
    key = str(at[-1])
    here = list(next(_sections_at(at[:-1]), Recipe).model_fields)
    if key in SYNONYMS or key in ABSENT:
        return _elsewhere(key)
    if close := _close(key, here, 0.8):
        return f"did you mean {close!r}?"
    if elsewhere := [name for name in all_keys() if name.rpartition(".")[2] == key]:
        return f"did you mean {elsewhere[0]!r}?"
    if (close := _close(key, [*SYNONYMS, *ABSENT], 0.8)) in ABSENT:
        return f"if it means {close!r}: {_elsewhere(close)}"
    if close := close or _close(key, here) or _close(key, SYNONYMS):
        return f"did you mean {SYNONYMS.get(close, close)!r}?"
    return f"this section has {', '.join(here)}"


def _elsewhere(key: str) -> str:
    if key in ABSENT:
        return f"there is none, because {ABSENT[key]}"
    note = f" ({NOTES[key]})" if key in NOTES else ""
    return f"here it is called {SYNONYMS[key]!r}{note}"


def _close(key: str, names: Any, cutoff: float = 0.6) -> str:
    return next(iter(difflib.get_close_matches(key[:MAX_SHOWN], names, n=1, cutoff=cutoff)), "")


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
