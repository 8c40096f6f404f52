"""From logits to the next token of every running answer, each row with settings of its own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from finetune.serving.settings import SamplingSettings

NOT_FINITE = -1  # in place of a token: the row's logits hold NaN or infinity
LEADING = 1024  # most probable tokens that are sorted first; more only where they do not decide


class Choice(NamedTuple):
    """A row's next token; log probabilities at temperature 1, before penalties and constraints."""

    token: int  # or NOT_FINITE
    logprob: float | None = None  # None unless asked for
    top: tuple[tuple[int, float], ...] = ()  # the most probable tokens, best first


class Constraint(Protocol):
    """What says which tokens may come next (structured.py)."""

    def allowed(self, vocabulary: int) -> Tensor: ...  # (V,), bool, on the CPU
    def accept(self, token: int) -> bool: ...  # whether the answer is complete with this token


@dataclass(eq=False)
class Draws:
    """What one row draws its tokens with; nothing of it depends on the rows beside it.

    Its random numbers come from its seed and its prompt alone, one per token. Two equal prompts therefore
    get equal answers; draw several answers to one prompt with several seeds.
    """

    settings: SamplingSettings
    seed: int
    prompt: Sequence[int]
    logprobs: int | None = None  # alternatives to report per token; None: no probabilities
    constraint: Constraint | None = None
    stream: random.Random = field(init=False)
    counts: Tensor | None = field(default=None, init=False)  # (V,), occurrences of each token in the answer so far
    prompted: Tensor | None = field(default=None, init=False)  # (V,), whether the prompt holds the token

    def __post_init__(self) -> None:
        self.stream = draws_for(self.seed, self.prompt)

    @property
    def penalized(self) -> bool:
        s = self.settings
        return bool(s.frequency_penalty or s.presence_penalty) or s.repetition_penalty != 1.0

    def begin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return counts and prompted, made at the first token."""
        if self.counts is None or self.prompted is None:
            self.counts = logits.new_zeros(logits.shape[-1])
            self.prompted = torch.zeros_like(self.counts, dtype=torch.bool)
            if self.settings.repetition_penalty != 1.0:
                self.prompted[torch.tensor(sorted(set(self.prompt)), device=logits.device)] = True
        return self.counts, self.prompted


class Sampler:
    """Chooses tokens for rows that run together, whatever each one's settings."""

    def __init__(self) -> None:
        self._members: list[Draws] = []  # the rows with penalties whose tables are stacked
        self._counts = self._prompted = torch.empty(0)

    def choose(self, logits: Tensor, rows: Sequence[Draws]) -> list[Choice]:
        """Choose one token per row of logits (B, V); NOT_FINITE where that is impossible."""
        logits = logits.float()
        finite = torch.isfinite(logits.sum(dim=-1))  # one pass: NaN and infinity go through a sum
        scores = _constrained(self._penalized(logits, rows), rows)
        chosen = scores.max(dim=-1).indices  # faster than argmax on a CPU
        if drawn := [place for place, row in enumerate(rows) if row.settings.temperature > 0.0]:
            chosen[drawn] = _draw(_only(scores, drawn), [rows[place] for place in drawn])
        found = torch.where(finite, chosen, NOT_FINITE)
        self._count(found, rows)
        tokens = [int(token) for token in found.tolist()]
        return _with_logprobs(logits, tokens, rows)

    def _penalized(self, logits: Tensor, rows: Sequence[Draws]) -> Tensor:
        places = [place for place, row in enumerate(rows) if row.penalized]
        if not places:
            return logits
        self._stack([rows[place] for place in places], logits)
        settings = [row.settings for row in self._members]
        repeated = repeat(
            logits[places],
            self._prompted | (self._counts > 0),
            _column([s.repetition_penalty for s in settings], logits),
        )
        frequency = _column([s.frequency_penalty for s in settings], logits)
        presence = _column([s.presence_penalty for s in settings], logits)
        scores = logits.clone()
        scores[places] = penalize(repeated, self._counts, frequency, presence)
        return scores

    def _stack(self, members: list[Draws], logits: Tensor) -> None:
        """Put the rows' tables into one, of which each row then holds its line; anew only when rows change."""
        if members == self._members:
            return
        tables = [row.begin(logits) for row in members]
        self._counts = torch.stack([counts for counts, _ in tables])
        self._prompted = torch.stack([prompted for _, prompted in tables])
        self._members = members
        for row, counts, prompted in zip(members, self._counts, self._prompted, strict=True):
            row.counts, row.prompted = counts, prompted

    def _count(self, tokens: Tensor, rows: Sequence[Draws]) -> None:
        if places := [place for place, row in enumerate(rows) if row.penalized]:
            new = tokens[places].clamp(min=0)[:, None]
            self._counts.scatter_add_(1, new, torch.ones_like(self._counts[:, :1]))


def draws_for(seed: int, prompt: Sequence[int]) -> random.Random:
    """Return the stream of uniform numbers that belongs to one prompt under one seed."""
    text = f"{seed}:{','.join(str(token) for token in prompt)}"
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def penalize(logits: Tensor, counts: Tensor, frequency: Tensor | float, presence: Tensor | float) -> Tensor:
    """Lower the logits (B, V) of tokens that occurred `counts` (B, V) times, as OpenAI's API defines it."""
    return logits - counts * frequency - (counts > 0) * presence


def repeat(logits: Tensor, seen: Tensor, penalty: Tensor | float) -> Tensor:
    """Divide positive and multiply negative logits (B, V) of tokens `seen` (B, V) by the penalty.

    Keskar et al. (2019, arXiv 1909.05858), with the sign taken into account as transformers does.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return softmax(logits / temperature) in float64; logits are (B, V), temperature (B,) above 0."""
    # The largest logit goes to 0 first, so that no temperature, however small, overflows.
    centred = (logits - logits.amax(dim=-1, keepdim=True)).double()
    return torch.softmax(centred / temperature[:, None], dim=-1)


def candidates(weights: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return the probabilities (B, V) with zero for what may not be sampled; not rescaled.

    In this order: the `top_k` most probable tokens (0: all); the smallest set of them that reaches the share
    `top_p` of their probability; of it those with at least `min_p` of the most probable one's. Of equally
    probable tokens those with the lower ids stay. All three are (B,).
    """
    kept, threshold = _cut(weights, top_k, top_p, min_p)
    above = weights > threshold
    equal = weights == threshold
    room = kept - above.sum(dim=-1, keepdim=True)
    return weights * (above | (equal & (equal.cumsum(dim=-1) <= room)))


def _cut(weights: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens stay in each row, and the probability of the last of them, both (B, 1)."""
    width = min(LEADING, weights.shape[-1])
    while True:
        descending = weights.topk(width, dim=-1).values
        rank = torch.arange(width, device=weights.device)
        limit = torch.where(top_k > 0, top_k, weights.shape[-1])[:, None]
        first = rank < limit
        # Without top_k the whole is 1, also where only its start was sorted.
        whole = torch.where(top_k[:, None] > 0, (descending * first).sum(dim=-1, keepdim=True), 1.0)
        reached = descending.cumsum(dim=-1) - descending
        nucleus = (reached < top_p[:, None] * whole) | (top_p[:, None] >= 1.0)
        kept = (first & nucleus & (descending >= min_p[:, None] * descending[:, :1])).sum(dim=-1, keepdim=True)
        if width == weights.shape[-1] or not bool(((kept == width) & (limit > width)).any()):
            return kept, descending.gather(-1, kept - 1)
        width = weights.shape[-1]


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return per row of weights (B, V) the token at the share `uniform` (B,), each in [0, 1), of the total.

    Tokens stay in vocabulary order: sorted by weight, rounding that swaps two near-equal tokens would
    change the answer, and rounding does differ between batches.
    """
    cumulative = weights.cumsum(dim=-1)
    # Below the total by construction, and `right` skips tokens of weight zero.
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _draw(logits: Tensor, rows: Sequence[Draws]) -> Tensor:
    settings = [row.settings for row in rows]
    # What holds NaN is replaced later; here it must only not stop the others.
    temperature = torch.tensor([s.temperature for s in settings], dtype=torch.float64, device=logits.device)
    weights = probabilities(logits, temperature).nan_to_num()
    if cut := [i for i, s in enumerate(settings) if s.top_k or s.top_p < 1.0 or s.min_p]:
        top_k = torch.tensor([settings[i].top_k for i in cut], device=logits.device)
        top_p, min_p = (
            torch.tensor([getattr(settings[i], name) for i in cut], dtype=torch.float64, device=logits.device)
            for name in ("top_p", "min_p")
        )
        weights[cut] = candidates(_only(weights, cut), top_k, top_p, min_p)
    uniform = torch.tensor([row.stream.random() for row in rows], dtype=torch.float64, device=logits.device)
    return invert(weights, uniform).clamp(max=logits.shape[-1] - 1)


def _constrained(scores: Tensor, rows: Sequence[Draws]) -> Tensor:
    """Leave only the tokens that a row's constraint allows."""
    places = [place for place, row in enumerate(rows) if row.constraint is not None]
    if not places:
        return scores
    allowed = [row.constraint.allowed(scores.shape[-1]) for row in rows if row.constraint is not None]
    out = scores.clone()
    out[places] = scores[places].masked_fill(~torch.stack(allowed).to(scores.device), float("-inf"))
    return out


def _with_logprobs(logits: Tensor, tokens: list[int], rows: Sequence[Draws]) -> list[Choice]:
    choices = [Choice(token) for token in tokens]
    places = [i for i, row in enumerate(rows) if row.logprobs is not None and tokens[i] != NOT_FINITE]
    if not places:
        return choices
    scores = torch.log_softmax(_only(logits, places), dim=-1)
    own = scores.gather(-1, torch.tensor([[tokens[place]] for place in places], device=scores.device))[:, 0].tolist()
    wanted = [min(rows[place].logprobs or 0, scores.shape[-1]) for place in places]
    best, ids = scores.topk(max(wanted), dim=-1)
    for place, logprob, n, values, found in zip(places, own, wanted, best.tolist(), ids.tolist(), strict=True):
        choices[place] = Choice(tokens[place], logprob, tuple(zip(found[:n], values[:n], strict=True)))
    return choices


def _only(table: Tensor, places: Sequence[int]) -> Tensor:
    """These lines of a table, uncopied if they are all."""
    return table if len(places) == len(table) else table[list(places)]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def advise_not_finite(model: nn.Module) -> str:
    """Find out why a model returns logits that are not finite, and say what to do about it."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            return f"its weight {name} holds NaN or infinity: load a sound base or adapter"
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        return "its weights are finite, so float16 overflowed: set base.dtype to bfloat16 or float32"
    return "its weights are finite, so they are too large for this dtype: retrain with a lower learning rate"
