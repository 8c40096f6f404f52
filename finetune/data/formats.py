"""Formats: one function each, from a row (a mapping) to the messages of one conversation.

To add one: write the function, decorate it with its keys, add its name to `Format` in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

ROLES = ("system", "user", "assistant")
MAX_SHOWN = 80  # characters of a wrong value
Row = Mapping[str, object]


class Message(NamedTuple):
    role: str
    content: str


class FormatSpec(NamedTuple):
    keys: tuple[str, ...]  # a row must have these
    build: Callable[[Row], tuple[Message, ...]]


class RowError(Exception):
    """What is wrong with a row; the reader adds file and line."""


FORMATS: dict[str, FormatSpec] = {}
Builder = Callable[[Row], tuple[Message, ...]]


def _format(*keys: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        FORMATS[build.__name__] = FormatSpec(keys, build)
        return build

    return register


@_format("instruction", "output")
def instruction(row: Row) -> tuple[Message, ...]:
    """`instruction` -> `output`, with an optional `system`."""
    if row.get("input"):
        raise RowError("has an 'input', which this format would leave out; use format 'alpaca'")
    return _pair(row, "instruction", "output")


@_format("instruction", "output")
def alpaca(row: Row) -> tuple[Message, ...]:
    """`instruction` and optional `input` -> `output`; the input stands below the instruction."""
    extra = _text(row, "input") if row.get("input") else ""
    user = f"{_text(row, 'instruction')}\n\n{extra}" if extra else _text(row, "instruction")
    return (*_system(row), Message("user", user), Message("assistant", _completion(row, "output")))


@_format("prompt", "completion")
def prompt_completion(row: Row) -> tuple[Message, ...]:
    """`prompt` -> `completion`."""
    return _pair(row, "prompt", "completion")


@_format("messages")
def messages(row: Row) -> tuple[Message, ...]:
    """A whole conversation, `messages: [{role, content}, ...]`; every assistant turn is trained."""
    items = row["messages"]
    if not isinstance(items, (list, tuple)) or not items:
        raise RowError("'messages' is no list of turns")
    turns = tuple(_turn(item, index) for index, item in enumerate(items))
    check_roles(turns)
    if turns[-1].role != "assistant":
        raise RowError(
            f"'messages' ends with role {turns[-1].role!r}; with something to train it ends with 'assistant'"
        )
    if any(t.role == "assistant" and not t.content.strip() for t in turns):
        raise RowError("an assistant turn is empty: nothing to train")
    return turns


def check_roles(turns: tuple[Message, ...]) -> None:
    """Raise RowError unless the roles are [system] user assistant user assistant ..."""
    body = turns[1:] if turns[0].role == "system" else turns
    for index, turn in enumerate(body):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            number = index + len(turns) - len(body) + 1
            raise RowError(f"turn {number} has role {turn.role!r}, expected {expected!r}")


def _turn(item: object, index: int) -> Message:
    if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
        raise RowError(f"turn {index + 1} has no 'role' and 'content'")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise RowError(f"turn {index + 1} has role {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"turn {index + 1}: 'content' is {type(content).__name__}, not text")
    return Message(str(role), _encodable(content, f"turn {index + 1}: 'content'"))


def _pair(row: Row, prompt: str, completion: str) -> tuple[Message, ...]:
    return (*_system(row), Message("user", _text(row, prompt)), Message("assistant", _completion(row, completion)))


def _system(row: Row) -> tuple[Message, ...]:
    return (Message("system", _text(row, "system")),) if row.get("system") else ()


def _text(row: Row, key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise RowError(f"{key!r} is {type(value).__name__} {repr(value)[:MAX_SHOWN]}, not text")
    return _encodable(value, repr(key))


def _encodable(text: str, name: str) -> str:
    """JSON can spell halves of UTF-16 pairs, which are no text: no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} has half of a UTF-16 pair at character {error.start}") from None
    return text


def _completion(row: Row, key: str) -> str:
    text = _text(row, key)
    if not text.strip():
        raise RowError(f"{key!r} is empty: nothing to train")
    return text
