"""LoRA linears with their own backward: no clone, no fp32 copies of x, one addmm for the branch.

Drop-ins for PEFT's layers, registered through its custom-module hook: same parameters, same
checkpoint. Anything but the plain case (one active adapter, no dropout, no DoRA, not merged) runs
PEFT's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn


class _LoraMatmul(torch.autograd.Function):
    """y = x W^T + bias + scale (x A^T) B^T with W frozen; W is dequantised again in backward."""

    @staticmethod
    def forward(  # noqa: PLR0913 (autograd hands over one argument per input)
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)  # fp32 masters, computed in the base's dtype
        out = torch.nn.functional.linear(rows, _dense(weight, x.dtype), bias)
        low = rows @ a.t()
        out = out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.weight = scale, weight  # not saved as a tensor: Params4bit carries its state
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        through_b = flat @ b  # (T, r)
        grad_b = (flat.t() @ low).mul_(ctx.scale).float() if ctx.needs_input_grad[2] else None
        grad_a = (through_b.t() @ rows).mul_(ctx.scale).float() if ctx.needs_input_grad[1] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (flat @ _dense(ctx.weight, flat.dtype)).addmm_(through_b, a, alpha=ctx.scale)
            grad_x = grad_x.reshape(*grad.shape[:-1], grad_x.shape[-1])
        return grad_x, grad_a, grad_b, None, None, None


def _dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.to(dtype)
    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense.to(dtype)


def _plain_adapter(layer: Any, kwargs: dict[str, Any]) -> str | None:
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


def _forward(layer: Any, name: str, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    out: Tensor = _LoraMatmul.apply(  # type: ignore[no-untyped-call]
        x, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], base.weight, base.bias
    )
    return out


class FusedLinear(PeftLinear):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = _plain_adapter(self, kwargs)
        if name is None or x.dtype != self.get_base_layer().weight.dtype:
            return super().forward(x, *args, **kwargs)
        return _forward(self, name, x)


class FusedLinear4bit(PeftLinear4bit):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = _plain_adapter(self, kwargs)
        return super().forward(x, *args, **kwargs) if name is None else _forward(self, name, x)


def register_fused(config: LoraConfig) -> LoraConfig:
    """Make PEFT build our layers for this config; nothing of it is written to disk."""
    # Linear4bit is a subclass of nn.Linear, so it must come first.
    config._register_custom_module({Linear4bit: FusedLinear4bit, nn.Linear: FusedLinear})
    return config
