"""Which tokens are trained is decided here and nowhere else.

A conversation is rendered by the model's chat template with a placeholder for every message's
content. The text between the placeholders is the template's own and is tokenised with control
tokens; the contents are tokenised as plain text, so no data can ever become a control token.
An assistant turn is trained from behind the generation prompt to its end-of-turn token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune.data.dataset import Example
from finetune.data.formats import Message
from finetune.errors import DataError, ModelError

# Private-use characters: no template looks for them, no trim removes them.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
# Llama 3's template writes today's date: ids would change overnight. This is the date it falls back to.
_TODAY = datetime(2024, 7, 26)
_STRFTIME = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = (Message("user", "How much is it?"), Message("assistant", "It is 5 dollars."))


class Encoded(NamedTuple):
    ids: list[int]
    loss_mask: list[int]  # per token, 1 = trained
    where: str
    trained_bytes: int  # of the assistant's text, for bits per byte


class _Span(NamedTuple):
    """A stretch of the rendered conversation."""

    text: str
    is_content: bool
    trained: bool


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    tokenizer: PreTrainedTokenizerBase
    generation_prompt: str  # what the template adds before an answer
    end_of_turn: int
    stop_ids: frozenset[int]
    trims: bool  # the template strips white space around contents
    joint: bool  # text must be tokenised as a whole: the tokenizer marks the start of a text


def load_template(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatTemplate:
    """Probe a tokenizer's chat template. Raises ModelError if it cannot be trained on faithfully."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "has no chat template, so conversations cannot be put into its form",
            where=name,
            fix="use the model's chat ('Instruct') variant, or put a chat_template.jinja beside its tokenizer",
        )
    try:
        template = _probe(tokenizer)
        _prove_prefix(template)
    except (TemplateError, DataError) as error:
        reason = error.what if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"chat template cannot be trained on: {reason}", where=name) from None
    except ModelError as error:
        raise ModelError(f"chat template cannot be trained on: {error.what}", where=name, fix=error.fix) from None
    return template


def encode(example: Example, template: ChatTemplate) -> Encoded:
    """Tokenise one conversation; trained are the assistant's turns with their end-of-turn token.

    Raises DataError if the template cannot express it, or changes earlier turns of it.
    """
    try:
        spans = _spans(example.messages, template, generation_prompt=False)
        ids, mask = _tokenise(spans, template)
    except (TemplateError, ModelError) as error:
        raise DataError(f"the chat template refuses this conversation: {error}", where=example.where) from None
    last = max((i for i, trained in enumerate(mask) if trained), default=-1)
    turns = [_content(m, template) for m in example.messages if m.role == "assistant"]
    if last < 0 or sum(int(i == template.end_of_turn and m == 1) for i, m in zip(ids, mask, strict=True)) < len(turns):
        raise DataError("the chat template leaves an end-of-turn token untrained", where=example.where)
    # What follows the last trained token teaches nothing.
    return Encoded(ids[: last + 1], mask[: last + 1], example.where, sum(len(t.encode()) for t in turns))


def encode_prompt(messages: Sequence[Message], template: ChatTemplate) -> list[int]:
    """Tokenise a conversation up to where the assistant answers; the same ids that training saw.

    Raises DataError if the template cannot express it.
    """
    try:
        return _tokenise(_spans(messages, template, generation_prompt=True), template)[0]
    except (TemplateError, ModelError) as error:
        raise DataError(f"the chat template refuses this conversation: {error}") from None


class EncodedSet(NamedTuple):
    rows: list[Encoded]
    dropped: int  # longer than max_length


def encode_all(
    examples: Iterable[Example], template: ChatTemplate, max_length: int, *, drop_long: bool = False
) -> EncodedSet:
    """Encode every example; over-long ones are an error, or dropped and counted."""
    rows = [encode(example, template) for example in examples]
    long = [row for row in rows if len(row.ids) > max_length]
    if long and not drop_long:
        longest = max(long, key=lambda row: len(row.ids))
        raise DataError(
            f"{len(long)} of {len(rows)} examples exceed data.max_length {max_length} tokens "
            f"(longest {len(longest.ids)}, {longest.where})",
            fix="raise data.max_length, shorten them, or set data.too_long: drop",
        )
    if rows and len(long) == len(rows):
        raise DataError(f"all {len(rows)} examples exceed {max_length} tokens, so none is left ({rows[0].where}, ...)")
    return EncodedSet([row for row in rows if len(row.ids) <= max_length], len(long))


def _content(message: Message, template: ChatTemplate) -> str:
    return message.content.strip() if template.trims else message.content


def _spans(messages: Sequence[Message], template: ChatTemplate, *, generation_prompt: bool) -> list[_Span]:
    """Cut the rendered conversation into the template's text and contents, trained or not."""
    masked = tuple(Message(m.role, f"{_OPEN}{i}{_CLOSE}") for i, m in enumerate(messages))
    parts = _PLACEHOLDER.split(_render(template.tokenizer, masked, generation_prompt=generation_prompt))
    spans: list[_Span] = []
    answering = False  # inside an assistant turn, behind its content
    for position, part in enumerate(parts):
        if position % 2:
            message = messages[int(part)]
            answering = message.role == "assistant"
            spans.append(_Span(_content(message, template), True, answering))
            continue
        following = messages[int(parts[position + 1])].role if position + 1 < len(parts) else None
        spans += _scaffold(part, template, after_answer=answering, before_answer=following == "assistant")
    if [int(p) for p in parts[1::2]] != list(range(len(messages))):
        raise ModelError("it leaves messages out or changes their order")
    return [span for span in spans if span.text]


def _scaffold(text: str, template: ChatTemplate, *, after_answer: bool, before_answer: bool) -> list[_Span]:
    """Template text: trained up to the end of turn, and from behind the generation prompt."""
    spans = []
    if after_answer:
        token = str(template.tokenizer.convert_ids_to_tokens(template.end_of_turn))
        end = text.find(token)
        end = end + len(token) if end >= 0 else 0
        spans.append(_Span(text[:end], False, True))
        text = text[end:]
    if before_answer:
        start = text.rfind(template.generation_prompt)
        if start < 0:
            raise ModelError("an answer does not begin with the generation prompt, so the prompt is no prefix")
        cut = start + len(template.generation_prompt)
        return [*spans, _Span(text[:cut], False, False), _Span(text[cut:], False, True)]
    return [*spans, _Span(text, False, False)]


def _tokenise(spans: Sequence[_Span], template: ChatTemplate) -> tuple[list[int], list[int]]:
    if template.joint:
        return _tokenise_joint(spans, template)
    ids: list[int] = []
    mask: list[int] = []
    for span in spans:
        if span.is_content:
            piece = template.tokenizer(span.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            piece = _scaffold_ids(template, span.text)
        ids += piece
        mask += [int(span.trained)] * len(piece)
    return ids, mask


@lru_cache(maxsize=512)
def _scaffold_ids(template: ChatTemplate, text: str) -> list[int]:
    ids: list[int] = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _tokenise_joint(spans: Sequence[_Span], template: ChatTemplate) -> tuple[list[int], list[int]]:
    """For tokenizers that mark the start of a text (SentencePiece): one pass, mask by offsets."""
    control = template.tokenizer.convert_ids_to_tokens(sorted(_control_ids(template.tokenizer)))
    for span in spans:
        if span.is_content and (found := next((c for c in control if c in span.text), None)):
            raise ModelError(f"a message contains the control token {found!r}")
    encoded = template.tokenizer("".join(s.text for s in spans), add_special_tokens=False, return_offsets_mapping=True)
    ends, total = [], 0
    for span in spans:
        total += len(span.text)
        ends.append((total, int(span.trained)))
    mask, at = [], 0
    for _, end in encoded["offset_mapping"]:
        while at < len(ends) - 1 and end > ends[at][0]:
            at += 1
        mask.append(ends[at][1])
    return encoded["input_ids"], mask


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    template = _undated(tokenizer.chat_template)
    text = tokenizer.apply_chat_template(
        rows, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert isinstance(text, str)
    return text


def _undated(chat_template: object) -> str | None:
    """Return the template with a fixed date in the place of today's."""
    if not isinstance(chat_template, str):
        return None
    return _STRFTIME.sub(lambda call: repr(_TODAY.strftime(call[2])), chat_template)


def _probe(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Find out about a chat template what encoding needs to know."""
    end = _end_of_turn(tokenizer)
    template = ChatTemplate(
        tokenizer,
        _generation_prompt(tokenizer),
        end,
        frozenset({end, *_ids_of(tokenizer.eos_token_id)}),
        " x " not in _render(tokenizer, (Message("user", " x "),), generation_prompt=True),
        joint=False,
    )
    return template if _same_as_whole(template) else replace(template, joint=True)


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find what opens an answer.

    Some templates need no opening, the end of the user's turn says it ([INST] ... [/INST]); some close
    the text where no answer is to come. For both it is all that stands behind the user's words.
    """
    user = _render(tokenizer, _PROBE[:1], generation_prompt=False)
    opened = _render(tokenizer, _PROBE[:1], generation_prompt=True)
    if opened.startswith(user) and opened != user:
        return opened[len(user) :]
    whole = _render(tokenizer, _PROBE, generation_prompt=False)
    question, answer = (message.content for message in _PROBE)
    closing = opened[opened.rfind(question) + len(question) :]
    gap = whole[len(opened) : whole.rfind(answer)]
    if closing.strip() and whole.startswith(opened) and (opened != user or not gap.strip()):
        return closing
    raise ModelError(
        "it has no generation prompt (add_generation_prompt changes nothing)",
        fix="the model could not know when to answer; use another chat template",
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the control token that closes an assistant turn."""
    rendered = _render(tokenizer, _PROBE, generation_prompt=False)
    tail = rendered[rendered.rfind(_PROBE[1].content) + len(_PROBE[1].content) :]
    control = _control_ids(tokenizer)
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in control:
            return int(token)
    raise ModelError(
        "it puts no end-of-turn token behind an answer, so the model would not learn to stop",
        fix="use a chat template that ends assistant turns, for example with eos_token",
    )


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}


def _same_as_whole(template: ChatTemplate) -> bool:
    """Whether tokenising piece by piece gives what tokenising the whole text gives."""
    text = _render(template.tokenizer, _PROBE, generation_prompt=False)
    whole = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, _ = _tokenise(_spans(_PROBE, template, generation_prompt=False), template)
    return bool(pieces == whole)


def _prove_prefix(template: ChatTemplate) -> None:
    encoded = encode(Example(_PROBE, "probe"), template)
    prompt = encode_prompt(_PROBE[:1], template)
    if encoded.ids[: len(prompt)] != prompt or any(encoded.loss_mask[: len(prompt)]):
        raise ModelError("the prompt's tokens are no prefix of the conversation's")


def _ids_of(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
