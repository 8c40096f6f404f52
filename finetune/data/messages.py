"""A conversation: turns, their order, tool calls. What every format is turned into."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")
TALK_ROLES = (*ROLES, "tool")
TEXT = "text"  # the one "role" of a row that is plain text, without a chat template
MAX_SHOWN = 80  # characters of a wrong value
# Which roles may follow; a conversation begins with system or user.
_AFTER = {"": ("user",), "system": ("user",), "user": ("assistant",), "tool": ("tool", "assistant")}
# What a chat template may write beside the content. Keys go through as they are, so they must be harmless.
_EXTRAS = ("tool_calls", "tool_call_id", "name")
_KEY = re.compile(r"[\w$ ./:-]{1,128}")


class Message(NamedTuple):
    """One turn; `extra` is the JSON of its tool calls, their ids and names, or empty."""

    role: str
    content: str
    extra: str = ""

    @property
    def trained(self) -> bool:
        return self.role in ("assistant", TEXT)


class Talk(NamedTuple):
    """One conversation; `tools` is the JSON of the tools it may call, or empty."""

    messages: tuple[Message, ...]
    tools: str = ""


class RowError(Exception):
    """What is wrong with a row, and the code of the finding; the reader adds file and line."""

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        super().__init__(what)


def read_turns(items: object, key: str) -> tuple[Message, ...]:
    """Turn a list of {role, content, ...} into messages. Raises RowError."""
    if isinstance(items, str) or not isinstance(items, Sequence) or not items:
        raise RowError("D005", f"{key!r} is no list of turns")
    return tuple(_turn(item, f"turn {number}") for number, item in enumerate(items, 1))


def check_turns(turns: tuple[Message, ...]) -> None:
    """Raise RowError unless a training conversation: roles in order, an answer at the end, no empty answer."""
    check_roles(turns)
    if turns[-1].role != "assistant":
        raise RowError("D005", f"ends with role {turns[-1].role!r}; with something to train it ends with 'assistant'")
    if any(turn.role == "assistant" and not turn.content.strip() and not turn.extra for turn in turns):
        raise RowError("D004", "an assistant turn is empty: nothing to train")


def check_roles(turns: tuple[Message, ...]) -> None:
    """Raise RowError unless the roles are [system] user assistant user assistant ...

    An assistant turn with tool calls is followed by their results (role `tool`) instead.
    """
    previous = ""
    for number, turn in enumerate(turns, 1):
        after_answer = ("tool",) if number > 1 and turns[number - 2].extra else ("user",)
        allowed = _AFTER.get(previous, after_answer)
        if turn.role not in allowed and not (number == 1 and turn.role == "system"):
            raise RowError("D005", f"turn {number} has role {turn.role!r}, expected {' or '.join(map(repr, allowed))}")
        previous = turn.role


def encodable(text: str, name: str) -> str:
    """JSON can spell halves of UTF-16 pairs, which are no text: no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("D002", f"{name} has half of a UTF-16 pair at character {error.start}") from None
    return text


def tools_text(value: object) -> str:
    """Return the JSON of a row's tools (a list, or JSON text of one), or nothing. Raises RowError."""
    tools = _parsed(value, "'tools'") if value else []
    if not isinstance(tools, list):
        raise RowError("D003", f"'tools' is {type(tools).__name__}, expected a list of tool descriptions")
    return _json(tools, "'tools'") if tools else ""


def _turn(item: object, name: str) -> Message:
    if not isinstance(item, Mapping) or "role" not in item:
        raise RowError("D005", f"{name} has no 'role' and 'content'")
    role, extra = item["role"], _extra(item, name)
    if role not in TALK_ROLES:
        raise RowError("D005", f"{name} has role {role!r}, expected one of {', '.join(TALK_ROLES)}")
    if "content" not in item and not extra:
        raise RowError("D005", f"{name} has no 'role' and 'content'")
    return Message(str(role), encodable(_content(item.get("content"), name, bool(extra)), f"{name}: 'content'"), extra)


def _content(value: object, name: str, calls: bool) -> str:
    if value is None and calls:
        return ""  # a turn may be nothing but tool calls
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value
        ]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
        raise RowError("D003", f"{name}: 'content' has parts that are not text")
    if not isinstance(value, str):
        raise RowError("D003", f"{name}: 'content' is {type(value).__name__} {repr(value)[:MAX_SHOWN]}, not text")
    return value


def _extra(item: Mapping[str, Any], name: str) -> str:
    found = {key: item[key] for key in _EXTRAS if item.get(key)}
    if calls := found.get("tool_calls"):
        if item["role"] != "assistant":
            raise RowError("D005", f"{name} has tool calls, which only an assistant makes")
        found["tool_calls"] = [_call(call, name) for call in _parsed(calls, f"{name}: 'tool_calls'")]
    elif item["role"] != "tool":
        return ""  # a speaker's name alone is not part of what templates render
    return _json(found, name) if found else ""


def _call(call: object, name: str) -> object:
    """One tool call, its arguments as a mapping: OpenAI's API spells them as JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("D003", f"{name}: a tool call has no function name")
    arguments = _parsed(function.get("arguments") or {}, f"{name}: the arguments of {function['name']!r}")
    if not isinstance(arguments, Mapping):
        raise RowError("D003", f"{name}: the arguments of {function['name']!r} are no object with named values")
    whole: dict[str, object] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **whole} if isinstance(call, Mapping) and call.get("id") else whole


def _parsed(value: object, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError("D003", f"{name} are not valid JSON: {value[:MAX_SHOWN]!r}") from None


def _json(value: object, name: str) -> str:
    _check_keys(value, name)
    try:
        return encodable(json.dumps(value, ensure_ascii=False), name)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError("D003", f"{name} cannot be written as JSON: {error}") from None


def _check_keys(value: object, name: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise RowError(
                    "D003", f"{name}: the key {repr(key)[:MAX_SHOWN]} holds more than letters, digits and $ ./:-"
                )
            _check_keys(inner, name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner, name)
