"""One JSON value out of a text, held to what a row of data may be.

The standard library keeps the last of two equal keys and reads NaN. Both are refused here: in a data file they are
mistakes.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from json import JSONDecodeError

SHOWN_KEY = 80  # characters of a key in a message
BLANKS = " \t\r\n"
LONGEST_PIECE = 16  # characters that are no JSON, or another value, without the last of them: `\uXXXX` twice, `12.`
# Every key that is written ends with one of these. Texts may hold more, so the count is an upper bound.
_KEY_END = re.compile(r'"[ \t\r\n]*:')
_NOUNS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", type(None): "null"}
_ODD_CHARACTERS = {"\0": "a NUL byte", "\ufeff": "a byte order mark"}
_PLAIN_WORDS = {
    "Unterminated string starting at": "a text that is never closed",
    "Invalid control character at": "a control character in a text, where JSON wants an escape such as \\n or \\t",
}


class Refused(Exception):
    """A value that is JSON, or nearly, but cannot be a row."""

    def __init__(self, problem: str, code: str = "syntax") -> None:
        self.problem, self.code = problem, code
        super().__init__(problem)


def parse(text: str, start: int = 0) -> tuple[object, int]:
    """Read the value at `start`; return it with the index behind it.

    Raises JSONDecodeError for broken syntax, Refused for equal keys, NaN, and what is too deep or too long.
    """
    try:
        value, end = _FAST.raw_decode(text, start)
        if len(_KEY_END.findall(text, start, end)) != _count_keys(value):
            _EXACT.raw_decode(text, start)  # slower; raises if a key occurs twice
    except RecursionError:
        raise Refused("is nested too deeply") from None
    except JSONDecodeError:
        raise
    except ValueError:  # the interpreter's bound, for converting takes quadratic time
        raise Refused(f"holds a number of more than {sys.get_int_max_str_digits():,} digits") from None
    return value, end


def skip(text: str, start: int) -> int:
    """Return the index behind the value at `start`, which `parse` refused. Raises JSONDecodeError and Refused."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except RecursionError:
        raise Refused("is nested too deeply") from None


def is_cut(error: JSONDecodeError) -> bool:
    """Say whether the text ends inside of the value, so that more of it could mend the error."""
    # An open string is reported at its start, everything else where it stops.
    return error.pos >= len(error.doc) - LONGEST_PIECE or error.msg.startswith("Unterminated string")


def explain(error: JSONDecodeError) -> str:
    """Say what stands where a text stops being JSON."""
    at = error.doc[error.pos : error.pos + 1]
    return _ODD_CHARACTERS.get(at) or _PLAIN_WORDS.get(error.msg, error.msg)


def noun(value: object) -> str:
    """Name the kind of a JSON value."""
    return str(value).lower() if isinstance(value, bool) else _NOUNS[type(value)]


def _count_keys(value: object) -> int:
    items: Iterator[object]
    if isinstance(value, dict):
        count, items = len(value), iter(value.values())
    elif isinstance(value, list):
        count, items = 0, iter(value)
    else:
        return 0
    for item in items:
        if item.__class__ is dict or item.__class__ is list:
            count += _count_keys(item)
    return count


def _refuse_constant(name: str) -> object:
    raise Refused(f"holds {name}, which is no JSON")


def _refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Refused(f"key {twice[:SHOWN_KEY]!r} occurs twice")
    return row


_FAST = json.JSONDecoder(parse_constant=_refuse_constant)
_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
_LENIENT = json.JSONDecoder(parse_int=len)
