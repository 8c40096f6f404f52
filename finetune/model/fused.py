"""LoRA linears with their own backward: no clone, no fp32 copies of x, one addmm for the branch.

Drop-ins for PEFT's layers, registered through its custom-module hook: same parameters, same
checkpoint. Anything but the plain case (one active adapter, no dropout, no DoRA, not merged) runs
PEFT's own forward. Several adapters act at once on rows of their own inside `routed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    def forward(
        ctx: Any, x: Tensor, linear: nn.Module, routes: Sequence[Route], scales: Sequence[float], *parts: Tensor
    ) -> Tensor:
        rows, outs = x.reshape(-1, x.shape[-1]), [len(parts[1])]
        pairs = zip(routes, parts[::2], parts[1::2], scales, strict=True)  # fp32 masters, computed in the base's dtype
        stacks = [stack([Branch(a, b, scale)], outs, x.dtype, route.rows) for route, a, b, scale in pairs]
        lora = [found for found in stacks if found is not None]
        out, lows = project([linear], lora, rows)
        ctx.save_for_backward(rows, *lows, *(part for found in lora for part in found[:2]))
        ctx.constants, ctx.linear = [found[2:] for found in lora], linear
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.constants)
        rows, *saved = ctx.saved_tensors
        lows, matrices = saved[:count], saved[count:]
        lora = [Stack(a, b, *c) for a, b, c in zip(matrices[::2], matrices[1::2], ctx.constants, strict=True)]
        flat = grad.reshape(-1, grad.shape[-1])
        found = project_backward([ctx.linear], lora, flat, rows, lows, wants_x=ctx.needs_input_grad[0])
        grad_x = None if found.x is None else found.x.reshape(*grad.shape[:-1], found.x.shape[-1])
        return grad_x, None, None, None, *found.branches


class Route(NamedTuple):
    """Which rows of a packed row an adapter acts on."""

    adapter: str
    start: int = 0
    end: int | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.end)


_routes: tuple[Route, ...] = ()


@contextmanager
def routed(routes: Sequence[Route]) -> Iterator[None]:
    """Inside, these adapters act, each on its own rows, whichever PEFT has made active; all must be plain."""
    global _routes  # a linear is handed nothing that could carry it
    before, _routes = _routes, tuple(routes)
    try:
        yield
    finally:
        _routes = before


def plain_routes(layer: Any, kwargs: dict[str, Any]) -> tuple[Route, ...] | None:
    """The adapters that act in one of PEFT's layers and on which rows; None where PEFT's own forward is needed."""
    if layer.disable_adapters or layer.merged or any(v is not None for v in kwargs.values()):
        return None
    routes = _routes or tuple(Route(name) for name in layer.active_adapters)
    routes = tuple(route for route in routes if route.adapter in layer.lora_A)
    usual = bool(_routes) or len(routes) == 1  # where others are named, an adapter that is merely active does not act
    return routes if usual and all(is_plain(layer, route.adapter) for route in routes) else None


def is_plain(layer: Any, name: str) -> bool:
    """Whether an adapter of one of PEFT's layers is two matrices and a scale, now."""
    dropping = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
    return not (dropping or name in layer.lora_variant or layer.lora_bias[name])


def branch_of(layer: Any, name: str) -> Branch:
    """The parameters of one adapter in one of PEFT's layers."""
    return Branch(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _forward(layer: Any, routes: Sequence[Route], x: Tensor) -> Tensor:
    if not routes:
        return layer.get_base_layer()(x)  # type: ignore[no-any-return]
    branches = [branch_of(layer, route.adapter) for route in routes]
    scales, parts = [branch.scale for branch in branches], [part for branch in branches for part in branch[:2]]
    out: Tensor = _LoraMatmul.apply(x, layer.get_base_layer(), routes, scales, *parts)  # type: ignore[no-untyped-call]
    return out


class FusedLinear(PeftLinear):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        routes = plain_routes(self, kwargs)
        if routes is None or x.dtype != self.get_base_layer().weight.dtype:
            return super().forward(x, *args, **kwargs)
        return _forward(self, routes, x)


class FusedLinear4bit(PeftLinear4bit):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        routes = plain_routes(self, kwargs)
        return super().forward(x, *args, **kwargs) if routes is None else _forward(self, routes, x)


def register_fused(config: LoraConfig) -> LoraConfig:
    """Make PEFT build our layers for this config; nothing of it is written to disk."""
    # Linear4bit is a subclass of nn.Linear, so it must come first.
    config._register_custom_module({Linear4bit: FusedLinear4bit, nn.Linear: FusedLinear})
    return config
