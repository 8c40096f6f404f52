"""What the engine is allowed, what it says when that is exceeded, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.errors import FinetuneError, ModelError


@dataclass(frozen=True)
class EngineLimits:
    max_rows: int = 32  # answers that are given at the same time
    max_waiting: int = 256  # requests that wait for a place; more are refused
    cache_tokens: int = 65536  # of all running rows, padded to the longest of them
    prefix_bytes: int = 256 << 20  # of keys and values of prompts that came before; 0: none are kept


DEFAULT = EngineLimits()


@dataclass(frozen=True)
class EngineStats:
    """What happened since the engine was made, and what is going on."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of them from the prefix cache
    completion_tokens: int = 0
    finished: int = 0  # requests that got an answer
    cancelled: int = 0
    failed: int = 0
    prefix_tokens: int = 0  # in the prefix cache now


class QueueFull(FinetuneError):
    """Too many requests wait; `retry_after`: seconds after which a place is likely."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already", fix=f"try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class ContextTooLong(ModelError):
    """A prompt that leaves no room for an answer."""


class EngineStopped(FinetuneError):
    """The engine takes no more requests."""
