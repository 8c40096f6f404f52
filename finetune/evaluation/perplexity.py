"""Perplexity of completions: exp(sum NLL / sum tokens), base and adapter on the same positions.

What is scored are the ids that training sees: a start token stands before a text if the chat template
(or, for plain text, the tokenizer) writes one, none is ever added or doubled here. The very first token
has nothing to be predicted from and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from peft import PeftModel
from transformers import PreTrainedModel

from finetune.data.encoding import Encoded
from finetune.evaluation.statistics import Scores
from finetune.evaluation.windows import windows
from finetune.model.base import Base
from finetune.training.scoring import RowScore, score_rows


def score_pair(
    base: Base,
    model: PeftModel,
    rows: Sequence[Encoded],
    budget: int,
    window: int | None = None,
    stride: int | None = None,
) -> tuple[Scores, Scores]:
    """Score the same rows without and with the active adapter, `budget` tokens per forward pass.

    Rows longer than `window` tokens (default: the positions of the model) are scored in windows that
    move on by `stride` tokens (default: half a window); an example is still one entry of the scores.
    Independent of the budget and of the order of the rows up to rounding.
    """
    limit = base.max_positions
    if window is not None and limit is not None and window > limit:
        raise ValueError(f"a window of {window} tokens is more than the {limit} positions of {base.name}")
    size = limit if window is None else window
    score = partial(score_windowed, base.model, rows, budget, size, stride, isolate=base.packs)
    with model.disable_adapter():
        plain = score()
    adapted = score()
    sizes = tuple(row.trained_bytes for row in rows)
    before, after = (
        Scores(tuple(s.nll for s in scores), tuple(s.tokens for s in scores), sizes) for scores in (plain, adapted)
    )
    return before, after


def score_windowed(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    budget: int,
    window: int | None,
    stride: int | None,
    *,
    isolate: bool,
) -> list[RowScore]:
    """NLL and count of each row's trained tokens; rows longer than `window` in windows, summed per row.

    A row that fits is scored as a whole. `stride` defaults to half a window; without a window no row is cut.
    """
    if window is None:
        return score_rows(model, rows, budget, isolate=isolate)
    step = window // 2 if stride is None else stride
    cut = [windows(row, window, step) for row in rows]
    pieces = iter(score_rows(model, [piece for part in cut for piece in part], budget, isolate=isolate))
    return [_sum([next(pieces) for _ in part]) for part in cut]


def _sum(scores: Sequence[RowScore]) -> RowScore:
    return RowScore(math.fsum(score.nll for score in scores), sum(score.tokens for score in scores))
