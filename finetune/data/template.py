"""A chat template seen from outside: what stands around the contents, and which of it is trained.

A conversation is rendered by the model's chat template with a placeholder for every text that comes
from the data. What stands between the placeholders is the template's own. An assistant turn is
trained from behind the generation prompt to its end-of-turn token; nothing else is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from threading import RLock
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from finetune.data.messages import Message
from finetune.errors import ModelError

# Private-use characters: no template looks for them, no trim removes them. The quote tells whether the
# template wrote the text as JSON, which escapes it.
_OPEN, _CLOSE, _QUOTE = "\ue0f0", "\ue0f1", '"'
_PLACEHOLDER = re.compile(rf"{_OPEN}(\d+)((?:\\*\")?){_CLOSE}")
# Words of a tool description that templates look at ("function", "object") and that cannot be anything else.
_HARMLESS = re.compile(r"[A-Za-z0-9_.-]{0,64}")
# Llama 3's template writes today's date: ids would change overnight. This is the date it falls back to.
_TODAY = datetime(2024, 7, 26)
_STRFTIME = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    tokenizer: PreTrainedTokenizerBase
    generation_prompt: str  # what the template adds before an answer
    end_of_turn: int
    stop_ids: frozenset[int]
    trims: bool  # the template strips white space around contents
    joint: bool  # text must be tokenised as a whole: the tokenizer marks the start of a text
    # Tokenizers are switched between "text" and "template" mode, so two threads may not use one at once.
    lock: Any = field(default_factory=RLock, repr=False)


class Leaf(NamedTuple):
    """A text of the data."""

    text: str
    owner: int  # index of its message, or -1 for a tool description
    content: bool = True  # a message's content, which some templates trim


class Piece(NamedTuple):
    """A stretch of the rendered conversation."""

    text: str  # the template's own, or empty where a leaf stands
    leaf: int  # index of the leaf that stands here, or -1
    escapes: int  # how many times the template writes the leaf as JSON
    trained: bool


class _Masked(NamedTuple):
    rows: list[dict[str, Any]]
    tools: list[Any] | None
    leaves: tuple[Leaf, ...]


def outline(
    messages: Sequence[Message], tools: str, template: ChatTemplate, *, generation_prompt: bool
) -> tuple[tuple[Piece, ...], tuple[str, ...]]:
    """Return the pieces of a conversation and the texts that stand in them.

    Raises ModelError (or jinja2's TemplateError) if the template cannot express it.
    """
    if tools or any(message.extra for message in messages):
        masked = _mask(messages, tools)
        pieces = _pieces(masked, template, generation_prompt=generation_prompt)
        _compare(messages, tools, template, pieces, masked, generation_prompt=generation_prompt)
    else:
        pieces = _plain_outline(tuple(m.role for m in messages), template, generation_prompt)
        masked = _Masked([], None, tuple(Leaf(m.content, i) for i, m in enumerate(messages)))
    return pieces, tuple(_written(piece, masked, template) for piece in pieces)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: str = "", *, generation_prompt: bool
) -> str:
    """Render a conversation as the model's authors would, with a fixed date in the place of today's."""
    described = json.loads(tools) if tools else None
    return _render(tokenizer, [_row(message) for message in messages], described, generation_prompt)


@lru_cache(maxsize=4096)
def _plain_outline(roles: tuple[str, ...], template: ChatTemplate, generation_prompt: bool) -> tuple[Piece, ...]:
    """The outline of a conversation without tools depends on its roles alone."""
    return _pieces(_mask([Message(role, "x") for role in roles], ""), template, generation_prompt=generation_prompt)


def _mask(messages: Sequence[Message], tools: str) -> _Masked:
    """Put a placeholder into the place of every text of the data."""
    leaves: list[Leaf] = []

    def put(text: str, owner: int, mark: str, *, content: bool = False) -> str:
        leaves.append(Leaf(text, owner, content))
        return f"{_OPEN}{len(leaves) - 1}{mark}{_CLOSE}"

    def walk(value: Any, owner: int, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: walk(inner, owner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, owner) for inner in value]
        # A called function's name is always marked: it shows where the turn stands.
        if isinstance(value, str) and not (_HARMLESS.fullmatch(value) and not (key == "name" and owner >= 0)):
            return put(value, owner, _QUOTE)
        return value

    described = walk(json.loads(tools), -1) if tools else None
    rows: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        mark = _QUOTE if message.role == "tool" else ""  # results are often written as JSON
        only_calls = message.extra and not message.content
        content = "" if only_calls else put(message.content, index, mark, content=True)
        row: dict[str, Any] = {"role": message.role, "content": content}
        rows.append(row)
        for name, value in (json.loads(message.extra) if message.extra else {}).items():
            row[name] = walk(value, index) if name == "tool_calls" else value
    return _Masked(rows, described, tuple(leaves))


def _pieces(masked: _Masked, template: ChatTemplate, *, generation_prompt: bool) -> tuple[Piece, ...]:
    text = _render(template.tokenizer, masked.rows, masked.tools, generation_prompt)
    parts = _PLACEHOLDER.split(text)
    indexes = [int(index) for index in parts[1::3]]
    _check_order(indexes, masked)
    pieces: list[Piece] = []
    answering = -1  # the assistant's message that is being written
    for position in range(0, len(parts), 3):
        following = masked.leaves[indexes[position // 3]].owner if position + 1 < len(parts) else -2
        pieces += _scaffold(parts[position], masked, template, answering, following)
        if position + 1 < len(parts):
            leaf = indexes[position // 3]
            answers = following >= 0 and masked.rows[following]["role"] == "assistant"
            pieces.append(
                Piece("", leaf, len(parts[position + 2]).bit_length() - 1 if parts[position + 2] else 0, answers)
            )
            answering = following if answers else -1
    return tuple(piece for piece in pieces if piece.text or piece.leaf >= 0)


def _scaffold(text: str, masked: _Masked, template: ChatTemplate, answering: int, following: int) -> Iterator[Piece]:
    """Cut template text: trained within an answer and up to its end of turn, and from behind the generation prompt."""
    if answering >= 0 and following == answering:
        yield Piece(text, -1, 0, True)
        return
    if answering >= 0:
        token = str(template.tokenizer.convert_ids_to_tokens(template.end_of_turn))
        end = text.find(token)
        end = end + len(token) if end >= 0 else 0
        yield Piece(text[:end], -1, 0, True)
        text = text[end:]
    if following >= 0 and masked.rows[following]["role"] == "assistant":
        start = text.rfind(template.generation_prompt)
        if start < 0:
            raise ModelError("an answer does not begin with the generation prompt, so the prompt is no prefix")
        cut = start + len(template.generation_prompt)
        yield Piece(text[:cut], -1, 0, False)
        yield Piece(text[cut:], -1, 0, True)
    else:
        yield Piece(text, -1, 0, False)


def _check_order(indexes: Sequence[int], masked: _Masked) -> None:
    """Every message once and in order; tool descriptions may stand anywhere."""
    owners = [masked.leaves[index].owner for index in indexes if masked.leaves[index].owner >= 0]
    if (
        sorted(set(indexes)) != list(range(len(masked.leaves)))
        or owners != sorted(owners)
        or len(set(indexes)) < len(indexes)
    ):
        raise ModelError("it leaves messages out, repeats them or changes their order")


def _written(piece: Piece, masked: _Masked, template: ChatTemplate) -> str:
    """The text of a piece as the template writes it."""
    if piece.leaf < 0:
        return piece.text
    text, _, content = masked.leaves[piece.leaf]
    text = text.strip() if content and template.trims else text
    for _ in range(piece.escapes):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text


def _compare(
    messages: Sequence[Message],
    tools: str,
    template: ChatTemplate,
    pieces: Sequence[Piece],
    masked: _Masked,
    *,
    generation_prompt: bool,
) -> None:
    """Tool calls are written in many ways: make sure that ours is the template's."""
    whole = render(template.tokenizer, messages, tools, generation_prompt=generation_prompt)
    if whole != "".join(_written(piece, masked, template) for piece in pieces):
        raise ModelError("it writes these tool calls in a way that depends on their text")


def _row(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, **(json.loads(message.extra) if message.extra else {})}


def _render(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], tools: list[Any] | None, generation_prompt: bool
) -> str:
    template = _undated(tokenizer.chat_template)
    text = tokenizer.apply_chat_template(
        rows, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert isinstance(text, str)
    return text


def _undated(chat_template: object) -> str | None:
    """Return the template with a fixed date in the place of today's."""
    if not isinstance(chat_template, str):
        return None
    return _STRFTIME.sub(lambda call: repr(_TODAY.strftime(call[2])), chat_template)
