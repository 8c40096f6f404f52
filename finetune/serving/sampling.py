"""From logits to the next token of every running answer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.serving.settings import SamplingSettings

NOT_FINITE = -1  # in place of a token: the row's logits hold NaN or infinity


class Sampler:
    """Chooses tokens for rows that run together; what one row draws never depends on the others.

    A row's random numbers come from its seed and its prompt alone, one per token. Two equal prompts
    therefore get equal answers; draw several answers to one prompt with several seeds.
    """

    def __init__(self, settings: SamplingSettings, rows: Sequence[tuple[int, Sequence[int]]]) -> None:
        self.settings = settings
        self.draws = [draws_for(seed, prompt) for seed, prompt in rows]
        self.counts: Tensor | None = None  # (B, V), occurrences of each token in the answer so far

    def choose(self, logits: Tensor) -> list[int]:
        """Choose one token per row of logits (B, V); NOT_FINITE where that is impossible."""
        logits = logits.float()
        finite = torch.isfinite(logits).all(dim=-1)
        chosen = self._pick(self._penalized(logits))
        tokens = torch.where(finite, chosen, NOT_FINITE)
        if self.counts is not None:
            self.counts.scatter_add_(1, tokens.clamp(min=0)[:, None], torch.ones_like(self.counts[:, :1]))
        return [int(token) for token in tokens.tolist()]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self.draws = [self.draws[row] for row in rows]
        if self.counts is not None:
            self.counts = self.counts[list(rows)]

    def _penalized(self, logits: Tensor) -> Tensor:
        if not (self.settings.frequency_penalty or self.settings.presence_penalty):
            return logits
        if self.counts is None:
            self.counts = torch.zeros_like(logits)
        return penalize(logits, self.counts, self.settings.frequency_penalty, self.settings.presence_penalty)

    def _pick(self, logits: Tensor) -> Tensor:
        if self.settings.temperature == 0.0:
            return logits.argmax(dim=-1)
        uniform = torch.tensor([draw.random() for draw in self.draws], dtype=torch.float64, device=logits.device)
        return invert(nucleus(logits, self.settings.temperature, self.settings.top_p), uniform)


def draws_for(seed: int, prompt: Sequence[int]) -> random.Random:
    """Return the stream of uniform numbers that belongs to one prompt under one seed."""
    text = f"{seed}:{','.join(str(token) for token in prompt)}"
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def penalize(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Lower the logits (B, V) of tokens that occurred `counts` (B, V) times, as OpenAI's API defines it."""
    return logits - counts * frequency - (counts > 0) * presence


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return the probabilities (B, V), float64, zero outside the smallest set that reaches `top_p`; not rescaled."""
    # The largest logit goes to 0 first, so that no temperature, however small, overflows.
    centred = (logits - logits.amax(dim=-1, keepdim=True)).double()
    probabilities = torch.softmax(centred / temperature, dim=-1)
    if top_p >= 1.0:
        return probabilities
    descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = descending.cumsum(dim=-1) - descending < top_p
    return probabilities * torch.zeros_like(kept).scatter(-1, order, kept)


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return per row of weights (B, V) the token at the share `uniform` (B,), each in [0, 1), of the total.

    Tokens stay in vocabulary order: sorted by weight, rounding that swaps two near-equal tokens would
    change the answer, and rounding does differ between batches.
    """
    cumulative = weights.cumsum(dim=-1)
    # Below the total by construction, and `right` skips tokens of weight zero.
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def advise_not_finite(model: nn.Module) -> str:
    """Find out why a model returns logits that are not finite, and say what to do about it."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            return f"its weight {name} holds NaN or infinity: load a sound base or adapter"
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        return "its weights are finite, so float16 overflowed: set base.dtype to bfloat16 or float32"
    return "its weights are finite, so they are too large for this dtype: retrain with a lower learning rate"
