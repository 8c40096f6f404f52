"""LoRA linears with their own backward: no clone, no fp32 copies of x, one addmm for the branch.

Drop-ins for PEFT's layers, registered through its custom-module hook: same parameters, same
checkpoint. Anything but the plain case (one active adapter, no dropout, no DoRA, not merged) runs
PEFT's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from finetune.model.lowrank import Branch, Stack, project, project_backward, stack


class _LoraMatmul(torch.autograd.Function):
    """y = x W^T + bias + scale (x A^T) B^T with W frozen; W is dequantised again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, linear: nn.Module) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        lora = stack([Branch(a, b, scale)], [len(b)], x.dtype)  # fp32 masters, computed in the base's dtype
        assert lora is not None
        out, low = project([linear], lora, rows)
        ctx.save_for_backward(rows, low, lora.a, lora.b)
        ctx.constants, ctx.linear = lora[2:], linear
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        flat, lora = grad.reshape(-1, grad.shape[-1]), Stack(a, b, *ctx.constants)
        found = project_backward([ctx.linear], lora, flat, rows, low, wants_x=ctx.needs_input_grad[0])
        grad_x = None if found.x is None else found.x.reshape(*grad.shape[:-1], found.x.shape[-1])
        return grad_x, *found.branches, None, None


def plain_adapter(layer: Any, kwargs: dict[str, Any]) -> str | None:
    """Name of the one active adapter, or None where PEFT's own forward is needed."""
    if layer.disable_adapters or layer.merged or any(v is not None for v in kwargs.values()):
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return None
    name = active[0]
    dropping = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    special = name in layer.lora_variant or layer.lora_bias[name]
    return None if dropping or special else str(name)


def branch_of(layer: Any, name: str) -> Branch:
    """The parameters of one adapter in one of PEFT's layers."""
    return Branch(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _forward(layer: Any, name: str, x: Tensor) -> Tensor:
    out: Tensor = _LoraMatmul.apply(  # type: ignore[no-untyped-call]
        x, *branch_of(layer, name), layer.get_base_layer()
    )
    return out


class FusedLinear(PeftLinear):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = plain_adapter(self, kwargs)
        if name is None or x.dtype != self.get_base_layer().weight.dtype:
            return super().forward(x, *args, **kwargs)
        return _forward(self, name, x)


class FusedLinear4bit(PeftLinear4bit):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = plain_adapter(self, kwargs)
        return super().forward(x, *args, **kwargs) if name is None else _forward(self, name, x)


def register_fused(config: LoraConfig) -> LoraConfig:
    """Make PEFT build our layers for this config; nothing of it is written to disk."""
    # Linear4bit is a subclass of nn.Linear, so it must come first.
    config._register_custom_module({Linear4bit: FusedLinear4bit, nn.Linear: FusedLinear})
    return config
