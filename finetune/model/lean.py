"""RMSNorm and SwiGLU with their own backward, for CPUs: there passes over memory are a large part of the time.

The same arithmetic as transformers' in fewer passes, and fewer tensors saved for the backward. What a
module computes is tried out when a base is loaded and never taken from its name.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.model.compiled import region


@region
def norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = weight * x / rms(x) over the last dimension, and 1 / rms(x) in fp32.

    Zhang and Sennrich (2019, arXiv 1910.07467).
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x.clone()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(scale).to(x.dtype).mul_(weight), scale


@region
def norm_backward(grad: Tensor, out: Tensor, scale: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """Gradient of x, plus `residual` if given, from what `norm_forward` returned: x need not be kept.

    With unit = x/rms = out/weight: d(unit) = (g - unit * mean(g * unit)) / rms, g = grad * weight. The weight is
    frozen and nowhere 0.
    """
    unit = out.to(scale.dtype, copy=True).div_(weight)
    inner = grad.to(scale.dtype, copy=True).mul_(weight)
    shift = torch.linalg.vecdot(inner, unit, dim=-1).unsqueeze(-1).div_(out.shape[-1])
    found = inner.addcmul_(unit, shift, value=-1).mul_(scale).to(grad.dtype)
    return found if residual is None else found.add_(residual)


@region
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, Shazeer (2020, arXiv 2002.05202)."""
    return F.silu(gate).mul_(up)


@region
def swiglu_again(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate), and the same times up."""
    active = F.silu(gate)
    return active, active * up


@region
def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor, active: Tensor) -> Tensor:
    """Gradients of gate and up side by side, (T, 2 i); `active` is silu(gate); `grad` (T, i) is used up."""
    if torch.compiler.is_compiling():  # which has no use for `out`
        return torch.cat([torch.ops.aten.silu_backward(grad * up, gate), grad * active], dim=1)
    width = gate.shape[1]
    out = grad.new_empty(len(grad), 2 * width)
    torch.mul(grad, active, out=out[:, width:])
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=out[:, :width])
    return out


@region
def _swiglu_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = norm_forward(x.reshape(-1, x.shape[-1]), weight, eps)
        ctx.save_for_backward(out, scale, weight)
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return norm_backward(grad.reshape(-1, grad.shape[-1]), *ctx.saved_tensors).view_as(grad), None, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up; silu(gate) is computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _swiglu_gradients(grad, *ctx.saved_tensors)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = _RmsNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, module.weight, module.variance_epsilon
    )
    return out


def _mlp(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        inner = _SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
    else:  # nobody else holds them
        inner = F.silu(gate, inplace=True).mul_(up)
    out: Tensor = module.down_proj(inner)
    return out


def make_lean(model: nn.Module) -> int:
    """Give frozen modules of the usual kinds these forwards, on a CPU; return how many. Others keep their own."""
    found, tried = 0, dict[type, bool]()  # one module of each class is tried out: a large one takes a while
    for module in model.modules():
        name = type(module).__name__
        forward = _norm if name.endswith("RMSNorm") else _mlp if name.endswith("MLP") else None
        if forward is None or not _fits(module, forward is _norm):
            continue
        if type(module) not in tried:
            tried[type(module)] = _computes_the_same(module, forward)
        if tried[type(module)]:
            module.forward = MethodType(forward, module)
            found += 1
    return found


def _fits(module: nn.Module, norm: bool) -> bool:
    """Whether a module has just the parts that the forward uses, all frozen and on the CPU."""
    if any(p.requires_grad or p.device.type != "cpu" for p in module.parameters()):
        return False
    if norm:
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not (isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)):
            return False
        return bool(weight.all())  # none is 0: the backward divides by it
    names = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return names == {"gate_proj", "up_proj", "down_proj"}


@torch.no_grad()
def _computes_the_same(module: Any, forward: Any) -> bool:
    size = module.gate_proj.in_features if forward is _mlp else len(module.weight)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    own, ours = module(x.clone()), forward(module, x)
    return own.dtype == ours.dtype and torch.allclose(own, ours, rtol=4 * torch.finfo(own.dtype).eps, atol=1e-4)
