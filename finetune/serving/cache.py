"""Keys and values of rows of different lengths that come and go: what transformers' caches lack.

A row joins and leaves without a copy of the others: each has a line of one buffer per layer, and writes at its own
length. The buffers grow in steps, so that what is copied stays in proportion to what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

COLUMNS = 64  # the buffers' length is a multiple


@dataclass
class Span:
    """Which rows a forward pass writes, and where; shared by all layers."""

    first: int
    starts: Sequence[int]  # tokens that each row has
    counts: Sequence[int]  # tokens that each row adds: the last ones of the pass's columns
    width: int  # tokens of the longest row afterwards
    capacity: tuple[int, int]  # rows and columns that every buffer must have
    columns: tuple[Tensor, Tensor] | None = None  # (B,) each: where rows of different lengths write their one token


class RowLayer(CacheLayerMixin):
    """One layer's keys (rows, heads, columns, d) and values."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.span: Span | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._fit(self.keys, key_states), self._fit(self.values, value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the span's new tokens, (B, heads, T, d); return all of its rows up to the longest."""
        span = self.span
        assert span is not None
        if self.keys is None or tuple(self.keys.shape[::2]) != span.capacity:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows = slice(span.first, span.first + len(span.starts))
        keys, values = self.keys[rows, :, : span.width], self.values[rows, :, : span.width]
        _write(keys, key_states, span)
        _write(values, value_states, span)
        return keys, values

    def _fit(self, old: Tensor | None, new: Tensor) -> Tensor:
        """A buffer of the span's capacity that holds what the old one held."""
        assert self.span is not None
        rows, columns = self.span.capacity
        # Zeros: what is not written yet takes part in products with weight 0, and 0 * NaN is NaN.
        buffer = new.new_zeros(rows, new.shape[1], columns, new.shape[3])
        if old is not None:
            rows, columns = min(rows, old.shape[0]), min(columns, old.shape[2])
            buffer[:rows, :, :columns] = old[:rows, :, :columns]
        return buffer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.span.width if self.span else query_length), 0

    def get_seq_length(self) -> int:
        return max(self.span.starts) if self.span else 0

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """One line per row in every layer; rows are named by their line."""

    def __init__(self, layers: int) -> None:
        self.rows_of: list[RowLayer] = [RowLayer() for _ in range(layers)]
        super().__init__(layers=list(self.rows_of))
        self._capacity = (0, 0)

    @property
    def tokens(self) -> int:
        """Tokens that the buffers have room for."""
        return self._capacity[0] * self._capacity[1]

    def fit(self, rows: int, columns: int, budget: int | None = None) -> None:
        """Make room for that many rows of that length at the next forward pass; `budget`: tokens in all, if it can.

        What lies in lines and columns beyond is given up.
        """
        have_rows, have_columns = self._capacity
        if rows <= have_rows and columns <= have_columns:
            return
        want = (
            have_rows if rows <= have_rows else max(rows, 2 * have_rows),
            have_columns if columns <= have_columns else _rounded(max(columns, 3 * have_columns // 2)),
        )
        if budget is not None and want[0] * want[1] > budget:
            want = (rows, _rounded(columns))
        self._capacity = want

    def begin(
        self, first: int, starts: Sequence[int], counts: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Say what the next forward pass writes; return its positions (B, T) and its mask (B, 1, T, width) or None."""
        steps, width = max(counts), max(start + count for start, count in zip(starts, counts, strict=True))
        self.fit(first + len(starts), width)
        span = Span(first, starts, counts, width, self._capacity)
        ends = torch.tensor([start + count for start, count in zip(starts, counts, strict=True)], device=device)
        if steps == 1 and min(starts) < max(starts):
            span.columns = torch.arange(len(starts), device=device), ends - 1
        for layer in self.rows_of:
            layer.span = span
        positions = ends[:, None] + torch.arange(-steps, 0, device=device)
        # Not needed where all tokens of a row are seen, or where the kernel's own causal order is right.
        plain = min(counts) == steps and min(starts) == max(starts) and (steps == 1 or width == steps)
        mask = None if plain else torch.arange(width, device=device) <= positions.clamp(min=0)[:, :, None]
        return positions.clamp_(min=0), None if mask is None else mask[:, None]

    def move(self, source: int, target: int, length: int) -> None:
        """Put a row's first `length` tokens into another line, and leave none of it behind (see wipe)."""
        for layer in self.rows_of:
            for buffer in (layer.keys, layer.values):
                if buffer is not None:
                    buffer[target, :, :length] = buffer[source, :, :length]
                    buffer[source, :, :length] = 0

    def wipe(self, row: int) -> None:
        """Leave nothing of a row: NaN would spoil those that get its line."""
        for layer in self.rows_of:
            for buffer in (layer.keys, layer.values):
                if buffer is not None and row < len(buffer):
                    buffer[row].zero_()

    def read(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Copy a row's keys and values of tokens [start, stop): (layers, heads, tokens, d) each."""
        keys = [layer.keys[row, :, start:stop] for layer in self.rows_of if layer.keys is not None]
        values = [layer.values[row, :, start:stop] for layer in self.rows_of if layer.values is not None]
        return torch.stack(keys), torch.stack(values)

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Make keys and values (layers, heads, tokens, d) the start of a row."""
        length = keys.shape[2]
        self.fit(row + 1, length)
        for layer, key, value in zip(self.rows_of, keys, values, strict=True):
            layer.span = Span(row, [0], [length], length, self._capacity)
            layer.update(key[None], value[None])


def _write(buffer: Tensor, new: Tensor, span: Span) -> None:
    steps = new.shape[2]
    if span.columns is not None:
        rows, columns = span.columns
        buffer[rows, :, columns] = new[:, :, 0]
    elif min(span.counts) == steps and min(span.starts) == max(span.starts):
        buffer[:, :, span.width - steps :] = new
    else:
        for row, (start, count) in enumerate(zip(span.starts, span.counts, strict=True)):
            buffer[row, :, start : start + count] = new[row, :, steps - count :]


def _rounded(columns: int) -> int:
    return -(-columns // COLUMNS) * COLUMNS
