"""Which words of one text are not in another, in bounded time.

The algorithm is the greedy one of Myers, "An O(ND) Difference Algorithm and Its Variations", 1986:
time and memory grow with the square of the number of differences, which is bounded here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

MAX_EDITS = 80  # words added and taken away; of texts further apart nothing is marked
COMMON = 0.2  # share of words in common below which marks would cover everything
_WORDS = re.compile(r"(\w+|[^\w\s]|^)(\s*)")  # a word or a sign, and the white space behind it

Kind = Literal["same", "changed"]


class Span(NamedTuple):
    kind: Kind
    text: str


def compare(before: str, after: str) -> tuple[tuple[Span, ...], tuple[Span, ...]] | None:
    """Return both texts in spans, "changed" where the other has no such words; None if they are too far apart."""
    both = _WORDS.findall(before), _WORDS.findall(after)
    old, new = ([word for word, _ in tokens] for tokens in both)
    shared = (Counter(old) & Counter(new)).total()  # never less than what stands in the same order
    if len(old) + len(new) - 2 * shared > MAX_EDITS:
        return None
    head = _equal_ends(old, new)
    tail = _equal_ends(old[head:][::-1], new[head:][::-1])
    pairs = _matches(old[head : len(old) - tail], new[head : len(new) - tail])
    if pairs is None or head + len(pairs) + tail < COMMON * max(len(old), len(new)):
        return None
    kept_old = {*range(head), *(head + x for x, _ in pairs), *range(len(old) - tail, len(old))}
    kept_new = {*range(head), *(head + y for _, y in pairs), *range(len(new) - tail, len(new))}
    return _spans(both[0], kept_old), _spans(both[1], kept_new)


def _equal_ends(old: Sequence[str], new: Sequence[str]) -> int:
    for place, (first, second) in enumerate(zip(old, new, strict=False)):
        if first != second:
            return place
    return min(len(old), len(new))


def _matches(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]] | None:
    """Places of a longest common subsequence, or None if more than MAX_EDITS tokens differ."""
    furthest, history = {1: 0}, []
    for edits in range(min(len(old) + len(new), MAX_EDITS) + 1):
        history.append(dict(furthest))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1])
            x = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            while x < len(old) and 0 <= x - diagonal < len(new) and old[x] == new[x - diagonal]:
                x += 1
            furthest[diagonal] = x
            if x >= len(old) and x - diagonal >= len(new):
                return _walk_back(history, len(old), len(new))
    return None


def _walk_back(history: Sequence[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs = []
    for edits in range(len(history) - 1, -1, -1):
        furthest, diagonal = history[edits], x - y
        down = diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1])
        before = diagonal + 1 if down else diagonal - 1
        start_x = furthest[before] if edits else 0
        start_y = start_x - before if edits else 0
        while x > start_x and y > start_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = start_x, start_y
    return pairs[::-1]


def _spans(tokens: Sequence[tuple[str, str]], kept: set[int]) -> tuple[Span, ...]:
    """Join neighbours; white space behind the last of several changed words is not marked."""
    spans: list[tuple[Kind, list[str]]] = [("same", [])]
    for place, (word, space) in enumerate(tokens):
        kind: Kind = "same" if place in kept else "changed"
        if kind != spans[-1][0]:
            spans.append((kind, []))
        spans[-1][1].append(word)
        if kind == "changed" and (place + 1 == len(tokens) or place + 1 in kept):
            spans.append(("same", []))
        spans[-1][1].append(space)
    joined = (Span(kind, "".join(parts)) for kind, parts in spans)
    return tuple(span for span in joined if span.text)
