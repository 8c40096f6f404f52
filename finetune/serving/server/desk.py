"""From a body that was read to requests that the engine works on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from finetune.errors import AdapterError, FinetuneError
from finetune.model.device import releasing_workers
from finetune.serving.engine import Engine
from finetune.serving.requests import Request
from finetune.serving.server.catalogue import Catalogue
from finetune.serving.server.errors import ApiError, from_engine, model_not_found
from finetune.serving.server.jobs import Job, Stamp, submit_all
from finetune.serving.server.prompts import Prompt, chat_prompt, text_prompts
from finetune.serving.server.schemas import ChatRequest, CompletionRequest, ObjectFormat, Sampling, SchemaFormat
from finetune.serving.settings import SamplingSettings
from finetune.serving.tickets import Ticket

MAX_SCHEMA = 32 * 1024  # bytes of JSON
ANY_OBJECT = {"type": "object"}
_SAME = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
Encode = Callable[[str | None], Sequence[Prompt]]  # the adapter's system prompt -> token ids


class Desk:
    """Takes bodies in; whatever is slow happens in a thread, so that other clients are not kept waiting."""

    def __init__(self, engine: Engine, catalogue: Catalogue, *, timeout: float, done: Callable[[Job], None]) -> None:
        self.engine, self.catalogue = engine, catalogue
        self.capacity = engine.limits.max_rows + engine.limits.max_waiting
        self.timeout, self.done = timeout, done

    async def chat(self, body: ChatRequest) -> Job:
        """Begin to answer a conversation. Raises ApiError."""
        template = self.catalogue.base.template
        return await self._begin(body, body.limit, body.alternatives, lambda s: [chat_prompt(body, s, template)])

    async def complete(self, body: CompletionRequest) -> Job:
        """Begin to continue one or several texts. Raises ApiError."""
        template = self.catalogue.base.template
        return await self._begin(body, body.limit, body.alternatives, lambda _: text_prompts(body, template))

    async def _begin(self, body: Sampling, limit: int | None, alternatives: int | None, encode: Encode) -> Job:
        voice = self.catalogue.voice(body.model)
        draft = Request((), voice, self._settings(body, limit), logprobs=alternatives, schema=schema_of(body))
        place = "messages" if isinstance(body, ChatRequest) else "prompt"
        try:
            stamp, prompts, tickets = await asyncio.to_thread(self._submit, body, draft, encode)
        except AdapterError as error:
            if voice is not None and not set(self.catalogue.parts(voice)) <= set(self.catalogue.bank.names):
                raise model_not_found(body.model) from None  # unloaded a moment ago
            raise from_engine(error, "model") from None
        except FinetuneError as error:
            raise from_engine(error, place) from None
        return Job(stamp, tickets, prompts=prompts, timeout=self.timeout, done=self.done)

    def _submit(self, body: Sampling, draft: Request, encode: Encode) -> tuple[Stamp, int, list[Ticket]]:
        """Encode and hand in; done again in the rare case that the adapter was replaced in between."""
        bank = self.catalogue.bank
        while True:
            with releasing_workers(), bank.lease(draft.voice) as lease:
                prompts = encode(lease.system)
                requests = self._requests(body, draft, prompts)
                tickets = submit_all(self.engine, requests)
                if self._is_current(draft.voice, lease.digest):
                    stamp = Stamp(body.model, self._fingerprint(lease.digest), draft.voice, lease.why)
                    return stamp, len(prompts), tickets
            for ticket in tickets:
                ticket.cancel()

    def _is_current(self, voice: str | None, digest: str) -> bool:
        try:
            with self.catalogue.bank.lease(voice) as lease:
                return lease.digest == digest
        except AdapterError:  # unloaded: what was handed in before is answered by what it was handed in for
            return True

    def _requests(self, body: Sampling, draft: Request, prompts: Sequence[Prompt]) -> list[Request]:
        if len(prompts) * body.choices > self.capacity:
            message = f"{len(prompts)} prompts times n={body.choices} are more than the {self.capacity} answers"
            raise ApiError(400, f"{message} that the server takes at once", param="n", code="invalid_value")
        seed = secrets.randbits(62) if body.seed is None else body.seed
        return [
            Request(prompt, draft.voice, draft.settings, seed + choice, draft.logprobs, draft.schema)
            for prompt in prompts
            for choice in range(body.choices)
        ]

    def _settings(self, body: Sampling, limit: int | None) -> SamplingSettings:
        given: dict[str, Any] = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
        if body.top_k is not None and body.top_k > 0:
            given["top_k"] = body.top_k
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        room = self.catalogue.base.max_positions or 4096
        # Greedy only if asked for: OpenAI's default is 1.
        return SamplingSettings(**{"temperature": 1.0, **given}, stop=stop, max_new_tokens=min(limit or room, room))

    def _fingerprint(self, digest: str) -> str:
        whole = json.dumps([self.catalogue.base.fingerprint, digest], sort_keys=True)
        return f"fp_{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def schema_of(body: Sampling) -> dict[str, Any] | None:
    """The JSON schema that an answer must follow. Raises ApiError."""
    if isinstance(body.response_format, ObjectFormat):
        return ANY_OBJECT
    if not isinstance(body.response_format, SchemaFormat):
        return None
    schema = body.response_format.json_schema.rules
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, RecursionError):
        raise _bad_schema("is no JSON") from None
    if size > MAX_SCHEMA:
        raise _bad_schema(f"has {size} bytes, at most {MAX_SCHEMA} are read")
    return schema


def _bad_schema(why: str) -> ApiError:
    return ApiError(400, f"The schema {why}", param="response_format.json_schema.schema", code="invalid_schema")
