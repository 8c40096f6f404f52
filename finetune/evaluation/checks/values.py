"""What may stand in a prompts file as the value or an option of a check: one type each.

A check's parameters are annotated with these types; what is written there is read and refused by them.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Annotated, NamedTuple

import regex as regex_library

from finetune.evaluation.checks.normalize import STEPS

SHOWN = 80  # characters of a value or an answer in a message
SHOWN_VALUES = 5
MAX_REFERENCE = 20_000  # characters of all references of one check; comparing takes time with their length
MAX_JSON = 100_000  # characters of a schema or of options


class Kind(NamedTuple):
    read: Callable[[object], Hashable]  # raises ValueError saying what it should be
    says: str  # for the documentation


def quote(values: Sequence[str]) -> str:
    """Show the first few texts, shortened."""
    shown = ", ".join(repr(v if len(v) <= SHOWN else v[: SHOWN - 1] + "…") for v in values[:SHOWN_VALUES])
    return shown if len(values) <= SHOWN_VALUES else f"{shown} and {len(values) - SHOWN_VALUES} more"


def one_line(text: object) -> str:
    """Put somebody else's message into one short line."""
    line = " ".join(str(text).split())
    return line if len(line) <= 2 * SHOWN else line[: 2 * SHOWN - 1] + "…"


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str, ignore_case: bool = False) -> regex_library.Pattern[str]:
    """Compile a pattern of the `regex` library. Raises ValueError."""
    try:
        return regex_library.compile(pattern, regex_library.IGNORECASE if ignore_case else 0)
    except (regex_library.error, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{quote([pattern])} is no valid pattern: {one_line(error)}") from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} should be true or false")
    return value


def _number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{value!r} should be a number")
    return Decimal(int(value)) if isinstance(value, int) else Decimal(repr(float(value)))


def _tolerance(value: object) -> Decimal:
    if (number := _number(value)) < 0:
        raise ValueError(f"{value!r} should be 0 or more")
    return number


def _share(value: object) -> float:
    # A bound of 0 would let every answer pass.
    if not 0 < (number := float(_number(value))) <= 1:
        raise ValueError(f"{value!r} should be above 0 and at most 1")
    return number


def _score(value: object) -> float:
    if not 1 < (number := float(_number(value))) <= 5:
        raise ValueError(f"{value!r} should be above 1 and at most 5")
    return number


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} should be a whole number, 1 or more")
    return int(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} should be text; put it in quotes")
    return str(value)


def _filled(value: object) -> str:
    # Every text contains the empty one; only an answer can be required to be empty.
    if not (text := _text(value)):
        raise ValueError("an empty text checks nothing")
    return text


def _list(value: object, read: Callable[[object], str]) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    if not items:
        raise ValueError("the list is empty, so it checks nothing")
    return tuple(map(read, items))


def _patterns(value: object) -> tuple[str, ...]:
    texts = _list(value, _filled)
    for text in texts:
        compile_pattern(text)
    return texts


def _references(value: object) -> tuple[str, ...]:
    texts = _list(value, _filled)
    if any(not text.strip() for text in texts):
        raise ValueError("a reference of white space alone checks nothing")
    if (size := sum(map(len, texts))) > MAX_REFERENCE:
        raise ValueError(f"{size:,} characters of references are more than {MAX_REFERENCE:,}; shorten them")
    return texts


def _steps(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{value!r} should be a list of {', '.join(STEPS)}")
    for index, item in enumerate(value):
        _one_of(item, tuple(STEPS))
        if item in value[:index]:
            raise ValueError(f"{item!r} is given twice")
    return tuple(step for step in STEPS if step in value)


def _which(value: object) -> str:
    return _one_of(value, ("only", "first", "last"))


def _one_of(value: object, choices: Sequence[str]) -> str:
    if value in choices:
        return str(value)
    close = difflib.get_close_matches(str(value)[:SHOWN], choices, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(choices)}"
    raise ValueError(f"{value!r} is not known; {hint}")


def _json_text(value: object) -> str:
    """Keep a mapping as JSON text, which can be hashed."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{one_line(repr(value))} should be a mapping")
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"should hold nothing but what JSON has: {one_line(error)}") from None
    if len(text) > MAX_JSON:
        raise ValueError(f"{len(text):,} characters are more than {MAX_JSON:,}")
    return text


Flag = Annotated[bool, Kind(_flag, "true or false")]
Number = Annotated[Decimal, Kind(_number, "a number")]
Tolerance = Annotated[Decimal, Kind(_tolerance, "a number from 0")]
Share = Annotated[float, Kind(_share, "a number above 0, at most 1")]
Score = Annotated[float, Kind(_score, "a number above 1, at most 5")]
Count = Annotated[int, Kind(_count, "a whole number from 1")]
Text = Annotated[str, Kind(_filled, "text")]
Texts = Annotated[tuple[str, ...], Kind(lambda value: _list(value, _filled), "text or a list of texts")]
MaybeEmpty = Annotated[tuple[str, ...], Kind(lambda value: _list(value, _text), "text or a list of texts")]
Patterns = Annotated[tuple[str, ...], Kind(_patterns, "a pattern or a list of patterns")]
References = Annotated[tuple[str, ...], Kind(_references, "text or a list of texts")]
Normalize = Annotated[tuple[str, ...], Kind(_steps, "a list of steps, see below")]
Which = Annotated[str, Kind(_which, "only, first or last")]
JsonText = Annotated[str, Kind(_json_text, "a mapping")]
