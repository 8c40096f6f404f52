"""Conversations -> token ids and loss masks: which tokens are trained is decided here and in
data/template.py, and nowhere else.

Template text is tokenised with control tokens, texts of the data as plain text, so no data can ever
become a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import TemplateError

from finetune.data.examples import Example
from finetune.data.messages import TEXT, Message
from finetune.data.template import ChatTemplate, Piece, outline
from finetune.errors import DataError, ModelError

BATCH = 1024  # examples tokenised at a time


class Encoded(NamedTuple):
    ids: list[int]
    loss_mask: list[int]  # per token, 1 = trained
    where: str
    trained_bytes: int  # of the assistant's text, for bits per byte


class _Plan(NamedTuple):
    """What of one example is to be tokenised."""

    example: Example
    pieces: tuple[Piece, ...]
    texts: tuple[str, ...]


def encode(example: Example, template: ChatTemplate) -> Encoded:
    """Tokenise one conversation; trained are the assistant's turns with their end-of-turn token.

    Raises DataError if the template cannot express it, or changes earlier turns of it.
    """
    (encoded,) = encode_batch([example], template)
    if isinstance(encoded, DataError):
        raise encoded
    return encoded


def encode_batch(examples: Sequence[Example], template: ChatTemplate) -> list[Encoded | DataError]:
    """Tokenise many conversations at once; what `encode` would raise stands in the place of the example."""
    plans = [_plan(example, template) for example in examples]
    return _assemble(plans, _tokenise([p for p in plans if isinstance(p, _Plan)], template), template)


def encode_stream(examples: Iterable[Example], template: ChatTemplate) -> Iterator[tuple[Example, Encoded | DataError]]:
    """Tokenise example by example in batches; the next batch is tokenised while this one is given out."""
    source = iter(examples)
    with ThreadPoolExecutor(1) as worker:
        waiting: tuple[list[_Plan | DataError], list[Example], Future[list[Any]]] | None = None
        while True:
            batch = list(islice(source, BATCH))
            plans = [_plan(example, template) for example in batch]
            ready, waiting = waiting, None
            if batch:
                good = [plan for plan in plans if isinstance(plan, _Plan)]
                waiting = (plans, batch, worker.submit(_tokenise, good, template))
            if ready is not None:
                yield from zip(ready[1], _assemble(ready[0], ready[2].result(), template), strict=True)
            if waiting is None:
                return


def encode_prompt(messages: Sequence[Message], template: ChatTemplate, tools: str = "") -> list[int]:
    """Tokenise a conversation up to where the assistant answers; the same ids that training saw.

    Raises DataError if the template cannot express it.
    """
    try:
        example = Example(tuple(messages), "", tools)
        plan = _outlined(example, template, generation_prompt=True)
        tokens = _tokenise([plan], template)[0]
    except (TemplateError, ModelError) as error:
        raise DataError(f"the chat template refuses this conversation: {error}") from None
    return _joined(plan, tokens, template)[0]


def _plan(example: Example, template: ChatTemplate) -> _Plan | DataError:
    if example.messages[0].role == TEXT:
        return _Plan(example, (Piece("", 0, 0, True),), (example.messages[0].content,))
    try:
        plan = _outlined(example, template, generation_prompt=False)
    except (TemplateError, ModelError) as error:
        return DataError(f"the chat template refuses this conversation: {error}", where=example.where)
    if not template.joint and _ends(plan.pieces, template) < _answers(example.messages):
        return _untrained(example)
    return plan


def _outlined(example: Example, template: ChatTemplate, *, generation_prompt: bool) -> _Plan:
    pieces, texts = outline(example.messages, example.tools, template, generation_prompt=generation_prompt)
    if template.joint:
        _refuse_control(pieces, texts, template)
    return _Plan(example, pieces, texts)


def _tokenise(plans: Sequence[_Plan], template: ChatTemplate) -> list[Any]:
    """Tokens of each plan: ids per piece, or with offsets of the whole text where that is needed."""
    with template.lock:
        if template.joint:
            return [_joint_tokens(plan, template) for plan in plans]
        texts = {
            text: 0 for plan in plans for piece, text in zip(plan.pieces, plan.texts, strict=True) if piece.leaf >= 0
        }
        ids = dict(zip(texts, _plain_ids(list(texts), template), strict=True))
        return [
            [
                ids[text] if piece.leaf >= 0 else _scaffold_ids(template, text)
                for piece, text in zip(plan.pieces, plan.texts, strict=True)
            ]
            for plan in plans
        ]


def _plain_ids(texts: list[str], template: ChatTemplate) -> list[list[int]]:
    """Tokenise texts in which nothing may be read as a control token."""
    backend = getattr(template.tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        slow = template.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(slow["input_ids"])
    # The same without transformers' copies in between, which cost a third of the time.
    backend.no_truncation()
    backend.no_padding()
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


@lru_cache(maxsize=4096)
def _scaffold_ids(template: ChatTemplate, text: str) -> list[int]:
    ids: list[int] = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _joint_tokens(plan: _Plan, template: ChatTemplate) -> Any:
    """For tokenizers that mark the start of a text (SentencePiece): one pass over the whole."""
    as_text = plan.example.messages[0].role == TEXT
    return template.tokenizer(
        "".join(plan.texts), add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=as_text,
        verbose=False,
    )  # fmt: skip


def _refuse_control(pieces: Sequence[Piece], texts: Sequence[str], template: ChatTemplate) -> None:
    control = control_tokens(template)
    for piece, text in zip(pieces, texts, strict=True):
        if piece.leaf >= 0 and (found := next((c for c in control if c in text), None)):
            raise ModelError(f"a message contains the control token {found!r}")


@lru_cache(maxsize=16)
def control_tokens(template: ChatTemplate) -> tuple[str, ...]:
    """The strings that the tokenizer reads as one control token each."""
    return tuple(template.tokenizer.convert_ids_to_tokens(sorted(control_ids(template.tokenizer))))


def control_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokenizer's control tokens."""
    return {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}


def _assemble(
    plans: Sequence[_Plan | DataError], tokens: Sequence[Any], template: ChatTemplate
) -> list[Encoded | DataError]:
    given = iter(tokens)
    return [plan if isinstance(plan, DataError) else _encoded(plan, next(given), template) for plan in plans]


def _encoded(plan: _Plan, tokens: Any, template: ChatTemplate) -> Encoded | DataError:
    example = plan.example
    ids, mask = _joined(plan, tokens, template)
    if example.messages[0].role == TEXT:
        start, end = text_frame(template)
        ids, mask = [*start, *ids, end], [0] * len(start) + mask + [1]
    elif template.joint:
        ends = sum(token == template.end_of_turn and trained for token, trained in zip(ids, mask, strict=True))
        if ends < _answers(example.messages):
            return _untrained(example)
    while mask and not mask[-1]:  # what follows the last trained token teaches nothing
        mask.pop()
    trained = sum(
        len(text.encode())
        for piece, text in zip(plan.pieces, plan.texts, strict=True)
        if piece.trained and piece.leaf >= 0
    )
    return Encoded(ids[: len(mask)], mask, example.where, trained)


def _joined(plan: _Plan, tokens: Any, template: ChatTemplate) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    mask: list[int] = []
    if not template.joint:
        for piece, part in zip(plan.pieces, tokens, strict=True):
            ids += part
            mask += [int(piece.trained)] * len(part)
        return ids, mask
    ends, total, at = [], 0, 0
    for piece, text in zip(plan.pieces, plan.texts, strict=True):
        total += len(text)
        ends.append((total, int(piece.trained)))
    for _, end in tokens["offset_mapping"]:
        while at < len(ends) - 1 and end > ends[at][0]:
            at += 1
        mask.append(ends[at][1])
    return tokens["input_ids"], mask


@lru_cache(maxsize=16)
def text_frame(template: ChatTemplate) -> tuple[tuple[int, ...], int]:
    """What stands before a plain text (the start token, if the tokenizer writes one) and the end token."""
    tokenizer = template.tokenizer
    end = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else template.end_of_turn
    return tuple(token for token in tokenizer("")["input_ids"] if token != end), end


@lru_cache(maxsize=4096)
def _ends(pieces: tuple[Piece, ...], template: ChatTemplate) -> int:
    """How many end-of-turn tokens are trained: texts of the data hold none."""
    return sum(
        _scaffold_ids(template, piece.text).count(template.end_of_turn)
        for piece in pieces
        if piece.trained and piece.leaf < 0
    )


def _answers(messages: Sequence[Message]) -> int:
    return sum(message.role == "assistant" for message in messages)


def _untrained(example: Example) -> DataError:
    return DataError("the chat template leaves an end-of-turn token untrained", where=example.where)
