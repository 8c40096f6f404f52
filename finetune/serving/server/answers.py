"""Events of the engine -> bodies and chunks as OpenAI writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.serving.requests import Alternative as Choice
from finetune.serving.requests import Failure, Finish, Piece, TokenInfo
from finetune.serving.server.errors import ApiError, failed
from finetune.serving.server.jobs import Job
from finetune.serving.server.replies import (
    Alternative,
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    PromptDetails,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    Usage,
)

LEAST = -9999.0  # in place of minus infinity, which JSON cannot write
BROKEN = "\ufffd"  # part of a character: its bytes are not known from its text


@dataclass
class Said:
    """One choice so far."""

    tokens: list[TokenInfo] = field(default_factory=list)
    finish: Finish | None = None


async def collect(job: Job) -> list[tuple[list[TokenInfo], Finish]]:
    """Wait for all choices. Raises ApiError."""
    said = [Said() for _ in job.tickets]
    async for number, event in job.events():
        if isinstance(event, Failure):
            raise failed(event.error)
        if isinstance(event, Piece):
            said[number].tokens += event.tokens
        else:
            said[number].finish = event
    return [(each.tokens, each.finish) for each in said if each.finish is not None]


async def chat_completion(job: Job, *, logprobs: bool) -> ChatCompletion:
    """The whole answer to a chat request."""
    choices = [
        ChatChoice(
            index=number,
            message=ChatAnswer(content=finish.text),
            logprobs=chat_logprobs(tokens) if logprobs else None,
            finish_reason=_ending(finish),
        )
        for number, (tokens, finish) in enumerate(await collect(job))
    ]
    return ChatCompletion(id=f"chatcmpl-{job.stamp.id}", choices=choices, usage=usage(job), **_common(job))


async def completion(job: Job, *, logprobs: bool) -> Completion:
    """The whole answer to a completion request."""
    choices = [
        TextChoice(
            index=number,
            text=finish.text,
            logprobs=text_logprobs(tokens, 0) if logprobs else None,
            finish_reason=_ending(finish),
        )
        for number, (tokens, finish) in enumerate(await collect(job))
    ]
    return Completion(id=f"cmpl-{job.stamp.id}", choices=choices, usage=usage(job), **_common(job))


async def chat_chunks(job: Job, *, wants_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """The same as chunks: role, pieces, finish reason per choice; then, if wanted, the usage."""
    head = {"id": f"chatcmpl-{job.stamp.id}", "object": "chat.completion.chunk", **_common(job)}

    def chunk(number: int, delta: Mapping[str, str], tokens: Sequence[TokenInfo], reason: str | None) -> dict[str, Any]:
        logprobs = chat_logprobs(tokens).model_dump(mode="json") if tokens else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **({"usage": None} if wants_usage else {})}

    for number in range(len(job.tickets)):
        yield chunk(number, {"role": "assistant", "content": ""}, (), None)
    async for number, event in job.events():
        if isinstance(event, Failure):
            raise failed(event.error)
        if isinstance(event, Piece):
            yield chunk(number, {"content": event.text}, event.tokens, None)
        else:
            yield chunk(number, {}, (), event.reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage(job).model_dump(mode="json")}


async def text_chunks(job: Job, *, wants_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """Chunks of a completion."""
    head = {"id": f"cmpl-{job.stamp.id}", "object": "text_completion", **_common(job)}
    offsets = [0] * len(job.tickets)

    def chunk(number: int, text: str, tokens: Sequence[TokenInfo], reason: str | None) -> dict[str, Any]:
        logprobs = text_logprobs(tokens, offsets[number]).model_dump(mode="json") if tokens else None
        offsets[number] += sum(len(token.text) for token in tokens)
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **({"usage": None} if wants_usage else {})}

    async for number, event in job.events():
        if isinstance(event, Failure):
            raise failed(event.error)
        if isinstance(event, Piece):
            yield chunk(number, event.text, event.tokens, None)
        else:
            yield chunk(number, "", (), event.reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage(job).model_dump(mode="json")}


def usage(job: Job) -> Usage:
    """Count a prompt once however many answers it got."""
    each = len(job.tickets) // job.prompts
    first = [job.finished[number] for number in range(0, len(job.tickets), each)]
    prompt = sum(finish.prompt_tokens for finish in first)
    answer = sum(finish.completion_tokens for finish in job.finished.values())
    cached = PromptDetails(cached_tokens=sum(finish.cached_tokens for finish in first))
    return Usage(
        prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer, prompt_tokens_details=cached
    )


def chat_logprobs(tokens: Sequence[TokenInfo]) -> ChatLogprobs:
    content = [
        TokenLogprob(
            token=token.text,
            logprob=_written(token.logprob),
            bytes=_bytes(token.text),
            top_logprobs=[_alternative(other) for other in token.top],
        )
        for token in tokens
    ]
    return ChatLogprobs(content=content)


def text_logprobs(tokens: Sequence[TokenInfo], offset: int) -> TextLogprobs:
    """`offset`: characters of the answer before the first of these tokens."""
    reply = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token in tokens:
        reply.tokens.append(token.text)
        reply.token_logprobs.append(_written(token.logprob))
        # Parts of a character look alike; the chosen token's own number stays.
        top = {other.text: _written(other.logprob) for other in token.top}
        reply.top_logprobs.append({**top, token.text: _written(token.logprob)} if token.top else {})
        reply.text_offset.append(offset)
        offset += len(token.text)
    return reply


def _alternative(other: Choice) -> Alternative:
    return Alternative(token=other.text, logprob=_written(other.logprob), bytes=_bytes(other.text))


def _bytes(text: str) -> list[int] | None:
    return None if BROKEN in text else list(text.encode())


def _written(logprob: float) -> float:
    return max(logprob, LEAST)


def _ending(finish: Finish) -> Any:
    if finish.reason == "cancelled":  # Job.events raises before it comes to this
        raise ApiError(500, "the answer was cancelled", kind="server_error")
    return finish.reason


def _common(job: Job) -> dict[str, Any]:
    stamp = job.stamp
    return {"created": stamp.created, "model": stamp.model, "system_fingerprint": stamp.fingerprint}
