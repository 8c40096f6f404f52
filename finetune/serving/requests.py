"""What is asked of the engine, and what it answers with: plain values that cross threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from finetune.serving.settings import SamplingSettings


@dataclass(frozen=True)
class Request:
    """One answer to one prompt."""

    prompt: tuple[int, ...]  # token ids
    voice: str | None = None  # an adapter's name, a blend such as pizza+0.5*cheerful, or None for the base
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    logprobs: int | None = None  # alternatives to report per token; None: no probabilities at all
    schema: Mapping[str, Any] | None = None  # a JSON schema that the answer must follow


class Alternative(NamedTuple):
    id: int
    text: str
    logprob: float


class TokenInfo(NamedTuple):
    """One generated token, with its log probability at temperature 1, before penalties."""

    id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...]  # the most probable tokens, best first


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: whole characters, never part of a stop string."""

    text: str
    tokens: tuple[TokenInfo, ...] = ()  # empty unless logprobs were asked for


@dataclass(frozen=True)
class Finish:
    """The end of an answer; always the last event."""

    reason: Literal["stop", "length", "cancelled"]
    text: str  # the whole answer
    prompt_tokens: int
    cached_tokens: int  # of the prompt, taken from the prefix cache
    completion_tokens: int  # the stop token included


@dataclass(frozen=True)
class Failure:
    """The engine could not answer (say, the adapter gives NaN); in place of Finish."""

    error: Exception


Event = Piece | Finish | Failure
