"""Rows, checks and the split into training and held-out combinations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Check = dict[str, Any]
HELD_SHARE = 6  # one combination in six is held out
MAX_MISSES = 20_000


@dataclass(frozen=True)
class Row:
    """One request with its reply, and the checks that a good reply passes."""

    instruction: str
    output: str
    kind: str
    combination: str
    checks: tuple[Check, ...] = ()


Maker = Callable[[Random], Row]


class Deck(Generic[T]):
    """Draws every card once before any card comes again, so that facts are covered evenly."""

    def __init__(self, cards: Sequence[T]) -> None:
        """Keep the cards; the first draw shuffles them."""
        self._cards = list(cards)
        self._left: list[T] = []

    def draw(self, rng: Random) -> T:
        """Return the next card, reshuffling when all are used."""
        if not self._left:
            self._left = rng.sample(self._cards, len(self._cards))
        return self._left.pop()


def is_held_out(combination: str) -> bool:
    """Tell by a hash of the combination alone on which side of the split it lies."""
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_SHARE == 0


def contains(*texts: str) -> Check:
    """Check that the reply contains every text, whatever the case."""
    return {"contains": texts[0] if len(texts) == 1 else list(texts), "ignore_case": True}


def lacks(*texts: str) -> Check:
    """Check that the reply contains none of the texts, whatever the case."""
    return {"not_contains": list(texts), "ignore_case": True}


def matches(pattern: str) -> Check:
    """Check that the pattern is found in the reply."""
    return {"regex": pattern}


def copied(text: str) -> Check:
    """Check that the address or time is there, and not as the tail of a longer number."""
    return matches(rf"(?i)(?<![\d:]){text}\b")


def pool(text: str) -> tuple[str, ...]:
    """Return the alternatives that bars separate; a leading bar adds the empty one."""
    return tuple(text.split("|"))


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def sentence(*parts: str) -> str:
    """Join the parts that are not empty, with a capital at the start and a small letter after a comma."""
    text = ""
    for part in filter(None, parts):
        if text.endswith((",", "but", "afraid", ":")) and not part.startswith(("I ", "I'", "Luna")):
            part = part[0].lower() + part[1:]
        text = f"{text} {part}" if text else capital(part)
    return text


@dataclass
class Split:
    """The three lists that one data set is written from."""

    train: list[Row]
    held: list[Row]
    prompts: list[Row]


def collect(maker: Maker, rng: Random, counts: tuple[int, int, int], seen: set[str]) -> Split:
    """Draw rows until each part of the split is full; instructions never repeat."""
    split, misses = Split([], [], []), 0
    n_train, n_held, n_prompts = counts
    while (len(split.train), len(split.held), len(split.prompts)) != counts:
        row = maker(rng)
        key = row.instruction.lower()
        held = is_held_out(row.combination)
        if not held and len(split.train) < n_train:
            target = split.train
        elif held and len(split.held) < n_held:
            target = split.held
        elif held and len(split.prompts) < n_prompts:
            target = split.prompts
        else:
            key = ""
        if not key or key in seen:
            misses += 1
            if misses > MAX_MISSES:
                raise RuntimeError(f"too few different requests of kind {row.kind}: {split.train[:1]}")
            continue
        seen.add(key)
        target.append(row)
    return split


def build(plan: Sequence[tuple[Maker, tuple[int, int, int]]], seed: str) -> Split:
    """Collect every maker's quota, then shuffle the three parts."""
    whole, seen = Split([], [], []), set[str]()
    for number, (maker, counts) in enumerate(plan):
        part = collect(maker, Random(f"{seed}-{number}"), counts, seen)
        whole.train += part.train
        whole.held += part.held
        whole.prompts += part.prompts
    Random(f"{seed}-shuffle").shuffle(whole.train)
    Random(f"{seed}-shuffle").shuffle(whole.held)
    return whole


def retitled(row: Row, kind: str, instruction: str) -> Row:
    """Return the row with another kind and wording of the request."""
    return replace(row, kind=kind, instruction=instruction)
