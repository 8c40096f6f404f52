"""The arithmetic of LoRA over frozen linears that read the same input, forward and backward.

    y = x W^T + bias + (x A^T) B^T      W frozen: (out, in); A: (R, in); B: (out, R), the scale folded in

One linear, or several as one (q, k and v; gate and up): W and A are theirs one below the other, B is block-diagonal.
So there is one large product instead of several, the gradient of x is one product instead of a sum, and the thin
products by A and B, which a processor does at a fraction of its rate, are fewer and wider. Several adapters share the
product by W, each with rows of x of its own.
LoRA: Hu et al. (2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.model.dense import dense_rows


class Branch(NamedTuple):
    """The LoRA branch of one linear: its parameters in fp32, and alpha / r (or alpha / sqrt(r))."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float


class Stack(NamedTuple):
    """One adapter's branches of linears with the same input, in the dtype of the computation."""

    a: Tensor  # (R, in)
    b: Tensor  # (out, R)
    scales: tuple[float, ...]  # 0 for a linear without a branch
    ranks: tuple[int, ...]
    outs: tuple[int, ...]
    rows: slice = slice(None)  # of x, on which they act

    def blocks(self) -> Iterator[tuple[int, slice, slice]]:
        """Number of each linear that has a branch, its rows of B, its columns of B (the rows of A)."""
        row = column = 0
        for i, (out, rank) in enumerate(zip(self.outs, self.ranks, strict=True)):
            if rank:
                yield i, slice(row, row + out), slice(column, column + rank)
            row, column = row + out, column + rank


class Gradients(NamedTuple):
    x: Tensor | None  # (T, in)
    branches: tuple[Tensor | None, ...]  # for each stack, of a and b of each linear in turn, in fp32


def stack(
    branches: Sequence[Branch | None], outs: Sequence[int], dtype: torch.dtype, rows: slice = slice(None)
) -> Stack | None:
    """Put one adapter's branches together; None where no linear has one."""
    found = [branch for branch in branches if branch is not None]
    if not found:
        return None
    scales = tuple(branch.scale if branch else 0.0 for branch in branches)
    ranks = tuple(len(branch.a) if branch else 0 for branch in branches)
    if len(branches) == 1:
        return Stack(found[0].a.to(dtype), (found[0].b * scales[0]).to(dtype), scales, ranks, tuple(outs), rows)
    a = torch.cat([branch.a for branch in found]).to(dtype)
    put = Stack(a, found[0].b.new_zeros(sum(outs), sum(ranks), dtype=dtype), scales, ranks, tuple(outs), rows)
    for i, rows, columns in put.blocks():
        put.b[rows, columns] = branches[i].b * scales[i]  # type: ignore[union-attr]
    return put


def project(
    linears: Sequence[nn.Module], lora: Sequence[Stack], x: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y (T, out), plus `residual` if given, and each stack's x A^T, which the backward needs; x is (T, in)."""
    weight = dense_rows(linears, x.dtype)
    out = torch.mm(x, weight.t()) if residual is None else torch.addmm(residual, x, weight.t())
    start = 0
    for linear in linears:
        end = start + int(linear.out_features)  # type: ignore[arg-type]
        if isinstance(linear.bias, Tensor):
            out[:, start:end].add_(linear.bias)
        start = end
    lows = tuple(x[part.rows] @ part.a.t() for part in lora)
    for part, low in zip(lora, lows, strict=True):
        out[part.rows].addmm_(low, part.b.t())
    return out, lows


def project_backward(
    linears: Sequence[nn.Module],
    lora: Sequence[Stack],
    grad: Tensor,
    x: Tensor,
    lows: Sequence[Tensor],
    *,
    wants_x: bool,
) -> Gradients:
    """Gradients of x and of every A and B from that of y (T, out)."""
    grad_x = grad @ dense_rows(linears, grad.dtype) if wants_x else None
    parts: list[Tensor | None] = []
    for part, low in zip(lora, lows, strict=True):
        own = grad[part.rows]
        through = own @ part.b  # (rows, R)
        if grad_x is not None:
            grad_x[part.rows].addmm_(through, part.a)
        parts += _branch_gradients(part, (through.t() @ x[part.rows]).float(), own.t() @ low)
    return Gradients(grad_x, tuple(parts))


def _branch_gradients(part: Stack, grad_a: Tensor, grad_b: Tensor) -> list[Tensor | None]:
    found: list[Tensor | None] = [None] * (2 * len(part.outs))
    for i, rows, columns in part.blocks():
        found[2 * i], found[2 * i + 1] = grad_a[columns], grad_b[rows, columns].float().mul_(part.scales[i])
    return found
