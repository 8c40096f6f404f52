"""NLL of rows without training: the one place that scores, for the loss curve and for perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from finetune.data.batches import IGNORED, MicroBatch, pack
from finetune.data.encoding import Encoded
from finetune.journal import Journal
from finetune.model.attention import packed_attention
from finetune.training.loss import Head, output_head, row_nll, trained_rows

# Tokens of a packed row on a CPU, by the width of the model: longer rows are faster where products are wide, and
# take more memory, which counts beside a small base (docs/evaluation.md).
NARROW, CPU_TOKENS, CPU_TOKENS_NARROW = 512, 2048, 1152


class RowScore(NamedTuple):
    nll: float  # nats, summed in float64
    tokens: int


@torch.no_grad()
def score_rows(
    model: PreTrainedModel, rows: Sequence[Encoded], budget: int, *, isolate: bool, journal: Journal | None = None
) -> list[RowScore]:
    """NLL and count of the trained tokens of each row; packed or padded, trained rows only through the head.

    The model is scored as it stands (adapter on or off) in evaluation mode. `journal`: of this very model;
    what it holds is not computed again.
    """
    scores, journal, head = [RowScore(0.0, 0)] * len(rows), journal or Journal(), output_head(model)
    if model.device.type == "cpu":
        narrow = model.config.get_text_config().hidden_size < NARROW
        budget = min(budget, CPU_TOKENS_NARROW if narrow else CPU_TOKENS)
    was_training = model.training
    model.eval()
    try:
        with packed_attention(model, isolate):
            for batch in pack(rows, budget, isolate=isolate):
                ids, labels = batch.input_ids.flatten().tolist(), batch.labels.flatten().tolist()
                kept = journal.once(["nll", ids, labels, batch.segments], partial(_score, model, head, batch))
                for row, (nll, tokens) in zip(batch.rows, kept, strict=True):
                    scores[row] = RowScore(nll, tokens)
    finally:
        model.train(was_training)
    return scores


def _score(model: PreTrainedModel, head: Head, batch: MicroBatch) -> list[RowScore]:
    """NLL and count of each example of one micro-batch."""
    nll = row_nll(head, *trained_rows(model, batch.to(model.device))).double().cpu()
    before = [0, *(batch.labels.flatten() != IGNORED).cumsum(0).tolist()]  # trained tokens before each place
    cut = [slice(before[start], before[end]) for start, end in batch.segments]
    return [RowScore(float(nll[part].sum()), part.stop - part.start) for part in cut]
