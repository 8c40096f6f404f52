"""Adapters in memory, ready to be added to a base's linears: in one piece each, in the base's dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from finetune.errors import AdapterError
from finetune.serving.bank_peft import Wrapped
from finetune.serving.routing import Pair, Weights
from finetune.store.weights import LoraWeights

_ALIGN = 64  # bytes: where a matrix begins


@dataclass(frozen=True)
class Frame:
    """The base's linears, as far as adapters have to fit them."""

    numbers: Mapping[str, int]  # full name -> number
    shapes: Mapping[str, tuple[int, int]]  # full name -> (out, in)
    dtype: torch.dtype  # that the base computes in
    device: torch.device


@dataclass(frozen=True)
class Layout:
    """Which linears have a branch, its rank, and where it lies in the one piece of memory of an adapter."""

    parts: tuple[tuple[int, int, int, int], ...]  # number of the linear, r, in, out
    linears: int
    align: int  # numbers

    @staticmethod
    def of(frame: Frame, ranks: Mapping[str, int]) -> Layout:
        """The layout of an adapter with these ranks."""
        sizes = ((frame.numbers[name], rank, frame.shapes[name]) for name, rank in ranks.items())
        parts = sorted((number, rank, inputs, outputs) for number, rank, (outputs, inputs) in sizes)
        return Layout(tuple(parts), len(frame.numbers), _ALIGN // frame.dtype.itemsize)

    @property
    def size(self) -> int:
        """Numbers in all, padding included."""
        return sum(self._padded(r * inputs) + self._padded(r * outputs) for _, r, inputs, outputs in self.parts)

    def views(self, piece: Tensor) -> Weights:
        """The branches of every linear as views of an adapter's memory."""
        found, start = list[Pair | None]([None] * self.linears), 0
        for number, r, inputs, outputs in self.parts:
            middle = start + self._padded(r * inputs)
            a, b = piece[start : start + r * inputs], piece[middle : middle + r * outputs]
            found[number] = Pair(a.view(r, inputs), b.view(r, outputs))
            start = middle + self._padded(r * outputs)
        return tuple(found)

    def _padded(self, numbers: int) -> int:
        return -(-numbers // self.align) * self.align


@dataclass(eq=False)
class Resident:
    """One adapter's content, or a blend's, wherever it lies; its slot number is its own for good."""

    slot: int
    digest: str  # of what it computes: equal content, equal digest
    layout: Layout | None = None
    host: Tensor | None = None  # (layout.size,) in host memory; None: on the disk alone
    weights: Weights = ()  # views of what lies on the base's device; empty: nothing lies there
    wrapped: Wrapped | None = None  # of a kind that PEFT runs
    why: str = ""  # it shares no forward pass: the reason, for a person
    folders: dict[str, Path] = field(default_factory=dict)  # by its names: where it can be read again
    is_blend: bool = False  # made of others, so that no folder holds it
    leases: int = 0

    @property
    def bytes(self) -> int:
        """Host memory that it takes."""
        return 0 if self.host is None else self.host.numel() * self.host.element_size()


def arrange(found: LoraWeights, frame: Frame, where: str) -> tuple[Layout, Tensor]:
    """Put an adapter's branches into one piece of host memory, scales folded in, in the base's dtype.

    Raises AdapterError if a number is too large for that dtype.
    """
    layout = Layout.of(frame, {name: len(a) for name, (a, _, _) in found.modules.items()})
    piece = torch.zeros(layout.size, dtype=frame.dtype)
    views = layout.views(piece)
    for name, (a, b, scale) in found.modules.items():
        pair = views[frame.numbers[name]]
        assert pair is not None
        pair.a.copy_(a)
        pair.b.copy_((b.float() * scale).t())
    if not torch.isfinite(piece).all():
        raise AdapterError(f"holds numbers too large for {frame.dtype}", where=where, fix="load the base in float32")
    return layout, piece


def blend(parts: Sequence[tuple[Layout, Tensor, float]], frame: Frame) -> tuple[Layout, Tensor]:
    """The weighted sum of adapters, exactly: their branches side by side, ranks added up.

    parts: layout, memory and weight of each.
    """
    names = {number: name for name, number in frame.numbers.items()}
    ranks: dict[str, int] = {}
    for layout, _, _ in parts:
        for number, r, _, _ in layout.parts:
            ranks[names[number]] = ranks.get(names[number], 0) + r
    whole = Layout.of(frame, ranks)
    piece = torch.zeros(whole.size, dtype=frame.dtype)
    views, used = whole.views(piece), dict[int, int]()
    for number, pair, weight in _pairs(parts):
        target, start = views[number], used.get(number, 0)
        assert target is not None
        end = used[number] = start + len(pair.a)
        target.a[start:end].copy_(pair.a)
        target.b[start:end].copy_(pair.b * weight)
    return whole, piece


def blend_digest(parts: Sequence[tuple[str, float]]) -> str:
    """The digest of a blend, from the digests and weights of its parts."""
    return hashlib.sha256(" + ".join(f"{weight!r} * {digest}" for digest, weight in parts).encode()).hexdigest()


def _pairs(parts: Sequence[tuple[Layout, Tensor, float]]) -> Iterator[tuple[int, Pair, float]]:
    for layout, piece, weight in parts:
        for number, pair in enumerate(layout.views(piece)):
            if pair is not None:
                yield number, pair, weight
