"""YAML text -> a tree of plain values that knows where everything stands; safe for any input.

Built from ruamel's parser events, not from its loaders: tags construct nothing, aliases are shared until
`expand` counts them out, and everything is bounded, so that no text takes long or fills the memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from finetune.errors import RecipeError
from finetune.recipe.contradictions import Location

MAX_NODES = 10_000  # of one resolution, aliases expanded; a recipe has under a hundred
MAX_DEPTH = 32
MAX_DIGITS = 40  # longer whole numbers fit no key, and Python takes long to print them
MAX_SHOWN = 80  # characters of a wrong value or name

# YAML 1.2's core schema, and exponents without a dot.
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {text: text[0] in "tT" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BASES = {"0o": 8, "0x": 16}


class Place(NamedTuple):
    """Where a value stands: in a file, or (line 0) in an override."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    @property
    def origin(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Entry(NamedTuple):
    place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Map:
    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seq:
    entries: tuple[Entry, ...]


Scalar: TypeAlias = str | int | float | bool | None
Node: TypeAlias = Map | Seq | Scalar


class Budget:
    """Counts the values of one resolution over all files and overrides."""

    def __init__(self) -> None:
        self.left = MAX_NODES

    def spend(self, place: Place, depth: int = 0, count: int = 1) -> None:
        """Raise RecipeError when there are too many values or levels."""
        self.left -= count
        if self.left < 0 or depth > MAX_DEPTH:
            what = f"expands to more than {MAX_NODES} values or {MAX_DEPTH} levels"
            raise RecipeError(what, where=str(place), fix="remove nested aliases and lists")


def printable(text: str) -> str:
    """Escape what cannot be printed on one line, as in a file's name."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def shown(text: str) -> str:
    """Make any text fit for a message: printable and short."""
    cut = printable(text[:MAX_SHOWN])
    return cut if len(text) <= MAX_SHOWN else f"{cut}..."


def is_text(text: str) -> bool:
    """Say whether text can be written in UTF-8; halves of UTF-16 pairs cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def scalar(text: str) -> Scalar:
    """Read one plain scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
        base = _BASES.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text


def parse(text: str, source: str, budget: Budget, *, located: bool = True) -> Entry:
    """Parse one YAML document. Raises RecipeError with the place of what is wrong.

    Places are `source`:line:column, or `source` alone if not `located`.
    """

    def place(line: int, column: int) -> Place:
        return Place(source, line + 1, column + 1) if located else Place(source)

    builder = _Builder(place, budget)
    try:
        return builder.document(YAML(typ="safe", pure=True).parse(text))
    except RecipeError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line, mark.column) if mark else builder.last
        what = error.problem or error.context
    except ReaderError as error:
        before = text[: error.position]
        where = place(before.count("\n"), len(before) - before.rfind("\n") - 1)
        what = f"the character U+{ord(text[error.position]):04X} is not allowed"
    except Exception as error:  # odd escapes make ruamel stumble over anything, assertions included
        where, what = builder.last, str(error) or type(error).__name__
    raise RecipeError(f"is not valid YAML: {shown(str(what))}", where=str(where))


def expand(entry: Entry, budget: Budget) -> tuple[Any, dict[Location, Place]]:
    """Turn a tree into plain values and the places of all of them; lists become tuples."""
    places: dict[Location, Place] = {}

    def plain(entry: Entry, at: Location) -> Any:
        budget.spend(entry.place, len(at))
        places[at] = entry.place
        if isinstance(entry.node, Map):
            return {key: plain(inner, (*at, key)) for key, inner in entry.node.entries.items()}
        if isinstance(entry.node, Seq):
            return tuple(plain(inner, (*at, index)) for index, inner in enumerate(entry.node.entries))
        return entry.node

    value = plain(entry, ())
    del places[()]
    return value, places


class _Builder:
    """Events -> entries; recursive, as deep as MAX_DEPTH."""

    def __init__(self, place: Callable[[int, int], Place], budget: Budget) -> None:
        self.place, self.budget, self.last = place, budget, place(0, 0)
        self.anchors: dict[str, Node] = {}

    def document(self, events: Iterator[Any]) -> Entry:
        next(events)  # the stream's start
        entry = Entry(self.last, None)
        if isinstance(next(events), DocumentStartEvent):
            entry = self.entry(next(events), events, 0)
            while isinstance(event := next(events), DocumentEndEvent):
                pass
            if not isinstance(event, StreamEndEvent):
                where = str(self._place_of(event))
                raise RecipeError("another document begins here", where=where, fix="a file holds one recipe")
        return entry

    def entry(self, event: Any, events: Iterator[Any], depth: int) -> Entry:
        place = self._place_of(event)
        self.budget.spend(place, depth)
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                # Inside its own anchor, an alias would have no end; anchors count from where they end.
                raise RecipeError(f"no anchor '&{shown(event.anchor)}' ends before this alias", where=str(place))
            return Entry(place, self.anchors[event.anchor])
        if event.tag is not None:
            what = f"tag {shown(str(event.tag))!r} is not allowed"
            raise RecipeError(what, where=str(place), fix="remove it; quotes make text of a value")
        node: Node
        if isinstance(event, ScalarEvent):
            node = scalar(event.value) if event.style is None else self._text(event.value, place)
        elif isinstance(event, SequenceStartEvent):
            node = self._seq(events, depth)
        else:
            node = self._map(events, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return Entry(place, node)

    def _seq(self, events: Iterator[Any], depth: int) -> Seq:
        items = []
        while not isinstance(event := next(events), SequenceEndEvent):
            items.append(self.entry(event, events, depth + 1))
        return Seq(tuple(items))

    def _map(self, events: Iterator[Any], depth: int) -> Map:
        entries: dict[str, Entry] = {}
        merged: list[Map] = []
        while not isinstance(event := next(events), MappingEndEvent):
            place = self._place_of(event)
            self.budget.spend(place)
            key = self._key(event, place)
            value = self.entry(next(events), events, depth + 1)
            merges = key == "<<" and event.style is None
            if merged if merges else key in entries:
                raise RecipeError(f"duplicate key {shown(key)!r}", where=str(place), fix="keep one of them")
            if merges:
                merged = self._merged(value)
            else:
                entries[key] = Entry(place, value.node)
        for other in merged:
            entries = {**other.entries, **entries}
        return Map(entries)

    def _key(self, event: Any, place: Place) -> str:
        if isinstance(event, ScalarEvent) and event.tag is None:
            if event.anchor is not None:
                self.anchors[event.anchor] = event.value
            return self._text(event.value, place)
        raise RecipeError("a key should be plain text", where=str(place))

    def _text(self, text: str, place: Place) -> str:
        """Refuse what an escape in double quotes can spell and no encoding can write."""
        if is_text(text):
            return text
        raise RecipeError(f"{shown(text)!r} holds half of a UTF-16 pair, which is no text", where=str(place))

    def _merged(self, value: Entry) -> list[Map]:
        """Return the mappings behind `<<`, the one that counts most first."""
        nodes = [item.node for item in value.node.entries] if isinstance(value.node, Seq) else [value.node]
        maps = [node for node in nodes if isinstance(node, Map)]
        if len(maps) < len(nodes) or not maps:
            raise RecipeError("'<<' should be followed by a mapping or a list of them", where=str(value.place))
        self.budget.spend(value.place, count=sum(len(node.entries) for node in maps))
        return maps

    def _place_of(self, event: Any) -> Place:
        self.last = self.place(event.start_mark.line, event.start_mark.column)
        return self.last


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
