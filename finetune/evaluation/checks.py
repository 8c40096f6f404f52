"""Checks: one function each, from an answer to what is wrong with it.

To add one: write the function, decorate it, and every prompts file can use its name.
Text is compared exactly as the model wrote it. The one normalisation is `ignore_case: true`,
which compares Unicode case-folded text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import regex as regex_library

from finetune.errors import DataError

REGEX_TIMEOUT = 1.0  # seconds of CPU time; a pattern that backtracks without end must not stop an evaluation
SHOWN = 80  # characters of a value or an answer in a message
SHOWN_VALUES = 5


class Answer(NamedTuple):
    text: str
    stopped: bool  # the model ended its turn by itself
    tokens: int  # generated


@dataclass(frozen=True)
class Check:
    kind: str
    values: tuple[str, ...]
    ignore_case: bool = False


class Outcome(NamedTuple):
    check: str
    passed: bool
    detail: str  # what was wrong; empty if passed


Judge = Callable[[Check, Answer], str | None]
CHECKS: dict[str, Judge] = {}
BOOLEAN_CHECKS: set[str] = set()  # their value is true or false; all others take text or a list of texts


def _check(judge: Judge) -> Judge:
    CHECKS[judge.__name__] = judge
    return judge


def _boolean_check(judge: Judge) -> Judge:
    BOOLEAN_CHECKS.add(judge.__name__)
    return _check(judge)


@_check
def contains(check: Check, answer: Answer) -> str | None:
    """All of the values occur in the answer."""
    text = _fold(check, answer.text)
    missing = [value for value in check.values if _fold(check, value) not in text]
    return f"missing: {_quote(missing)}" if missing else None


@_check
def not_contains(check: Check, answer: Answer) -> str | None:
    """None of the values occurs in the answer."""
    text = _fold(check, answer.text)
    found = [value for value in check.values if _fold(check, value) in text]
    return f"found: {_quote(found)}" if found else None


@_check
def equals(check: Check, answer: Answer) -> str | None:
    """The whole answer is one of the values; leading and trailing spaces count."""
    text = _fold(check, answer.text)
    return None if any(_fold(check, value) == text for value in check.values) else f"got {_quote([answer.text])}"


@_check
def regex(check: Check, answer: Answer) -> str | None:
    """Every pattern is found somewhere in the answer; a search that takes over 1 s of CPU time fails."""
    missing = []
    for value in check.values:
        try:
            if compile_pattern(value, check.ignore_case).search(answer.text, timeout=REGEX_TIMEOUT) is None:
                missing.append(value)
        except TimeoutError:
            return f"timed out after {REGEX_TIMEOUT:g} s: {_quote([value])}; simplify the pattern"
    return f"no match: {_quote(missing)}" if missing else None


@_boolean_check
def stops(check: Check, answer: Answer) -> str | None:
    """Whether the model ended its turn by itself, within generation.max_new_tokens."""
    if answer.stopped == (check.values == ("true",)):
        return None
    return f"stopped by itself after {answer.tokens} tokens" if answer.stopped else f"cut at {answer.tokens} tokens"


def run_check(check: Check, answer: Answer) -> Outcome:
    """Judge one answer by one check."""
    detail = CHECKS[check.kind](check, answer)
    return Outcome(describe(check), detail is None, detail or "")


def describe(check: Check) -> str:
    """Say what a check asks for, in one short line."""
    values = check.values[0] if check.kind in BOOLEAN_CHECKS else _quote(check.values)
    return f"{check.kind} {values}{' (ignoring case)' if check.ignore_case else ''}"


def make_check(kind: str, value: object, ignore_case: object = False) -> Check:
    """Build a check from what a prompts file says.

    Raises DataError if the value is of the wrong type, makes the check pointless, or is a bad pattern.
    """
    if kind in BOOLEAN_CHECKS:
        if not isinstance(value, bool):
            raise DataError(f"{kind}: {value!r} should be true or false")
        if ignore_case is not False:
            raise DataError(f"{kind} has no option 'ignore_case'")
        return Check(kind, ("true" if value else "false",))
    if not isinstance(ignore_case, bool):
        raise DataError(f"ignore_case: {ignore_case!r} should be true or false")
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values:
        raise DataError(f"{kind}: the list is empty, so it checks nothing")
    texts = tuple(_text(kind, item) for item in values)
    if kind == "regex":
        for text in texts:
            compile_pattern(text, ignore_case)
    return Check(kind, texts, ignore_case)


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str, ignore_case: bool) -> regex_library.Pattern[str]:
    """Compile a pattern of the `regex` library. Raises DataError."""
    try:
        return regex_library.compile(pattern, regex_library.IGNORECASE if ignore_case else 0)
    except (regex_library.error, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"regex: {_quote([pattern])} is no valid pattern: {error}") from None


def _text(kind: str, item: object) -> str:
    if not isinstance(item, str):
        raise DataError(f"{kind}: {item!r} should be text; put it in quotes")
    # Every text contains the empty one; only an answer can be required to be empty.
    if not item and kind != "equals":
        raise DataError(f"{kind}: an empty text checks nothing")
    return str(item)


def _fold(check: Check, text: str) -> str:
    return text.casefold() if check.ignore_case else text


def _quote(values: Sequence[str]) -> str:
    shown = ", ".join(repr(v if len(v) <= SHOWN else v[: SHOWN - 1] + "…") for v in values[:SHOWN_VALUES])
    return shown if len(values) <= SHOWN_VALUES else f"{shown} and {len(values) - SHOWN_VALUES} more"
