"""The one loss: summed NLL of the trained tokens; only their rows go through the output head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.batches import IGNORED, MicroBatch
from finetune.errors import ModelError
from finetune.model.attention import ALIGN, aligned, hidden_states
from finetune.model.memory import CHUNK, CPU_LOGITS, CPU_ROWS, FP32_LOGITS


@dataclass(frozen=True)
class Head:
    """The frozen output head: logits = softcap(scale * (h W^T + bias))."""

    weight: Tensor  # (V, d)
    bias: Tensor | None
    scale: float
    softcap: float | None
    buffers: dict[torch.dtype, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def chunk(self) -> int:
        """Rows of logits that exist at a time."""
        if self.weight.device.type != "cpu":
            return CHUNK
        return min(CHUNK, max(CPU_ROWS, CPU_LOGITS // len(self.weight) // ALIGN * ALIGN))

    @property
    def block(self) -> int:
        """Rows of these that exist in fp32 at a time."""
        return self.chunk if self.weight.device.type != "cpu" else max(1, FP32_LOGITS // len(self.weight))

    def buffer(self, dtype: torch.dtype, rows: int) -> Tensor:
        """Memory for (rows, V) logits, kept: touching fresh memory costs more than the arithmetic."""
        if dtype not in self.buffers or len(self.buffers[dtype]) < rows:
            self.buffers[dtype] = torch.empty(rows, len(self.weight), dtype=dtype, device=self.weight.device)
        return self.buffers[dtype][:rows]


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
    """Sum of NLL over the trained tokens of a micro-batch / denominator, in fp32, differentiable.

    With the trained tokens of the whole optimizer step as denominator, summing this over its
    micro-batches and processes is the token-weighted mean, however the step was cut.
    """
    return shared_nll(model, head, batch, [(batch.trained, denominator)])[0]


def shared_nll(
    model: PreTrainedModel, head: Head, batch: MicroBatch, shares: Sequence[tuple[int, float]]
) -> list[Tensor]:
    """The same of one that several steps share: trained tokens of each, in the row's order, and its denominator."""
    hidden, targets = trained_rows(model, batch)
    sizes = [trained for trained, _ in shares]
    parts = zip(hidden.split(sizes), targets.split(sizes), shares, strict=True)
    return [_FrozenHeadLoss.apply(h, t, head, denominator) for h, t, (_, denominator) in parts]  # type: ignore[no-untyped-call]


def trained_rows(model: PreTrainedModel, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d) from which a trained token is predicted, and those tokens (n,)."""
    hidden = hidden_states(model, batch.input_ids, batch.position_ids, batch.segments, packed=batch.packed)
    keep = batch.labels != IGNORED
    return hidden[keep], batch.labels[keep]


def row_nll(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """NLL of each target in fp32, (n,), without gradient; a chunk of logits at a time."""
    parts = []
    for chunk in _cut(len(hidden), head.chunk):
        raw, target = _raw_logits(head, hidden[chunk]), targets[chunk, None]
        parts += [_nll(_logits(head, raw[block]), target[block])[0] for block in _cut(len(target), head.block)]
    return torch.cat(parts)[:, 0] if parts else hidden.new_zeros(0, dtype=torch.float32)


def _cut(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _raw_logits(head: Head, hidden: Tensor) -> Tensor:
    """hidden W^T + bias in the head's dtype, rows aligned, in the head's own buffer: valid until the next call."""
    rows = F.pad(hidden, (0, 0, 0, aligned(len(hidden)) - len(hidden)))
    raw = head.buffer(head.weight.dtype, len(rows))
    if head.bias is None:
        return torch.mm(rows, head.weight.t(), out=raw)
    return torch.addmm(head.bias, rows, head.weight.t(), out=raw)


def _logits(head: Head, raw: Tensor) -> Tensor:
    """Logits (n, V) in fp32: raw itself, changed, or a buffer that is valid until the next call."""
    logits = raw if raw.dtype == torch.float32 else head.buffer(torch.float32, len(raw)).copy_(raw)
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits


def _nll(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """NLL (n, 1) of the targets (n, 1), and the sums (n, 1) that turn the logits, now exponentials, into softmax."""
    top = logits.amax(dim=1, keepdim=True)
    picked = logits.gather(1, target) - top
    total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
    return total.log() - picked, total


def _nll_and_slope(head: Head, raw: Tensor, target: Tensor, *, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """NLL (n, 1), and if wanted its derivative by the logits before their scale, softmax - onehot, (n, V) in fp32."""
    logits = _logits(head, raw)
    slope = 1 - (logits / head.softcap).square_() if wanted and head.softcap is not None else None
    nll, total = _nll(logits, target)
    if not wanted:
        return nll, None
    delta = logits.div_(total)
    delta.scatter_add_(1, target, torch.full_like(nll, -1.0))
    return nll, delta if slope is None else delta.mul_(slope)


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen head, its gradient computed chunk by chunk in the forward.

    Two matrix products in all and never more than a chunk of logits: with the head frozen,
    d loss / d hidden = (softmax - onehot) W is known as soon as a chunk's logits are.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, denominator: float) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = hidden.new_empty(aligned(len(hidden)), hidden.shape[1]) if wanted else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for chunk in _cut(len(hidden), head.chunk):
            raw, target = _raw_logits(head, hidden[chunk]), targets[chunk, None]
            for block in _cut(len(target), head.block):
                nll, delta = _nll_and_slope(head, raw[block], target[block], wanted=wanted)
                loss += nll.sum()
                if delta is not None and raw.dtype != torch.float32:
                    raw[block].copy_(delta)
            if gradient is not None:
                torch.mm(raw, head.weight, out=gradient[chunk.start : chunk.start + len(raw)])
        ctx.gradient, ctx.factor = None if gradient is None else gradient[: len(hidden)], head.scale / denominator
        return loss / denominator

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad * ctx.factor), None, None, None
