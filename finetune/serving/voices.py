"""Who answers: the base, an adapter, or a weighted sum of adapters, as one short text.

None                      the base
pizza                     an adapter
pizza+0.5*cheerful        a blend: the changes of both, one of them halved
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetune.errors import AdapterError

MAX_PARTS = 8
MAX_TEXT = 1024  # characters
SMALLEST, LARGEST = 0.0001, 100.0  # weights, by their size

_PART = re.compile(r"(?:(?P<weight>-?[0-9]{1,3}(?:\.[0-9]{0,24})?)\*)?(?P<name>[^*+]+)")
_FIX = "write an adapter's name, or a blend such as pizza+0.5*cheerful"


@dataclass(frozen=True)
class Voice:
    parts: tuple[tuple[str, float], ...]  # names with their weights; none: the base

    def __str__(self) -> str:
        return "+".join(name if weight == 1 else f"{_number(weight)}*{name}" for name, weight in self.parts)


def parse_voice(text: str | None) -> Voice:
    """Read a voice; `str` of it is the same text in its canonical form. Raises AdapterError."""
    if text is None:
        return Voice(())
    if len(text) > MAX_TEXT:
        raise AdapterError(f"a voice of {len(text)} characters is more than {MAX_TEXT}", fix=_FIX)
    parts = tuple(_part(part.strip(), text) for part in text.split("+"))
    names = [name for name, _ in parts]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise AdapterError(f"blend {text!r} names {double!r} twice", fix="give it once, with the sum of its weights")
    if len(parts) > MAX_PARTS:
        raise AdapterError(f"blend {text[:80]!r} has {len(parts)} parts, more than {MAX_PARTS}", fix="blend fewer")
    return Voice(parts)


def _part(part: str, text: str) -> tuple[str, float]:
    found = _PART.fullmatch(part)
    if found is None or not found["name"].strip():
        raise AdapterError(f"{text[:80]!r} is no voice: {part[:80]!r} is neither NAME nor WEIGHT*NAME", fix=_FIX)
    weight = float(found["weight"] or 1)
    if not SMALLEST <= abs(weight) <= LARGEST:
        fix = f"give one from {_number(SMALLEST)} to {_number(LARGEST)}, or its negative"
        raise AdapterError(f"{text[:80]!r}: weight {found['weight']} is out of range", fix=fix)
    return found["name"].strip(), weight


def _number(value: float) -> str:
    """The shortest text that reads as the same number."""
    return repr(value).removesuffix(".0")
