"""Recipe -> YAML that loads again: every value on one line, so that each can say where it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from finetune.recipe.contradictions import Location
from finetune.recipe.load import Resolved
from finetune.recipe.schema import Recipe
from finetune.recipe.yaml_tree import printable, scalar

WIDEST = 56  # characters; longer lines do not push all comments to the right
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*")  # no sign that means anything in YAML
_OLD_BOOLS = {"y", "n", "yes", "no", "on", "off"}  # text in YAML 1.2, but other readers may know 1.1 only
_ESCAPES = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
Line = tuple[str, Location | None]  # text, and of which value


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe, every default filled in, as YAML that loads again."""
    return "".join(f"{text}\n" for text, _ in _recipe_lines(recipe))


def show_recipe(resolved: Resolved) -> str:
    """Write the resolved recipe as YAML that loads again, with the origin of each value as a comment."""
    lines = list(_recipe_lines(resolved.recipe))
    width = max(len(text) for text, at in lines if at is not None and len(text) <= WIDEST)
    out = []
    for text, at in lines:
        origin = resolved.origins[".".join(map(str, at))] if at is not None else None
        out.append(text if origin is None else f"{text:<{width}}  # {printable(origin)}")
    return "".join(f"{line}\n" for line in out)


def _recipe_lines(recipe: Recipe) -> Iterator[Line]:
    return _mapping(recipe.model_dump(exclude={"extends"}), "", ())


def _mapping(values: dict[str, Any], indent: str, at: Location) -> Iterator[Line]:
    for key, value in values.items():
        here, head = (*at, key), f"{indent}{plain_value(key)}:"
        if isinstance(value, dict) and value:
            yield head, None
            yield from _mapping(value, f"{indent}  ", here)
        elif isinstance(value, tuple) and value and isinstance(value[0], dict):
            yield head, None
            for index, item in enumerate(value):
                lines = _mapping(item, f"{indent}  ", (*here, index))
                text, first = next(lines)
                yield f"{indent}- {text.lstrip()}", first
                yield from lines
        else:
            yield f"{head} {plain_value(value)}", here


def plain_value(value: Any) -> str:
    """Write one value, list of values or empty collection on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain_value, value))}]"
    return "{}" if isinstance(value, dict) else repr(value)


def _text(text: str) -> str:
    """Write text plain if it stays the same text, else in double quotes with everything odd escaped."""
    if _PLAIN.fullmatch(text) and isinstance(scalar(text), str) and text.lower() not in _OLD_BOOLS:
        return text
    return f'"{"".join(map(_character, text))}"'


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
