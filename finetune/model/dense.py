"""Frozen weights as plain matrices: dequantised when a product needs them, or kept where memory allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

_KEPT = "finetune_dense"  # attribute of a linear: its weight dequantised, (out, in)
_KEPT_WITH = "finetune_dense_rows"  # attribute of the first of several: theirs, one below the other
_GROUP = "finetune_group"  # attribute of the first of several that are kept together
_scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
_holders: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # by a model's first 4-bit linear: `dense_kept`s
_holding = threading.Lock()


def dense_rows(linears: Sequence[nn.Module], dtype: torch.dtype) -> Tensor:
    """The weights of frozen linears with the same input as one matrix (sum of out, in).

    Valid until the next call: what is not kept lies in one buffer for all, because touching fresh memory for every
    product costs as much as dequantising.
    """
    kept = getattr(linears[0], _KEPT_WITH if len(linears) > 1 else _KEPT, None)
    if kept is not None and kept.dtype == dtype and len(kept) == sum(_shape(linear)[0] for linear in linears):
        return kept  # type: ignore[no-any-return]
    plain = _together(linears)
    if plain is not None:
        return plain.to(dtype)
    shapes = [_shape(linear) for linear in linears]
    rows, width = sum(out for out, _ in shapes), shapes[0][1]
    return _fill(_buffer(rows * width, dtype, _device(linears[0])).view(rows, width), linears)


def keep_dense(model: nn.Module, budget_bytes: int) -> int:
    """Keep dequantised copies of as many 4-bit weights as fit into the budget; return the bytes they take.

    The numbers are the same with and without: both multiply by the dequantised weight. Linears that
    `group_dense` named are kept together. A budget of 0 drops what was kept.
    """
    drop_dense(model)
    taken = 0
    for group in _groups(model):
        shapes = [_shape(linear) for linear in group]
        dtype = _state(group[0]).dtype
        size = sum(out for out, _ in shapes) * shapes[0][1] * dtype.itemsize
        if taken + size > budget_bytes:
            continue
        taken += size
        _keep(group, torch.empty(sum(out for out, _ in shapes), shapes[0][1], dtype=dtype, device=_device(group[0])))
    return taken


def drop_dense(model: nn.Module) -> None:
    """Forget every dequantised copy."""
    for module in model.modules():
        for name in (_KEPT, _KEPT_WITH):
            module.__dict__.pop(name, None)


@contextmanager
def dense_kept(model: nn.Module, budget: Callable[[torch.device], int]) -> Iterator[None]:
    """Inside, copies as of `keep_dense` are there, within so many bytes; those that are there already are left alone.

    Any thread may enter; the last to leave drops the copies.
    """
    first = next((module for module in model.modules() if isinstance(module, Linear4bit)), None)
    if first is None:
        yield
        return
    with _holding:
        mine = first in _holders or not any(_KEPT in module.__dict__ for module in model.modules())
        if mine and first not in _holders:
            keep_dense(model, budget(_device(first)))
        if mine:
            _holders[first] = _holders.get(first, 0) + 1
    try:
        yield
    finally:
        with _holding:
            if mine:
                _holders[first] -= 1
            if mine and not _holders[first]:
                del _holders[first]
                drop_dense(model)


def multiply_by_kept(model: nn.Module) -> None:
    """Let 4-bit linears on a CPU multiply by their kept copy, where there is one and no gradient is wanted.

    bitsandbytes does the same there, with a copy that it makes anew each time: the numbers are equal bit for bit.
    On a GPU it has kernels that multiply by 4 bits at once.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit) and _device(module).type == "cpu":
            module.__dict__["forward"] = MethodType(_forward, module)


def _forward(linear: Any, x: Tensor) -> Tensor:
    kept, bias = linear.__dict__.get(_KEPT), linear.bias
    as_usual = kept is None or torch.is_grad_enabled() or not x.dtype == kept.dtype == linear.compute_dtype
    if as_usual or (bias is not None and bias.dtype != x.dtype):
        return type(linear).forward(linear, x)  # type: ignore[no-any-return]
    return F.linear(x, kept, bias)


def group_dense(linears: Sequence[nn.Module]) -> None:
    """Say that these linears read the same input: their weights become one matrix, plain ones at once and in place,
    4-bit ones where `keep_dense` keeps them."""
    linears[0].__dict__[_GROUP] = tuple(linears)
    weights: list[Any] = [linear.weight for linear in linears]
    if all(_state(linear) is None for linear in linears) and len({weight.dtype for weight in weights}) == 1:
        rows, start = torch.cat([weight.detach() for weight in weights]), 0
        for weight in weights:
            weight.data = rows[start : start + len(weight)]
            start += len(weight)


def _together(linears: Sequence[nn.Module]) -> Tensor | None:
    """Plain weights as one matrix without a copy, where they lie one below the other in memory."""
    weights: list[Any] = [linear.weight for linear in linears]
    first = weights[0]
    if any(_state(linear) is not None for linear in linears):
        return None
    if len(linears) == 1:
        return first  # type: ignore[no-any-return]
    place, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != storage or weight.storage_offset() != place:
            return None
        place += weight.numel()
    return first.detach().as_strided((sum(map(len, weights)), first.shape[1]), first.stride())  # type: ignore[no-any-return]


def _groups(model: nn.Module) -> Iterable[tuple[nn.Module, ...]]:
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, Linear4bit):  # PEFT's wrappers show the weight of what they wrap
            continue
        group = module.__dict__.get(_GROUP, (module,))
        group = tuple(linear for linear in group if _state(linear) is not None and id(linear) not in seen)
        if group:
            seen.update(id(linear) for linear in group)
            yield group


def _keep(group: Sequence[nn.Module], rows: Tensor) -> None:
    _fill(rows, group)
    start = 0
    for linear in group:
        linear.__dict__[_KEPT] = rows[start : start + _shape(linear)[0]]
        start += _shape(linear)[0]
    if len(group) > 1:
        group[0].__dict__[_KEPT_WITH] = rows


def _fill(rows: Tensor, linears: Sequence[nn.Module]) -> Tensor:
    start = 0
    for linear in linears:
        part, state = rows[start : start + _shape(linear)[0]], _state(linear)
        if state is None:
            part.copy_(linear.weight.detach())  # type: ignore[operator]
        elif state.dtype == rows.dtype and rows.device.type == "cuda":  # bitsandbytes' CPU kernel takes no `out`
            dequantize_4bit(linear.weight.data, state, out=part)  # type: ignore[arg-type]
        else:
            part.copy_(dequantize_4bit(linear.weight.data, state))  # type: ignore[arg-type]
        start += len(part)
    return rows


def _buffer(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    found = _scratch.get((device, dtype))
    if found is None or len(found) < numel:
        found = _scratch[device, dtype] = torch.empty(numel, dtype=dtype, device=device)
    return found[:numel]


def _state(linear: nn.Module) -> Any:
    """The quantisation constants of a 4-bit linear, None for any other module."""
    return getattr(getattr(linear, "weight", None), "quant_state", None)


def _shape(linear: nn.Module) -> tuple[int, int]:
    return linear.out_features, linear.in_features  # type: ignore[return-value]


def _device(linear: nn.Module) -> torch.device:
    return linear.weight.device  # type: ignore[return-value]
