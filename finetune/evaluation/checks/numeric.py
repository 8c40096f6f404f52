"""The check of a number in the answer."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from decimal import Decimal, localcontext
from itertools import islice

from finetune.evaluation.checks.core import Answer, check
from finetune.evaluation.checks.values import SHOWN_VALUES, Number, Tolerance, Which, quote

LONGEST = 100  # characters of a number; nobody asks for a longer one
_EXACT = 3000  # digits that hold the difference of any two numbers that are compared
_DIGITS = re.compile(
    r"(?<!\w)(?:(?:[0-9]{1,3}+(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
    r"(?:[eE][-+]?[0-9]{1,3}(?!\w))?"
)

_MINUS = re.compile(r"(?<![\w)\]])[-−]$")


@check
def number(answer: Answer, value: Number, *, tolerance: Tolerance = Decimal(0), which: Which = "only") -> str | None:
    """The answer has a number that is at most `tolerance` away from the value.

    `which` says the number that counts: the only one (any other number fails), the first or the last.
    Numbers are written as in English, with `,` between thousands and `.` before decimals: `1,234.5`; so
    `1,23` is two numbers. `-`, `+`, a currency sign before and a unit behind are understood. Digits behind
    a letter (`A4`) are no number, number words are not read.

    Example: {number: 1234.5, tolerance: 0.5, which: last}
    """
    matches = _DIGITS.finditer(answer.text)
    found = [_written(m) for m in (deque(matches, 1) if which == "last" else islice(matches, SHOWN_VALUES))]
    if not found:
        return "no number"
    if which == "only" and len(found) > 1:
        return f"more than one number: {quote(found)}"
    text = found[0]
    return None if len(text) <= LONGEST and _near(Decimal(text), value, tolerance) else f"got {quote([text])}"


def _written(match: re.Match[str]) -> str:
    """Write a number as Decimal takes it. A sign counts in front of a word alone: "3-5" has no negative number."""
    before = match.string[max(0, match.start() - 3) : match.start()]
    if before and unicodedata.category(before[-1]) == "Sc":
        before = before[:-1]
    sign = "-" if _MINUS.search(before) else ""
    return sign + match.group().replace(",", "")


def _near(found: Decimal, value: Decimal, tolerance: Decimal) -> bool:
    with localcontext(prec=_EXACT):
        return abs(found - value) <= tolerance
