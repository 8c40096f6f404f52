"""Formats: one function each, from a row (a mapping) to one conversation.

To add one: write the function, decorate it with its keys, add its name to the recipe's `Format`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from finetune.data.messages import Message, RowError, Talk, check_turns, encodable, read_turns, tools_text
from finetune.errors import DataError

MAX_SHOWN = 80  # characters of a wrong value
Row = Mapping[str, object]
Builder = Callable[[Row], Talk]

# ShareGPT has no standard: these are the speakers that its data sets name.
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class FormatSpec(NamedTuple):
    keys: tuple[str, ...]  # a row must have these
    build: Builder


FORMATS: dict[str, FormatSpec] = {}


def _format(*keys: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        FORMATS[build.__name__] = FormatSpec(keys, build)
        return build

    return register


@_format("instruction", "output")
def instruction(row: Row) -> Talk:
    """`instruction` -> `output`, with an optional `system`."""
    if row.get("input"):
        raise RowError("D003", "has an 'input', which this format would leave out; use format 'alpaca'")
    return _pair(row, "instruction", "output")


@_format("instruction", "output")
def alpaca(row: Row) -> Talk:
    """`instruction` and optional `input` -> `output`; the input stands below the instruction."""
    return _pair(row, "instruction", "output", below="input")


@_format("prompt", "completion")
def prompt_completion(row: Row) -> Talk:
    """`prompt` -> `completion`."""
    return _pair(row, "prompt", "completion")


@_format("question", "answer")
def question_answer(row: Row) -> Talk:
    """`question` -> `answer`, with an optional `context` above the question."""
    return _pair(row, "question", "answer", above="context")


@_format("messages")
def messages(row: Row) -> Talk:
    """A conversation, `messages: [{role, content}, ...]`, with optional `tools`; every assistant turn is trained."""
    turns = read_turns(row["messages"], "messages")
    check_turns(turns)
    return Talk(turns, tools_text(row.get("tools")))


@_format("conversations")
def sharegpt(row: Row) -> Talk:
    """A conversation, `conversations: [{from, value}, ...]`, with an optional `system` and `tools`."""
    items = row["conversations"]
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError("D005", "'conversations' is no list of turns")
    renamed = [_speaker(item, number) for number, item in enumerate(items, 1)]
    turns = (*_system(row), *read_turns(renamed, "conversations"))
    check_turns(turns)
    return Talk(turns, tools_text(row.get("tools")))


@_format("text")
def text(row: Row) -> Talk:
    """Plain `text` without a chat template; every token is trained, and the end of the text."""
    return Talk((Message("text", _completion(row, "text")),))


def find_format(name: str) -> FormatSpec:
    """Return a built-in format, or the function that `package.module:function` names.

    Such a function gets a row and returns a list of {role, content}, a mapping with `messages` and
    `tools`, or None to leave the row out. Raises DataError if it cannot be imported.
    """
    return _custom(name) if ":" in name else FORMATS[name]


def fitting(row: Row) -> list[str]:
    """Names of the built-in formats whose keys the row has."""
    fits = [name for name, spec in FORMATS.items() if set(spec.keys) <= set(row)]
    return [
        name for name in fits if (name == "alpaca") == bool(row.get("input")) or name not in ("alpaca", "instruction")
    ]


def build(row: Row, name: str, columns: Mapping[str, str]) -> Talk | None:
    """Put one row into its format; None if a custom format leaves it out. Raises RowError."""
    spec = find_format(name)
    if columns:
        row = _renamed(row, columns)
    missing = [key for key in spec.keys if key not in row]
    if missing:
        hint = f"; the row fits format {' or '.join(fits)}" if (fits := fitting(row)) else ""
        raise RowError("D003", f"no key {', '.join(map(repr, missing))} (it has {', '.join(map(repr, row))}){hint}")
    return spec.build(row)


def custom_file(name: str) -> Path | None:
    """The file that defines a custom format; None for a built-in one."""
    return Path(str(sys.modules[name.partition(":")[0]].__file__)) if ":" in name and find_format(name) else None


@lru_cache(maxsize=16)
def _custom(name: str) -> FormatSpec:
    module, _, function = name.partition(":")
    try:
        with working_folder_importable():
            call = getattr(import_module(module), function)
    except Exception as error:  # whatever the module does while it is imported
        raise DataError(
            f"cannot be imported: {type(error).__name__}: {error}", where=f"data.format {name!r}",
            fix="it should be package.module:function, importable from the working folder",
        ) from None  # fmt: skip
    if not callable(call):
        raise DataError(f"{function!r} is {type(call).__name__}, not a function", where=f"data.format {name!r}")

    def convert(row: Row) -> Talk | None:
        try:
            made = call(dict(row))
        except Exception as error:  # the user's code: it becomes a finding of that row
            raise RowError("D003", f"{name} raised {type(error).__name__}: {error}") from None
        if made is None:
            return None
        return messages(made if isinstance(made, Mapping) and "messages" in made else {"messages": made})

    return FormatSpec((), convert)  # type: ignore[arg-type]


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    absent = [theirs for theirs in columns.values() if theirs not in row]
    if absent:
        names = ", ".join(map(repr, absent))
        raise RowError("D003", f"no column {names}, which data.columns names (it has {', '.join(map(repr, row))})")
    taken = set(columns.values())
    return {
        **{key: row[key] for key in row if key not in taken},
        **{ours: row[theirs] for ours, theirs in columns.items()},
    }


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let modules of the working folder be imported: an installed command has its own folder on the path."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _speaker(item: object, number: int) -> Row:
    if not isinstance(item, Mapping) or not {"from", "value"} <= set(item):
        raise RowError("D005", f"turn {number} has no 'from' and 'value'")
    speaker = item["from"]
    if speaker == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _as_list(item["value"], number)}
    if speaker not in SHAREGPT_ROLES:
        raise RowError("D005", f"turn {number} is from {speaker!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[speaker], "content": item["value"]}


def _as_list(value: object, number: int) -> list[object]:
    """The tool calls of a `function_call` turn: JSON text of one call or of several."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise RowError("D003", f"turn {number}: the function call is not valid JSON") from None
    return calls if isinstance(calls, list) else [calls]


def _pair(row: Row, prompt: str, completion: str, *, above: str = "", below: str = "") -> Talk:
    parts = [_text(row, key) for key in (above, prompt, below) if key == prompt or row.get(key)]
    turns = (Message("user", "\n\n".join(parts)), Message("assistant", _completion(row, completion)))
    return Talk((*_system(row), *turns))


def _system(row: Row) -> tuple[Message, ...]:
    return (Message("system", _text(row, "system")),) if row.get("system") else ()


def _text(row: Row, key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise RowError("D003", f"{key!r} is {type(value).__name__} {repr(value)[:MAX_SHOWN]}, not text")
    return encodable(value, repr(key))


def _completion(row: Row, key: str) -> str:
    text = _text(row, key)
    if not text.strip():
        raise RowError("D004", f"{key!r} is empty: nothing to train")
    return text
