"""Perplexity of completions: exp(sum NLL / sum tokens), every model on the same positions.

What is scored are the ids that training sees: a start token stands before a text if the chat template
(or, for plain text, the tokenizer) writes one, none is ever added or doubled here. The very first token
has nothing to be predicted from and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import PreTrainedModel

from finetune.data.encoding import Encoded
from finetune.evaluation.statistics import Scores
from finetune.evaluation.windows import windows
from finetune.journal import Journal
from finetune.model.base import Base
from finetune.training.scoring import RowScore, score_rows


def score_model(
    base: Base,
    rows: Sequence[Encoded],
    budget: int,
    window: int | None = None,
    stride: int | None = None,
    journal: Journal | None = None,
) -> Scores:
    """Score rows with the base as it stands, with or without an active adapter, `budget` tokens per forward pass.

    Rows longer than `window` tokens (default: the positions of the model) are scored in windows that
    move on by `stride` tokens (default: half a window); an example is still one entry of the scores.
    Independent of the budget and of the order of the rows up to rounding. `journal`: as in score_rows.
    """
    limit = base.max_positions
    if window is not None and limit is not None and window > limit:
        raise ValueError(f"a window of {window} tokens is more than the {limit} positions of {base.name}")
    size = limit if window is None else window
    found = score_windowed(base.model, rows, budget, size, stride, isolate=base.packs, journal=journal)
    return Scores(tuple(s.nll for s in found), tuple(s.tokens for s in found), tuple(row.trained_bytes for row in rows))


def score_windowed(  # noqa: PLR0913 (how rows are cut is three of them)
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    budget: int,
    window: int | None,
    stride: int | None,
    *,
    isolate: bool,
    journal: Journal | None = None,
) -> list[RowScore]:
    """NLL and count of each row's trained tokens; rows longer than `window` in windows, summed per row.

    A row that fits is scored as a whole. `stride` defaults to half a window; without a window no row is cut.
    """
    if window is None:
        return score_rows(model, rows, budget, isolate=isolate, journal=journal)
    step = window // 2 if stride is None else stride
    cut = [windows(row, window, step) for row in rows]
    parts = [piece for part in cut for piece in part]
    pieces = iter(score_rows(model, parts, budget, isolate=isolate, journal=journal))
    return [_sum([next(pieces) for _ in part]) for part in cut]


def _sum(scores: Sequence[RowScore]) -> RowScore:
    return RowScore(math.fsum(score.nll for score in scores), sum(score.tokens for score in scores))
