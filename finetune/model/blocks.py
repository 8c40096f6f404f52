"""Attention for short segments on a CPU: blocks of plain batched matrix products, with their own backward.

There the backward of PyTorch's kernel is slow for short rows (benchmarks/attention.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from finetune.data.batches import best_fit

LONGEST = 384  # tokens of a segment: longer ones are faster in PyTorch's kernel
CHUNK_ROWS = 256  # queries of a block whose scores exist at a time
Segments = tuple[tuple[int, int], ...]  # (start, end) of each example in the row


def causal_window(length: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean (length, length): True where position i may see j, i - window < j <= i."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (window or length))


@dataclass(frozen=True)
class _Blocks:
    """A packed row cut into n blocks of length L; short segments share a block, hidden from each other.

    The G query heads that share a key head stand one below the other in a block: keys are never repeated.
    """

    source: Tensor  # (n * L,) position in the row of each place in the blocks; 0 where nothing lies
    place: Tensor  # (T,) the inverse
    query_source: Tensor  # (n * G * L,) of queries (G * T, w) in the blocks (n, G, L, w)
    query_place: Tensor  # (G * T,) the inverse
    hidden: tuple[Tensor, ...]  # per chunk of queries: additive mask (n, G * rows, keys), -inf where one does not look
    groups: int

    @property
    def size(self) -> int:
        return self.hidden[-1].shape[-1]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Places of the queries of each chunk, and its mask; queries look at no key behind their chunk."""
        start = 0
        for hidden in self.hidden:
            yield slice(start, hidden.shape[-1]), hidden
            start = hidden.shape[-1]


@lru_cache(maxsize=2)  # every layer of one micro-batch asks for the same; two kinds of windows at most
def _blocks(
    segments: Segments, groups: int, window: int | None, dtype: torch.dtype, device: torch.device, rows: int
) -> _Blocks:
    """`rows`: places per chunk of queries; each chunk's scores should fit a processor's cache."""
    lengths = [end - start for start, end in segments]
    size = -(-max(lengths) // 32) * 32
    bins = best_fit(lengths, size)
    source = torch.zeros(len(bins), size, dtype=torch.long)
    owner = -1 - torch.arange(size).repeat(len(bins), 1)  # an empty place sees itself alone: no row of -inf
    for block, members in enumerate(bins):
        at = 0
        for i in members:
            source[block, at : at + lengths[i]] = torch.arange(*segments[i])
            owner[block, at : at + lengths[i]] = i
            at += lengths[i]
    filled = (owner >= 0).flatten()
    place = torch.empty(sum(lengths), dtype=torch.long)
    place[source.flatten()[filled]] = torch.arange(source.numel())[filled]
    group = torch.arange(groups)[:, None]
    query_source = (group * sum(lengths) + source[:, None]).flatten()  # (n, G, L)
    query_place = ((place // size * groups + group) * size + place % size).flatten()
    seen = (owner[:, :, None] == owner[:, None, :]) & causal_window(size, window, torch.device("cpu"))
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None]
    ends = [*range(rows, size, rows), size]
    masks = (hidden[:, :, start:end, :end] for start, end in zip((0, *ends), ends, strict=False))
    repeated = (mask.expand(-1, groups, -1, -1).reshape(len(bins), -1, mask.shape[-1]) for mask in masks)
    return _Blocks(
        source.flatten().to(device),
        place.to(device),
        query_source.to(device),
        query_place.to(device),
        tuple(mask.to(device) for mask in repeated),
        groups,
    )


class _BlockAttention(torch.autograd.Function):
    """softmax(scale q k^T + hidden) v for blocks q (kv_heads, n, G, L, w), k and v (kv_heads, n, L, w).

    Chunk by chunk, so that scores never leave the cache, and computed again in the backward instead of kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: _Blocks, scaling: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scaling = blocks, scaling
        out = torch.empty_like(q)
        for head in range(len(q)):
            for rows, hidden in blocks.chunks():
                weights = _weights(q[head], k[head], rows, hidden, scaling)
                _rows(out[head], rows).copy_(_as_rows(torch.bmm(weights, v[head, :, : rows.stop]), blocks.groups))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        blocks, scaling = ctx.blocks, ctx.scaling
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for head in range(len(q)):
            for rows, hidden in blocks.chunks():
                weights = _weights(q[head], k[head], rows, hidden, scaling)
                part = _rows(grad[head], rows).reshape(len(hidden), -1, grad.shape[-1])
                grad_v[head, :, : rows.stop].baddbmm_(weights.transpose(1, 2), part)
                slope = torch.bmm(part, v[head, :, : rows.stop].transpose(1, 2))
                slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
                query = _rows(q[head], rows).reshape(part.shape)
                grad_k[head, :, : rows.stop].baddbmm_(slope.transpose(1, 2), query, alpha=scaling)
                through = torch.bmm(slope, k[head, :, : rows.stop]).mul_(scaling)
                _rows(grad_q[head], rows).copy_(_as_rows(through, blocks.groups))
        return grad_q, grad_k, grad_v, None, None


def _weights(q: Tensor, k: Tensor, rows: slice, hidden: Tensor, scaling: float) -> Tensor:
    """Attention weights (n, G * rows, keys) of one chunk of queries of one key head."""
    queries = _rows(q, rows).reshape(len(hidden), -1, q.shape[-1])
    return torch.baddbmm(hidden, queries, k[:, : rows.stop].transpose(1, 2), alpha=scaling).softmax(dim=-1)


def _rows(blocks: Tensor, rows: slice) -> Tensor:
    """Places of each block of queries: (n, G, rows, w) of (n, G, L, w)."""
    return blocks[:, :, rows]


def _as_rows(chunk: Tensor, groups: int) -> Tensor:
    return chunk.view(len(chunk), groups, -1, chunk.shape[-1])


class _Gather(torch.autograd.Function):
    """x[:, index]; its gradient is gathered by the inverse index, much faster than adding up.

    Right only because places without a source look at nothing but themselves and nothing looks at them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(1, ctx.inverse), None, None


def attend_in_blocks(  # noqa: PLR0913
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float, cap: float | None, window: int | None
) -> Tensor:
    """Attention as batched matrix products, with Gemma 2's cap on the scores if there is one; (1, T, heads, d)."""
    heads, length, width = q.shape[1:]
    kv_heads = k.shape[1]
    rows = CHUNK_ROWS if cap is None else length
    blocks = _blocks(segments, heads // kv_heads, window, q.dtype, q.device, -(-rows // 32) * 32)
    q = _gather(q.reshape(kv_heads, -1, width), blocks.query_source, blocks.query_place)
    k, v = (_gather(t[0], blocks.source, blocks.place).view(kv_heads, -1, blocks.size, width) for t in (k, v))
    q = q.view(kv_heads, k.shape[1], -1, blocks.size, width)
    if cap is None:
        out = _BlockAttention.apply(q, k, v, blocks, scaling)  # type: ignore[no-untyped-call]
    else:
        scores = torch.tanh(q.flatten(2, 3) @ k.transpose(2, 3) * (scaling / cap)) * cap + blocks.hidden[0]
        out = scores.softmax(dim=-1) @ v
    out = _gather(out.view(kv_heads, -1, width), blocks.query_place, blocks.query_source).view(heads, length, width)
    return out.transpose(0, 1)[None]


def _gather(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    out: Tensor = _Gather.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return out
