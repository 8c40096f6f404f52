"""The rows of one JSON list, read through a window that slides over the file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO

from finetune.data.jsontext import LONGEST_PIECE, Refused, explain, is_cut, noun, parse, skip
from finetune.data.streams import CHUNK, MAX_ROW
from finetune.errors import DataError

EXPECTED = "expected a list of objects"
_BLANKS = re.compile(r"[ \t\r\n]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how `surrogateescape` spells bytes that are no UTF-8
_LIST_IN_FRONT = re.compile(r'\{[ \t\r\n]*"([^"\\]{1,80})"[ \t\r\n]*:[ \t\r\n]*\[')


def read_array(stream: BinaryIO, name: str) -> Iterator[tuple[object, str]]:
    """Yield each value of the list, or Refused in its place, and where it stands.

    Raises DataError where the list itself is broken: what stands behind cannot be told apart.
    """
    window = _Window(stream, name)
    if window.peek() != "[":
        raise _no_list(window, name)
    window.move(window.at + 1)
    number, former_line = 0, 0
    more = window.peek() != "]"
    while more:
        value, end = window.value()
        number += 1
        where = f"{name}:{window.line}"
        yield value, where if window.line > former_line else f"{where} (row {number})"
        former_line = window.line
        window.move(end)
        more = window.peek() == ","
        if more:
            window.move(window.at + 1)
            window.peek()
    if window.peek() != "]":
        raise window.broken(JSONDecodeError("expected ',' or ']' behind a row", window.text, window.at))
    window.move(window.at + 1)
    if window.peek():
        raise window.broken(JSONDecodeError("something stands behind the list", window.text, window.at))


class _Window:
    """The part of a text that is being read. It never shrinks below the value at `at`."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self._stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._column = 0  # characters of the first line of the text that are already dropped
        self._all_utf8 = True  # so far, which spares looking for what is not

    def peek(self) -> str:
        """Go to the next character that is not blank and return it, "" at the end of the file."""
        while True:
            self.move(_BLANKS.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def value(self) -> tuple[object, int]:
        """Return the value that begins here, or why it is refused, and the index behind it. Raises DataError."""
        while True:
            try:
                value, end = self._try()
            except JSONDecodeError as error:
                if self.ended or not is_cut(error):
                    raise self.broken(error) from None
            except Refused as error:  # too deep to find its end
                raise DataError(error.problem, where=f"{self._name}:{self.line}") from None
            else:
                if end < len(self.text) - LONGEST_PIECE or self.ended:  # a number may go on
                    return value, end
            self.grow()

    def _try(self) -> tuple[object, int]:
        try:
            value, end = parse(self.text, self.at)
        except Refused as refused:
            return refused, skip(self.text, self.at)
        if not self._all_utf8 and (bad := _NOT_UTF8.search(self.text, self.at, end)):
            return Refused(f"is not UTF-8 text: it holds byte 0x{ord(bad[0]) - 0xDC00:02x}", "encoding"), end
        return value, end

    def grow(self) -> None:
        """Drop what is read and read as much as is left, so that a long value is read in linear time."""
        line_start = self.text.rfind("\n", 0, self.at) + 1
        self._column = self.at - line_start + (self._column if line_start == 0 else 0)
        rest = self.text[self.at :]
        if len(rest) > MAX_ROW:
            raise DataError(f"a row is larger than {MAX_ROW // 2**20} MiB", where=f"{self._name}:{self.line}")
        data = self._stream.read(min(max(CHUNK, len(rest)), MAX_ROW + 1 - len(rest)))
        self.ended = not data
        new = self._decoder.decode(data, self.ended)
        self._all_utf8 = self._all_utf8 and _is_utf8(new)
        self.text, self.at = rest + new, 0

    def broken(self, error: JSONDecodeError) -> DataError:
        """Say where the text stops being JSON; `error` is about the window's text."""
        line_start = self.text.rfind("\n", 0, error.pos) + 1
        line = self.line + self.text.count("\n", self.at, error.pos)
        column = error.pos - line_start + 1 + (self._column if line_start == 0 else 0)
        cut = "; the file seems to end in the middle of a row" if self.ended and is_cut(error) else ""
        return DataError(f"broken JSON: {explain(error)}{cut}", where=f"{self._name}:{line}:{column}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_list(window: _Window, name: str) -> DataError:
    if not window.peek():
        return DataError(f"is empty, {EXPECTED}", where=name)
    window.grow()  # a small file is known to end now
    try:
        value, end = parse(window.text, window.at)
    except JSONDecodeError as error:
        if window.ended or not is_cut(error):
            return window.broken(error)
        front = _LIST_IN_FRONT.match(window.text, window.at)
        return _one_value("an object", [front[1]] if front else [], name)
    except Refused as error:
        return DataError(error.problem, where=f"{name}:{window.line}")
    window.move(end)
    if isinstance(value, dict) and window.peek() == "{":
        fix = "give its name the ending .jsonl"
        return DataError(f"holds one object behind the other, {EXPECTED}", where=name, fix=fix)
    lists = [str(key) for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    return _one_value(noun(value), lists, name)


def _one_value(what: str, lists: list[str], name: str) -> DataError:
    fix = f"its key {lists[0]!r} holds a list: save that list" if lists else None
    return DataError(f"holds {what}, {EXPECTED}", where=name, fix=fix)
