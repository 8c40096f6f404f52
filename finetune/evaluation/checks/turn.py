"""Checks of how the answer was generated."""

from __future__ import annotations

from finetune.evaluation.checks.core import Answer, check
from finetune.evaluation.checks.values import Count, Flag


@check
def stops(answer: Answer, wanted: Flag) -> str | None:
    """Whether the model ended its turn by itself, within generation.max_new_tokens.

    Example: {stops: true}
    """
    if answer.stopped == wanted:
        return None
    return f"stopped by itself after {answer.tokens} tokens" if answer.stopped else f"cut at {answer.tokens} tokens"


@check
def max_tokens(answer: Answer, limit: Count) -> str | None:
    """The answer has at most so many tokens, as the model's tokenizer counts them.

    Example: {max_tokens: 60}
    """
    return None if answer.tokens <= limit else f"{answer.tokens} tokens"
