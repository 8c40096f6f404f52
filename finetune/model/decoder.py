"""Decoder layers of the usual kind, with LoRA branches, in two steps with their own backward.

    enter:  x -> RMSNorm -> q, k, v (+ LoRA) -> rotary embedding        then attention, by autograd
    leave:  attention, x -> o (+ LoRA) -> + x -> RMSNorm -> SwiGLU MLP (+ LoRA) -> + residual

The same arithmetic as transformers' layer of Llama, Mistral, Qwen2, Qwen3, SmolLM and others, with fewer and
larger products, fewer passes over memory and less kept for the backward: what is cheap is computed again there.
Which layers get it is found by trying (fitting.py); everything but packed rows with at most one plain LoRA adapter
runs the layer's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.model.attention import segment_attention
from finetune.model.blocks import Segments
from finetune.model.compiled import region
from finetune.model.fused import Route, branch_of, plain_routes
from finetune.model.lean import norm_backward, norm_forward, swiglu, swiglu_again, swiglu_backward
from finetune.model.lowrank import Branch, Stack, project, project_backward, stack

QKV, O_PROJ, GATE_UP, DOWN = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)
NORMS = ("input_layernorm", "post_attention_layernorm")
PLAN = "finetune_plan"  # attribute of a layer that fits
ROUTE = "finetune_route"  # attribute of a linear: `branch()` gives what a bank of adapters adds to it at the moment
_BANK = Route("")


@dataclass(frozen=True)
class Plan:
    """What was found out about a layer when it was tried."""

    heads: int
    kv_heads: int
    attention: dict[str, Any]  # scaling, sliding window: what the layer hands to its attention function


@dataclass(frozen=True)
class _Linears:
    """Linears with the same input, without their adapters, and the branches on them."""

    base: tuple[nn.Module, ...]
    lora: tuple[Stack, ...]  # one for each adapter
    parameters: tuple[Tensor | None, ...]  # for each adapter, A and B of each in turn

    @staticmethod
    def of(parent: nn.Module, names: Sequence[str], dtype: torch.dtype) -> _Linears | None:
        """None where a linear needs PEFT's own forward."""
        base, found = list[nn.Module](), dict[Route, list[Branch | None]]()
        for number, name in enumerate(names):
            layer = getattr(parent, name)
            adapted = hasattr(layer, "lora_A")
            routes = plain_routes(layer, {}) if adapted else ()
            if routes is None and not _plainly_off(layer):
                return None
            base.append(layer.get_base_layer() if adapted else layer)
            for route in routes or ():
                found.setdefault(route, [None] * len(names))[number] = branch_of(layer, route.adapter)
            bank = None if adapted else layer.__dict__.get(ROUTE)
            if bank is not None and (branch := bank.branch()) is not None:
                found.setdefault(_BANK, [None] * len(names))[number] = branch
        outs = [int(linear.out_features) for linear in base]  # type: ignore[arg-type]
        stacks = [stack(branches, outs, dtype, route.rows) for route, branches in found.items()]
        every = [branch for branches in found.values() for branch in branches]
        parameters = [part for branch in every for part in ((branch.a, branch.b) if branch else (None, None))]
        return _Linears(tuple(base), tuple(part for part in stacks if part is not None), tuple(parameters))


def _plainly_off(layer: Any) -> bool:
    """Whether a layer of PEFT's does just what its base does."""
    return not layer.merged and (layer.disable_adapters or not any(n in layer.lora_A for n in layer.active_adapters))


@dataclass(frozen=True)
class _Enter:
    norm: Any
    qkv: _Linears
    plan: Plan
    head_norms: tuple[Any, ...]  # of q and k (Qwen3), or none


@dataclass(frozen=True)
class _Leave:
    norm: Any
    o: _Linears
    gate_up: _Linears
    down: _Linears


class _EnterLayer(torch.autograd.Function):
    """x (T, d) -> q (heads, T, w), k and v (kv_heads, T, w)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, spec: _Enter, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed, scale = norm_forward(x, spec.norm.weight, spec.norm.variance_epsilon)
        out, lows = project(spec.qkv.base, spec.qkv.lora, normed)
        heads = spec.plan.heads + spec.plan.kv_heads
        width = cos.shape[-1]
        both = out[:, : heads * width].view(-1, heads, width).transpose(0, 1)  # (heads, T, w)
        normed_heads, head_scale = _norm_heads(both, spec) if spec.head_norms else (None, None)
        both = both.contiguous() if normed_heads is None else normed_heads
        both = rotate(both, cos, sin)
        value = out[:, heads * width :].view(len(x), -1, width).transpose(0, 1)
        ctx.spec = spec
        ctx.save_for_backward(normed, scale, cos, sin, normed_heads, head_scale, *lows)
        return both[: spec.plan.heads], both[spec.plan.heads :], value.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, cos, sin, normed_heads, head_scale, *lows = ctx.saved_tensors
        spec: _Enter = ctx.spec
        turned = [rotate(grad, cos, -sin) for grad in grads[:2]]
        if spec.head_norms:
            turned = _norm_heads_backward(turned, normed_heads, head_scale, spec)
        heads, last = spec.plan.heads, spec.plan.heads + spec.plan.kv_heads
        out = grads[2].new_empty(len(normed), last + spec.plan.kv_heads, cos.shape[-1])
        for part, place in zip((*turned, grads[2]), (slice(heads), slice(heads, last), slice(last, None)), strict=True):
            out[:, place].copy_(part.transpose(0, 1))
        found = project_backward(
            spec.qkv.base, spec.qkv.lora, out.view(len(normed), -1), normed, lows, wants_x=ctx.needs_input_grad[0]
        )
        grad_x = None if found.x is None else norm_backward(found.x, normed, scale, spec.norm.weight)
        return grad_x, None, None, None, *found.branches


class _LeaveLayer(torch.autograd.Function):
    """Attention's result (T, heads * w) and the layer's input x (T, d) -> the layer's output (T, d)."""

    @staticmethod
    def forward(ctx: Any, attended: Tensor, x: Tensor, spec: _Leave, *parameters: Tensor) -> Tensor:
        middle, low_o = project(spec.o.base, spec.o.lora, attended, residual=x)
        normed, scale = norm_forward(middle, spec.norm.weight, spec.norm.variance_epsilon)
        gate_up, low_gate_up = project(spec.gate_up.base, spec.gate_up.lora, normed)
        gate, up = gate_up.chunk(2, dim=1)
        out, low_down = project(spec.down.base, spec.down.lora, swiglu(gate, up), residual=middle)
        ctx.spec = spec
        ctx.save_for_backward(attended, normed, scale, gate_up, *low_o, *low_gate_up, *low_down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attended, normed, scale, gate_up, *lows = ctx.saved_tensors
        spec: _Leave = ctx.spec
        low_o, low_gate_up, low_down = _dealt(lows, spec.o, spec.gate_up, spec.down)
        gate, up = gate_up.chunk(2, dim=1)
        active, product = swiglu_again(gate, up)
        down = project_backward(spec.down.base, spec.down.lora, grad, product, low_down, wants_x=True)
        del product  # as large as gate: what comes next needs the most memory
        assert down.x is not None
        inner = swiglu_backward(down.x, gate, up, active)
        mlp = project_backward(spec.gate_up.base, spec.gate_up.lora, inner, normed, low_gate_up, wants_x=True)
        assert mlp.x is not None
        total = norm_backward(mlp.x, normed, scale, spec.norm.weight, grad)
        wanted = ctx.needs_input_grad[0]
        o = project_backward(spec.o.base, spec.o.lora, total, attended, low_o, wants_x=wanted)
        return o.x, total if ctx.needs_input_grad[1] else None, None, *o.branches, *mlp.branches, *down.branches


def _dealt(lows: Sequence[Tensor], *linears: _Linears) -> Iterator[Sequence[Tensor]]:
    start = 0
    for part in linears:
        yield lows[start : start + len(part.lora)]
        start += len(part.lora)


@region
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (heads, T, w); cos and sin are (T, w). Su et al. (2021, arXiv 2104.09864).

    The halves change places without being copied.
    """
    half = x.shape[-1] // 2
    if torch.compiler.is_compiling():  # one pass; written in place it would be three with a condition for each number
        first, second = x[..., :half], x[..., half:]
        turned = first * cos[:, :half] - second * sin[:, :half], second * cos[:, half:] + first * sin[:, half:]
        return torch.cat(turned, dim=-1)
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[:, :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[:, half:])
    return out


def _norm_heads(both: Tensor, spec: _Enter) -> tuple[Tensor, Tensor]:
    parts = both.split([spec.plan.heads, spec.plan.kv_heads])
    done = [norm_forward(p, n.weight, n.variance_epsilon) for p, n in zip(parts, spec.head_norms, strict=True)]
    return torch.cat([out for out, _ in done]), torch.cat([scale for _, scale in done])


def _norm_heads_backward(grads: list[Tensor], out: Tensor, scale: Tensor, spec: _Enter) -> list[Tensor]:
    sizes = [spec.plan.heads, spec.plan.kv_heads]
    parts = zip(grads, out.split(sizes), scale.split(sizes), spec.head_norms, strict=True)
    return [norm_backward(grad, done, part, norm.weight) for grad, done, part, norm in parts]


def layer_forward(
    layer: Any,
    hidden_states: Tensor,
    *args: Any,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    past_key_values: Any = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> Any:
    usual = past_key_values is not None or args or position_embeddings is None or len(hidden_states) != 1
    specs = None if segments is None or usual else _specs(layer, hidden_states.dtype)
    if specs is None or segments is None or position_embeddings is None:
        kwargs |= {} if segments is None else {"segments": segments}
        given = {"position_embeddings": position_embeddings, "past_key_values": past_key_values, **kwargs}
        return type(layer).forward(layer, hidden_states, *args, **given)
    enter, leave = specs
    x = hidden_states[0]
    cos, sin = (part[0] for part in position_embeddings)
    q, k, v = _EnterLayer.apply(x, cos, sin, enter, *enter.qkv.parameters)  # type: ignore[no-untyped-call]
    attended, _ = segment_attention(
        layer.self_attn, q[None], k[None], v[None], None, segments=segments, **enter.plan.attention
    )
    parameters = (*leave.o.parameters, *leave.gate_up.parameters, *leave.down.parameters)
    out = _LeaveLayer.apply(attended.reshape(len(x), -1), x, leave, *parameters)  # type: ignore[no-untyped-call]
    return out[None]


def _specs(layer: Any, dtype: torch.dtype) -> tuple[_Enter, _Leave] | None:
    """The layer's parts as they are now, with the active adapter; None where one of them needs its own forward."""
    attention, mlp = layer.self_attn, layer.mlp
    groups = [(attention, QKV), (attention, O_PROJ), (mlp, GATE_UP), (mlp, DOWN)]
    qkv, o, gate_up, down = (_Linears.of(parent, names, dtype) for parent, names in groups)
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    norms = tuple(getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name))
    enter = _Enter(layer.input_layernorm, qkv, layer.__dict__[PLAN], norms)
    return enter, _Leave(layer.post_attention_layernorm, o, gate_up, down)
