"""Perplexity of completions: exp(sum NLL / sum tokens), base and adapter on the same positions."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel

from finetune.data.encoding import Encoded
from finetune.evaluation.statistics import Scores
from finetune.model.base import Base
from finetune.training.scoring import score_rows


def score_pair(base: Base, model: PeftModel, rows: Sequence[Encoded], budget: int) -> tuple[Scores, Scores]:
    """Score the same rows without and with the active adapter, `budget` tokens per forward pass.

    Independent of the budget and of the order of the rows up to rounding.
    """
    with model.disable_adapter():
        plain = score_rows(base.model, rows, budget, isolate=base.packs)
    adapted = score_rows(base.model, rows, budget, isolate=base.packs)
    sizes = tuple(row.trained_bytes for row in rows)
    before, after = (
        Scores(tuple(s.nll for s in scores), tuple(s.tokens for s in scores), sizes) for scores in (plain, adapted)
    )
    return before, after
