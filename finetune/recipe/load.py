"""YAML -> Recipe: strict, every mistake at once, each with file, line and column."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from finetune.errors import RecipeError
from finetune.recipe.explain import Location, explain
from finetune.recipe.schema import Recipe

MAX_NODES = 10_000  # of the tree after aliases are expanded; a recipe has under a hundred
MAX_DEPTH = 32  # an alias inside its own anchor has no end


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are dotted assignments such as `train.epochs=1`.

    Raises RecipeError naming every mistake, one a line, as file:line:column.
    """
    path = Path(path)
    tree = read_yaml(path)
    if not isinstance(tree, CommentedMap):
        raise RecipeError("is no recipe: expected `key: value` lines", where=str(path), fix="see recipes/pizza.yaml")
    lines: dict[Location, str] = {}
    plain = _plain(tree, str(path), (), lines, [0])
    for text in overrides:
        _override(plain, text, lines)
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(explain(error, lines, str(path))) from None


def read_yaml(path: Path) -> Any:
    """Parse one YAML 1.2 file safely. Raises RecipeError with the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix=_nearby(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"is not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror or error})", where=str(path)) from None
    try:
        return YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"is not valid YAML: {error.problem or error.context}", where=where) from None
    except Exception as error:  # odd tags make ruamel stumble over anything, assertions included
        raise RecipeError(f"is not valid YAML: {error or type(error).__name__}", where=str(path)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe, every default filled in, as YAML that loads again."""
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def _nearby(path: Path) -> str:
    names = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), names, n=1) or names[:3]
    return f"did you mean {', '.join(close)}?" if close else f"looked in {path.parent.resolve()}"


def _plain(node: Any, file: str, at: Location, lines: dict[Location, str], count: list[int]) -> Any:
    """Turn ruamel's nodes into plain values, remembering where each stands.

    Aliases are expanded here and counted, so that nested ones cannot fill the memory.
    """
    count[0] += 1
    if count[0] > MAX_NODES or len(at) > MAX_DEPTH:
        raise RecipeError(
            f"expands to more than {MAX_NODES} values or {MAX_DEPTH} levels", where=file, fix="remove nested aliases"
        )
    if isinstance(node, CommentedMap):
        out = {}
        for key, value in node.items():
            lines[(*at, str(key))] = _place(node, key, file)
            out[str(key)] = _plain(value, file, (*at, str(key)), lines, count)
        return out
    if isinstance(node, CommentedSeq):
        items = []
        for index, value in enumerate(node):
            lines[(*at, index)] = _place(node, index, file)
            items.append(_plain(value, file, (*at, index), lines, count))
        return tuple(items)
    return _scalar(node)


def _place(node: CommentedMap | CommentedSeq, key: object, file: str) -> str:
    """Say where a key or item stands; one that came through a YAML merge stands where its mapping does."""
    places = node.lc.data or {}
    line, column = places[key][:2] if key in places else (node.lc.line, node.lc.col)
    return f"{file}:{(line or 0) + 1}:{(column or 0) + 1}"


def _scalar(node: Any) -> Any:
    """Undo ruamel's round-trip scalar classes, which strict validation would refuse."""
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _override(plain: dict[str, Any], text: str, lines: dict[Location, str]) -> None:
    """Put `section.key=value` into the plain recipe. Raises RecipeError if it is no assignment."""
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise RecipeError(f"override {text!r} is no assignment", fix="write it as section.key=value")
    section: Any = plain
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        lines.setdefault(keys[:depth], f"override {text}")
        if not isinstance(section, dict):
            raise RecipeError(f"override {text!r}: {key!r} is no section of the recipe")
    try:
        parsed = YAML(typ="rt", pure=True).load(value) if value.strip() else None
    except Exception:  # as in read_yaml
        raise RecipeError(f"override {text!r}: the value is not valid YAML") from None
    where: dict[Location, str] = {}
    section[keys[-1]] = _plain(parsed, f"override {name.strip()}", keys, where, [0])
    lines.update(dict.fromkeys([keys, *where], f"override {text}"))
