"""How answers are sampled: what a recipe says, and what only a conversation needs."""

from __future__ import annotations

from pydantic import Field

from finetune.recipe import GenerationSection
from finetune.recipe.schema import Text


class SamplingSettings(GenerationSection):
    """The recipe's settings and the options of chat, generate and the server."""

    top_p: float = Field(1.0, gt=0.0, le=1.0, description="sample from the smallest set with this probability")
    top_k: int = Field(0, ge=0, description="sample from this many most probable tokens; 0: from all")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="leave out tokens below this share of the most probable's")
    stop: tuple[Text, ...] = Field((), description="strings that end an answer (not part of it)")
    repetition_penalty: float = Field(
        1.0, gt=0.0, le=2.0, description="divides the logits of tokens in the prompt or the answer; 1: none"
    )
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="per earlier occurrence in the answer")
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="once a token occurs in the answer")


def sampling(settings: GenerationSection | None) -> SamplingSettings:
    """Complete a recipe's settings; None stands for the defaults."""
    if isinstance(settings, SamplingSettings):
        return settings
    return SamplingSettings(**settings.model_dump()) if settings else SamplingSettings()
