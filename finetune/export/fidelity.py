"""Whether a merged model still says what the adapter on its base says: KL and greedy agreement on held-out prompts.

The adapter on its base answers the prompts greedily. Both models then read prompts and answers as packed rows, and
their distributions over the next token are compared at every token of the answers:

    KL = mean over positions of sum_v p(v) (ln p(v) - ln q(v))      p: adapter on its base, q: merged; nats per token

What is kept of the first model is its last hidden states and its output head, so two models need not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batches import MicroBatch, pack
from finetune.data.encoding import Encoded, encode_batch, encode_prompt
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.errors import DataError
from finetune.evaluation.suite import Prompt
from finetune.model.attention import packed_attention
from finetune.model.base import Base
from finetune.recipe import GenerationSection
from finetune.serving.generation import generate
from finetune.serving.settings import sampling
from finetune.training.loss import trained_rows

_TOKENS = 1024  # of a micro-batch
_CHUNK = 64  # positions whose logits exist at a time


@dataclass(frozen=True)
class Fidelity:
    """Two models at the same positions."""

    prompts: int
    tokens: int  # positions compared
    kl: float  # nats per token
    kl_max: float  # at the worst position
    agreement: float  # share of positions at which both would choose the same token
    same_answers: int  # prompts at all of whose positions they agree: the same greedy answer


@dataclass(frozen=True)
class Views:
    """What a model makes of packed rows: enough to compute its distributions again."""

    hidden: tuple[Tensor, ...]  # per row (n, d), on the CPU
    head: nn.Module
    scale: float
    softcap: float | None

    def log_probabilities(self, row: int) -> Iterator[Tensor]:
        """(at most _CHUNK, V) in float64, piece by piece."""
        device = next(self.head.parameters()).device
        for piece in self.hidden[row].split(_CHUNK):
            logits = self.head(piece.to(device)).double() * self.scale
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            yield logits.log_softmax(-1)


def answered(base: Base, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Encoded]:
    """Answer prompts greedily with the model as it stands, and tokenise them with their answers, as training would.

    Raises DataError if the chat template can express none of them, or ModelError for a prompt that does not fit.
    """
    asked = [encode_prompt(prompt.messages, base.template) for prompt in prompts]
    settings = sampling(GenerationSection(temperature=0.0, max_new_tokens=max_new_tokens))
    ends = base.template.stop_ids
    answers = generate(base.model, base.tokenizer, asked, stop_ids=ends, settings=settings, seed=0)
    examples = [
        Example((*prompt.messages, Message("assistant", answer.text)), prompt.where)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    # An answer without a word has no position to compare but its end; some templates cannot express it.
    rows = [row for row in encode_batch(examples, base.template) if isinstance(row, Encoded)]
    if not rows:
        raise DataError("no prompt can be compared: the chat template expresses none of the answers")
    return rows


@torch.no_grad()
def look(base: Base, rows: Sequence[Encoded]) -> Views:
    """Run the model as it stands over packed rows and keep what it says at the answers' tokens."""
    model = base.model
    was_training = model.training
    model.eval()
    try:
        with packed_attention(model, base.packs):
            hidden = tuple(trained_rows(model, batch.to(model.device))[0].cpu() for batch in _packed(base, rows))
    finally:
        model.train(was_training)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return Views(hidden, head, *_logit_settings(model))


@torch.no_grad()
def compare(base: Base, rows: Sequence[Encoded], reference: Views, merged: Views) -> Fidelity:
    """Compare two models that looked at the same rows; `base`: either of both."""
    total = worst = 0.0
    positions = agreeing = same = 0
    for number, batch in enumerate(_packed(base, rows)):
        kl, agree = _at_positions(reference, merged, number)
        total += float(kl.sum())
        worst = max(worst, float(kl.max()))
        positions += len(kl)
        agreeing += int(agree.sum())
        same += sum(bool(part.all()) for part in agree.split(_per_example(batch)))
    return Fidelity(len(rows), positions, max(total / positions, 0.0), worst, agreeing / positions, same)


def _at_positions(reference: Views, merged: Views, row: int) -> tuple[Tensor, Tensor]:
    kl, agree = [], []
    for p, q in zip(reference.log_probabilities(row), merged.log_probabilities(row), strict=True):
        p, q = p.cpu(), q.cpu()
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
    return torch.cat(kl), torch.cat(agree)


def _packed(base: Base, rows: Sequence[Encoded]) -> list[MicroBatch]:
    return pack(rows, _TOKENS, isolate=base.packs)


def _per_example(batch: MicroBatch) -> list[int]:
    trained = (batch.labels.flatten() >= 0).int().cumsum(0).tolist()
    before = [0, *trained]
    return [before[end] - before[start] for start, end in batch.segments]


def _logit_settings(model: PreTrainedModel) -> tuple[float, float | None]:
    """Scale (Cohere, Granite) and cap (Gemma 2) of the logits."""
    config: Any = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)
