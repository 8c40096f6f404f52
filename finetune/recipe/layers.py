"""The layers of a recipe: the files of its `extends` chain, and overrides on top of them."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from finetune.errors import RecipeError
from finetune.recipe.schema import Metric, Recipe, Section
from finetune.recipe.yaml_tree import MAX_DEPTH, Budget, Entry, Map, Node, Place, Seq, is_text, parse, printable, shown

MAX_BYTES = 64 * 1024  # of a recipe with all that it extends; the longest one anybody needs has a tenth
MAX_FILES = 8  # of one `extends` chain
MAX_OVERRIDES = 200
MAX_NEARBY = 200  # names in a folder to look for a misspelt one
_GATES = "eval.gates."
SECTIONS = frozenset(
    name
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
)


def read_layers(path: Path, budget: Budget) -> list[Map]:
    """Read a recipe file and what it extends, the farthest first, without the `extends` keys.

    Raises RecipeError for a file that is missing or no recipe, and for a chain without an end.
    """
    layers: list[Map] = []
    chain: list[Path] = []
    asked: Entry | None = None
    left = MAX_BYTES
    while True:
        text = _read_asked(path, chain, asked)
        left -= len(text)
        if asked is not None and left < 0:
            what = f"the recipe and what it extends are larger than {MAX_BYTES // 1024} KiB together"
            raise RecipeError(what, where=str(asked.place))
        tree = parse(text, printable(str(path)), budget).node
        if not isinstance(tree, Map):
            what = "is no recipe: expected `key: value` lines"
            raise RecipeError(what, where=printable(str(path)), fix="see recipes/pizza.yaml")
        chain.append(path)
        asked = tree.entries.get("extends")
        layers.insert(0, Map({key: entry for key, entry in tree.entries.items() if key != "extends"}))
        if asked is None or asked.node is None:
            return layers
        path = path.parent / _named(asked)


def merged(below: Map, above: Map) -> Map:
    """Lay one layer over another: sections key by key, every other value as a whole."""
    out = dict(below.entries)
    for key, entry in above.entries.items():
        under = out[key].node if key in out else None
        if key in SECTIONS and isinstance(under, Map) and isinstance(entry.node, Map):
            entry = Entry(entry.place, Map({**under.entries, **entry.node.entries}))
        out[key] = entry
    return Map(out)


def override(tree: Map, overrides: Sequence[str], budget: Budget) -> Map:
    """Lay assignments such as `train.epochs=1` over a recipe. Raises RecipeError naming a wrong one."""
    if len(overrides) > MAX_OVERRIDES or sum(map(len, overrides)) > MAX_BYTES:
        what = f"{len(overrides)} overrides with {sum(map(len, overrides))} characters"
        raise RecipeError(f"{what} are more than {MAX_OVERRIDES} or {MAX_BYTES}", fix="write a recipe that extends it")
    for text in overrides:
        name, equals, value = text.partition("=")
        if not is_text(text):
            raise RecipeError(f"override {shown(text)!r} is not UTF-8 text")
        keys = _dotted(name.strip())
        if not equals or not all(keys):
            raise RecipeError(f"override {shown(text)!r} is no assignment", fix="write it as section.key=value")
        if len(keys) > MAX_DEPTH:
            raise RecipeError(f"override {shown(text)!r} names {len(keys)} levels; no recipe has so many")
        if keys == ("extends",):
            raise RecipeError(f"override {shown(text)!r}: only a recipe file can extend another")
        source = f"override {shown(text)}"
        try:
            node = parse(value, source, budget, located=False).node if value.strip() else None
        except RecipeError as error:
            what = error.what.removeprefix("is not valid YAML: ")
            raise RecipeError(f"override {shown(text)!r}: the value is not valid YAML: {what}") from None
        changed = _assigned(tree, keys, Entry(Place(source), node), ())
        assert isinstance(changed, Map)
        tree = changed
    return tree


def read_yaml(path: Path, max_bytes: int | None = None) -> Any:
    """Parse one YAML 1.2 file into ruamel's round-trip nodes. Raises RecipeError with the line of a syntax error."""
    text = read_text(path, max_bytes)
    try:
        return YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"is not valid YAML: {error.problem or error.context}", where=where) from None
    except Exception as error:  # odd tags make ruamel stumble over anything, assertions included
        raise RecipeError(f"is not valid YAML: {error or type(error).__name__}", where=str(path)) from None


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """Read a text file of at most `max_bytes`. Raises RecipeError saying why that cannot be done."""
    try:
        with path.open("rb") as file:
            data = file.read(-1 if max_bytes is None else max_bytes + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", where=printable(str(path)), fix=_nearby(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a character in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecipeError(f"cannot be read ({reason})", where=printable(str(path))) from None
    if max_bytes is not None and len(data) > max_bytes:
        raise RecipeError(f"is larger than {max_bytes // 1024} KiB; no recipe is", where=printable(str(path)))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"is not UTF-8 text ({error.reason} at byte {error.start})", where=printable(str(path))
        ) from None


def _read_asked(path: Path, chain: list[Path], asked: Entry | None) -> str:
    """Read the next file of a chain; what is wrong with that stands where `extends` asks for it."""
    if asked is None:
        return read_text(path, MAX_BYTES)
    way = " -> ".join(shown(str(file)) for file in [*chain, path])
    if len(chain) == MAX_FILES:
        raise RecipeError(f"extends more than {MAX_FILES} files deep: {way}", where=str(asked.place))
    try:
        if not _is_ordinary(path):
            raise RecipeError("is no ordinary file")
        text = read_text(path, MAX_BYTES)
    except RecipeError as error:
        what = f"extends {shown(str(asked.node))!r}: {error.what}"
        raise RecipeError(what, where=str(asked.place), fix=error.fix) from None
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise RecipeError(f"a recipe extends itself: {way}", where=str(asked.place))
    return text


def _is_ordinary(path: Path) -> bool:
    """Whether reading can be tried; a pipe or device could block for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return True  # reading says what is wrong
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _named(asked: Entry) -> str:
    if isinstance(asked.node, str) and asked.node:
        return asked.node
    value = "a section" if isinstance(asked.node, Map) else "a list" if isinstance(asked.node, Seq) else asked.node
    raise RecipeError(f"extends: {value!r} should be the path of a recipe", where=str(asked.place))


def _nearby(path: Path) -> str | None:
    try:
        names = sorted(str(p) for p in path.parent.glob("*.y*ml"))[:MAX_NEARBY]
        looked = path.parent.resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    close = difflib.get_close_matches(str(path), names, n=1) or names[:3]
    return f"did you mean {', '.join(map(printable, close))}?" if close else f"looked in {printable(str(looked))}"


def _dotted(name: str) -> tuple[str, ...]:
    """Split `eval.gates.prompts.gain.at_least` at the dots that are not part of a metric's name."""
    for metric in sorted(get_args(Metric), key=len, reverse=True):
        if f"{name}.".startswith(f"{_GATES}{metric}."):
            rest = name[len(_GATES) + len(metric) + 1 :]
            return ("eval", "gates", metric, *(rest.split(".") if rest else ()))
    return tuple(name.split("."))


def _assigned(node: Node, keys: tuple[str, ...], value: Entry, at: tuple[str, ...]) -> Node:
    """Return the tree with a value put at `keys`; the rest is shared with the old one."""
    key, rest = keys[0], keys[1:]
    if isinstance(node, Seq):
        items, numbers = list(node.entries), [str(number) for number in range(len(node.entries))]
        if key not in numbers:
            what = f"{shown('.'.join(at))!r} has {len(items)} items, 0 to {len(items) - 1}, and no {shown(key)!r}"
            raise RecipeError(f"{value.place}: {what}")
        items[int(key)] = _entry(items[int(key)], rest, value, (*at, key))
        return Seq(tuple(items))
    if not isinstance(node, Map):
        raise RecipeError(f"{value.place}: {shown('.'.join(at))!r} is no section of the recipe")
    if not at and not rest:
        return merged(node, Map({key: value}))
    return Map({**node.entries, key: _entry(node.entries.get(key), rest, value, (*at, key))})


def _entry(old: Entry | None, rest: tuple[str, ...], value: Entry, at: tuple[str, ...]) -> Entry:
    if not rest:
        return value
    old = old or Entry(value.place, Map())
    return Entry(old.place, _assigned(old.node, rest, value, at))
