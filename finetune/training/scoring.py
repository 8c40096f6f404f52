"""NLL of rows without training: the one place that scores, for the loss curve and for perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from finetune.data.batches import IGNORED, pack
from finetune.data.encoding import Encoded
from finetune.model.attention import packed_attention
from finetune.training.loss import output_head, row_nll, trained_rows


class RowScore(NamedTuple):
    nll: float  # nats, summed in float64
    tokens: int


@torch.no_grad()
def score_rows(model: PreTrainedModel, rows: Sequence[Encoded], budget: int, *, isolate: bool) -> list[RowScore]:
    """NLL and count of the trained tokens of each row; packed, trained rows only through the head.

    The model is scored as it stands (adapter on or off) in evaluation mode.
    """
    head, scores = output_head(model), [RowScore(0.0, 0)] * len(rows)
    was_training = model.training
    model.eval()
    try:
        with packed_attention(model):
            for batch in pack(rows, budget, isolate=isolate):
                moved = batch.to(model.device)
                nll = row_nll(head, *trained_rows(model, moved)).double().cpu()
                kept = (batch.labels[0] != IGNORED).cumsum(0)
                for row, (start, end) in zip(batch.rows, batch.segments, strict=True):
                    first, last = int(kept[start - 1]) if start else 0, int(kept[end - 1])
                    scores[row] = RowScore(float(nll[first:last].sum()), last - first)
    finally:
        model.train(was_training)
    return scores
