"""The arithmetic of LoRA over frozen linears that read the same input, forward and backward.

    y = x W^T + bias + (x A^T) B^T      W frozen: (out, in); A: (R, in); B: (out, R), the scale folded in

One linear, or several as one (q, k and v; gate and up): W and A are theirs one below the other, B is block-diagonal.
So there is one large product instead of several, the gradient of x is one product instead of a sum, and the thin
products by A and B, which a processor does at a fraction of its rate, are fewer and wider.
LoRA: Hu et al. (2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.model.dense import dense_rows


class Branch(NamedTuple):
    """The LoRA branch of one linear: its parameters in fp32, and alpha / r (or alpha / sqrt(r))."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float


class Stack(NamedTuple):
    """Branches of linears with the same input, in the dtype of the computation."""

    a: Tensor  # (R, in)
    b: Tensor  # (out, R)
    scales: tuple[float, ...]  # 0 for a linear without a branch
    ranks: tuple[int, ...]
    outs: tuple[int, ...]

    def blocks(self) -> Iterator[tuple[int, slice, slice]]:
        """Number of each linear that has a branch, its rows of B, its columns of B (the rows of A)."""
        row = column = 0
        for i, (out, rank) in enumerate(zip(self.outs, self.ranks, strict=True)):
            if rank:
                yield i, slice(row, row + out), slice(column, column + rank)
            row, column = row + out, column + rank


class Gradients(NamedTuple):
    x: Tensor | None  # (T, in)
    branches: tuple[Tensor | None, ...]  # of a and b of each linear in turn, in fp32


def stack(branches: Sequence[Branch | None], outs: Sequence[int], dtype: torch.dtype) -> Stack | None:
    """Put branches together; None where no linear has one."""
    found = [branch for branch in branches if branch is not None]
    if not found:
        return None
    scales = tuple(branch.scale if branch else 0.0 for branch in branches)
    ranks = tuple(len(branch.a) if branch else 0 for branch in branches)
    if len(branches) == 1:
        return Stack(found[0].a.to(dtype), (found[0].b * scales[0]).to(dtype), scales, ranks, tuple(outs))
    a = torch.cat([branch.a for branch in found]).to(dtype)
    put = Stack(a, found[0].b.new_zeros(sum(outs), sum(ranks), dtype=dtype), scales, ranks, tuple(outs))
    for i, rows, columns in put.blocks():
        put.b[rows, columns] = branches[i].b * scales[i]  # type: ignore[union-attr]
    return put


def project(
    linears: Sequence[nn.Module], lora: Stack | None, x: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """y (T, out), plus `residual` if given, and x A^T (T, R), which the backward needs; x is (T, in)."""
    weight = dense_rows(linears, x.dtype)
    out = torch.mm(x, weight.t()) if residual is None else torch.addmm(residual, x, weight.t())
    start = 0
    for linear in linears:
        end = start + int(linear.out_features)  # type: ignore[arg-type]
        if isinstance(linear.bias, Tensor):
            out[:, start:end].add_(linear.bias)
        start = end
    if lora is None:
        return out, None
    low = x @ lora.a.t()
    return out.addmm_(low, lora.b.t()), low


def project_backward(
    linears: Sequence[nn.Module], lora: Stack | None, grad: Tensor, x: Tensor, low: Tensor | None, *, wants_x: bool
) -> Gradients:
    """Gradients of x and of every A and B from that of y (T, out)."""
    grad_x = grad @ dense_rows(linears, grad.dtype) if wants_x else None
    if lora is None or low is None:
        return Gradients(grad_x, (None,) * (2 * len(linears)))
    through = grad @ lora.b  # (T, R)
    if grad_x is not None:
        grad_x.addmm_(through, lora.a)
    grad_a, grad_b = (through.t() @ x).float(), grad.t() @ low
    parts: list[Any] = [None] * (2 * len(linears))
    for i, rows, columns in lora.blocks():
        parts[2 * i], parts[2 * i + 1] = grad_a[columns], grad_b[rows, columns].float().mul_(lora.scales[i])
    return Gradients(grad_x, tuple(parts))
