"""The one loss: summed NLL of the trained tokens; only their rows go through the output head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.batches import IGNORED, MicroBatch
from finetune.errors import ModelError
from finetune.model.attention import hidden_states

CHUNK = 1024  # rows of logits that exist at a time


@dataclass(frozen=True)
class Head:
    """The frozen output head: logits = softcap(scale * (h W^T + bias))."""

    weight: Tensor  # (V, d)
    bias: Tensor | None
    scale: float
    softcap: float | None


def output_head(model: PreTrainedModel) -> Head:
    """Read the head of a causal model, with the logit scale (Cohere, Granite) or cap (Gemma 2)."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear) or hasattr(layer, "lora_A") or layer.weight.requires_grad:
        raise ModelError(f"output head {type(layer).__name__} cannot be frozen", fix="leave it out of target_modules")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def trained_nll(model: PreTrainedModel, head: Head, batch: MicroBatch, denominator: float) -> Tensor:
    """Sum of NLL over the trained tokens of a packed row / denominator, in fp32, differentiable.

    With the trained tokens of the whole optimizer step as denominator, summing this over its
    micro-batches and processes is the token-weighted mean, however the step was cut.
    """
    hidden, targets = trained_rows(model, batch)
    loss: Tensor = _FrozenHeadLoss.apply(hidden, targets, head, denominator)  # type: ignore[no-untyped-call]
    return loss


def trained_rows(model: PreTrainedModel, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d) from which a trained token is predicted, and those tokens (n,)."""
    hidden = hidden_states(model, batch.input_ids, batch.position_ids, batch.segments)
    keep = batch.labels[0] != IGNORED
    return hidden[0][keep], batch.labels[0][keep]


def row_nll(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """NLL of each target in fp32, (n,), without gradient; CHUNK rows of logits at a time."""
    parts = [
        F.cross_entropy(_logits(head, hidden[i : i + CHUNK]), targets[i : i + CHUNK], reduction="none")
        for i in range(0, len(hidden), CHUNK)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _logits(head: Head, hidden: Tensor) -> Tensor:
    logits = F.linear(hidden, head.weight, head.bias).float()
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen head, its gradient computed chunk by chunk in the forward.

    Two matrix products in all and never more than CHUNK rows of logits: with the head frozen,
    d loss / d hidden = (softmax - onehot) W is known as soon as a chunk's logits are.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, denominator: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            rows, target = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = _logits(head, rows)
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            loss += (log_sum - logits.gather(1, target)).sum()
            if gradient is None:
                continue
            slope = None if head.softcap is None else 1 - (logits / head.softcap).square_()
            delta = logits.sub_(log_sum).exp_()
            delta.scatter_add_(1, target, torch.full_like(log_sum, -1.0))
            if slope is not None:
                delta *= slope
            delta *= head.scale / denominator
            torch.mm(delta.to(head.weight.dtype), head.weight, out=gradient[start : start + CHUNK])
        ctx.gradient = gradient
        return loss / denominator

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad.to(gradient.dtype)), None, None, None
