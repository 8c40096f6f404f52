"""Perplexity as it is got wrong in the wild: one function per mistake, each with the signature of the right one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.batches import pack
from finetune.data.encoding import Encoded
from finetune.evaluation.perplexity import score_windowed
from finetune.evaluation.report import PerplexityScore
from finetune.evaluation.windows import windows
from finetune.training.scoring import RowScore, score_rows
from tests.evaluation.oracle import END, FIRST_WORD, PAD, START, Measure, right, score_of

Rows = Sequence[Encoded]


def mean_of_batch_means(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Each batch counts the same, however many tokens it has: the loss of an evaluation loop."""
    means = []
    for batch in pack(rows, budget):
        scores = score_windowed(model, [rows[i] for i in batch.rows], budget, window, stride, isolate=True)
        means.append(sum(s.nll for s in scores) / sum(s.tokens for s in scores))
    return _replaced(right(model, rows, budget, window, stride), math.exp(fmean(means)))


def mean_of_texts(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The arithmetic mean of each text's own perplexity."""
    scores = score_windowed(model, rows, budget, window, stride, isolate=True)
    return _replaced(right(model, rows, budget, window, stride), fmean(math.exp(s.nll / s.tokens) for s in scores))


def padding_scored(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Right padding whose labels are not masked."""
    return _padded(model, rows, budget, window, stride, score_padding=True)


def padded(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Not wrong: padding on the right, hidden and not scored, through the whole model."""
    return _padded(model, rows, budget, window, stride)


def left_padding_without_positions(
    model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int
) -> PerplexityScore:
    """Left padding, hidden by the attention mask, but the text begins at position 7 instead of 0."""
    return _padded(model, rows, budget, window, stride, left=True)


def start_doubled(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The tokenizer writes a start token before the one that the template has written."""
    doubled = [row._replace(ids=[START, *row.ids], loss_mask=[0, *row.loss_mask]) for row in rows]
    return right(model, doubled, budget, window, stride)


def start_missing(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The text is tokenised without control tokens."""
    return right(model, [row._replace(ids=row.ids[1:], loss_mask=row.loss_mask[1:]) for row in rows], budget, window,
                 stride)  # fmt: skip


def end_for_start(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The end token stands where the model expects its start token."""
    return right(model, [row._replace(ids=[END, *row.ids[1:]]) for row in rows], budget, window, stride)


def overlap_counted_twice(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Every window scores all of its tokens, context included."""
    scores = []
    for row in rows:
        starts = range(0, max(1, len(row.ids) - window + stride), stride)
        cut = [slice(start, start + window) for start in starts]
        parts = [row._replace(ids=row.ids[part], loss_mask=row.loss_mask[part]) for part in cut]
        found = score_rows(model, parts, budget, isolate=True)
        scores.append(RowScore(math.fsum(s.nll for s in found), sum(s.tokens for s in found)))
    return score_of(scores, rows)


def context_of_one_token(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Windows side by side: the first new token of each is predicted from one token."""
    return right(model, rows, budget, window, window - 1)


def silent_truncation(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """What is longer than the model is cut off, as most tokenizers do with truncation=True."""
    cut = [row._replace(ids=row.ids[:window], loss_mask=row.loss_mask[:window]) for row in rows]
    scores = score_rows(model, cut, budget, isolate=True)
    kept = [(score, row) for score, row in zip(scores, rows, strict=True) if score.tokens]
    return score_of([score for score, _ in kept], [row for _, row in kept])


def words_for_tokens(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """Divided by words, reported as if it were by tokens."""
    score = right(model, rows, budget, window, stride)
    words = sum(m and i >= FIRST_WORD for row in rows for i, m in zip(row.ids, row.loss_mask, strict=True))
    return _replaced(score, math.exp(score.nll / words))


def prompt_counted(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The prompt and the template are scored like the answer."""
    return right(model, [row._replace(loss_mask=[1] * len(row.ids)) for row in rows], budget, window, stride)


def tokens_independent(model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int) -> PerplexityScore:
    """The interval is 1.96 sigma / sqrt(tokens), as if the tokens of an answer had nothing to do with each other."""
    each = [nll for row in rows for piece in windows(row, window, stride) for nll in _token_nll(model, piece)]
    half = 1.96 * pstdev(each) / math.sqrt(len(each))
    score = right(model, rows, budget, window, stride)
    mean = math.log(score.value)
    return score.model_copy(update={"low": math.exp(mean - half), "high": math.exp(mean + half)})


def batch_in_half_precision(
    model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int
) -> PerplexityScore:
    """The NLLs are added up in bf16, so what is rounded away depends on what shares a batch."""
    total, count = torch.zeros((), dtype=torch.bfloat16), 0
    for batch in pack(rows, budget):
        scores = score_windowed(model, [rows[i] for i in batch.rows], budget, window, stride, isolate=True)
        total += torch.tensor(sum(s.nll for s in scores), dtype=torch.bfloat16)
        count += sum(s.tokens for s in scores)
    score = right(model, rows, budget, window, stride)
    nll = float(total)
    return _replaced(score, math.exp(nll / count)).model_copy(update={"nll": nll})


def _replaced(score: PerplexityScore, value: float) -> PerplexityScore:
    """The interval moves with the value: only the mistake itself is to be seen."""
    factor = value / score.value
    return score.model_copy(update={"value": value, "low": score.low * factor, "high": score.high * factor})


def _padded(  # noqa: PLR0913
    model: PreTrainedModel, rows: Rows, budget: int, window: int, stride: int, *, left: bool = False,
    score_padding: bool = False,
) -> PerplexityScore:  # fmt: skip
    """Batches of padded windows through the whole model, as transformers' loops run them."""
    pieces = [(i, piece) for i, row in enumerate(rows) for piece in windows(row, window, stride)]
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    size = max(1, budget // window)
    for start in range(0, len(pieces), size):
        batch = pieces[start : start + size]
        for (i, _), (nll, count) in zip(batch, _rows_of(model, batch, left, score_padding), strict=True):
            sums[i] += nll
            counts[i] += count
    return score_of([RowScore(*pair) for pair in zip(sums, counts, strict=True)], rows)


@torch.no_grad()
def _rows_of(
    model: PreTrainedModel, batch: Sequence[tuple[int, Encoded]], left: bool, score_padding: bool
) -> Iterator[tuple[float, int]]:
    longest = max(len(piece.ids) for _, piece in batch)
    lines: dict[str, list[list[int]]] = {"ids": [], "seen": [], "scored": []}
    for _, piece in batch:
        spare = longest - len(piece.ids)
        for name, values, filler in (
            ("ids", piece.ids, PAD), ("seen", [1] * len(piece.ids), 0), ("scored", piece.loss_mask, int(score_padding))
        ):  # fmt: skip
            pad = [filler] * spare
            lines[name].append([*pad, *values] if left else [*values, *pad])
    ids, seen, scored = (torch.tensor(lines[name]) for name in ("ids", "seen", "scored"))
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    costs = _costs(logits, ids) * scored[:, 1:]
    yield from zip(costs.sum(1).tolist(), scored[:, 1:].sum(1).tolist(), strict=True)


@torch.no_grad()
def _token_nll(model: PreTrainedModel, piece: Encoded) -> list[float]:
    ids = torch.tensor([piece.ids])
    costs = _costs(model(input_ids=ids, use_cache=False).logits, ids)[0]
    return [float(cost) for cost, trained in zip(costs, piece.loss_mask[1:], strict=True) if trained]


def _costs(logits: Any, ids: Tensor) -> Tensor:
    """NLL (n, T - 1) of every token but the first, in float64."""
    found: Tensor = -logits[:, :-1].double().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return found


# Checks of oracle.py that have to see the mistake; others may see it, too.
WRONG: dict[Measure, set[str]] = {
    mean_of_batch_means: {"equals_the_oracle", "is_invariant"},
    mean_of_texts: {"equals_the_oracle"},
    padding_scored: {"equals_the_oracle", "is_invariant", "counts_bits_per_byte"},
    left_padding_without_positions: {"restarts_positions"},
    start_doubled: {"equals_the_oracle", "restarts_positions"},
    start_missing: {"equals_the_oracle", "restarts_positions"},
    end_for_start: {"equals_the_oracle", "restarts_positions"},
    overlap_counted_twice: {"equals_the_oracle", "counts_bits_per_byte"},
    context_of_one_token: {"equals_the_oracle"},
    silent_truncation: {"equals_the_oracle", "counts_bits_per_byte"},
    words_for_tokens: {"equals_the_oracle", "is_v_for_uniform_logits"},
    prompt_counted: {"equals_the_oracle", "counts_bits_per_byte"},
    tokens_independent: {"clusters_by_example"},
    batch_in_half_precision: {"equals_the_oracle", "is_invariant"},
}
