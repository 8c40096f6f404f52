"""Examples of one optimizer step -> micro-batches: packed rows, or padded ones where a model cannot keep them apart."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.encoding import Encoded

IGNORED = -100
PASS_COST = 128  # tokens that take as long as one pass more: kernels are started and weights dequantised again


@dataclass(frozen=True)
class MicroBatch:
    """B rows of T tokens. Packed: one row, whose examples stand one behind the other and never see each other.

    Padded: each example begins a row, and nothing of it looks at the padding behind it, as models are causal.
    labels[t] is the token to predict *from* position t (already shifted), -100 where nothing is
    trained; position_ids restart with every example; segments holds each example's (start, end) in the
    rows laid one behind the other.
    """

    input_ids: Tensor  # (B, T)
    labels: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    segments: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]  # index of each example in what was packed
    trained: int  # labels that are not ignored
    packed: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> MicroBatch:
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class TrainingRows:
    """What is trained on, and in which order: a pure function of seed and step, so runs can resume."""

    main: Sequence[Encoded]
    mix: tuple[tuple[Sequence[Encoded], float], ...] = ()  # further rows, and how many per main row

    def __len__(self) -> int:
        """Rows of one epoch."""
        return len(self.main) + sum(round(weight * len(self.main)) for _, weight in self.mix)

    def epoch(self, number: int, seed: int) -> array[int]:
        """Shuffle the main rows and draw from each mixed-in source, anew for every epoch.

        Returns places for `take`: rows are read when they are needed, they need not fit in memory.
        """
        pick = random.Random(f"{seed}/{number}")
        order, start = array("q", range(len(self.main))), len(self.main)
        for source, weight in self.mix:
            order.extend(start + place for place in _draw(len(source), round(weight * len(self.main)), pick))
            start += len(source)
        pick.shuffle(order)
        return order

    def take(self, places: Iterable[int]) -> list[Encoded]:
        """Read the rows at these places of an epoch's order."""
        return [self._row(place) for place in places]

    def _row(self, place: int) -> Encoded:
        for source in (self.main, *(source for source, _ in self.mix)):
            if place < len(source):
                return source[place]
            place -= len(source)
        raise IndexError(place)


def pack(encoded: Sequence[Encoded], budget: int, *, isolate: bool = True) -> list[MicroBatch]:
    """Best-fit-decreasing packing into rows of at most `budget` tokens (longer examples go alone).

    `isolate=False`: padded rows of examples of like length, for models whose layers cannot keep examples apart;
    padding counts.
    """
    sizes = [len(row.ids) for row in encoded]
    if not isolate:
        return [_padded(_row(encoded, members)) for members in like_lengths(sizes, budget)]
    return [_row(encoded, members) for members in best_fit(sizes, budget)]


def join(micros: Sequence[MicroBatch], align: int = 1) -> tuple[MicroBatch, list[tuple[int, int]]]:
    """One row of several, and (start, end) of each in it; `rows` are those of the first.

    Each is filled up to a multiple of `align` tokens with a segment that trains nothing.
    """
    filled = [_filled(micro, -micro.input_ids.shape[1] % align) for micro in micros]
    starts = np.cumsum([0, *(micro.input_ids.shape[1] for micro in filled)]).tolist()
    segments = [
        (start + first, start + last)
        for start, micro in zip(starts, filled, strict=False)
        for first, last in micro.segments
    ]
    row = MicroBatch(
        torch.cat([micro.input_ids for micro in filled], dim=1),
        torch.cat([micro.labels for micro in filled], dim=1),
        torch.cat([micro.position_ids for micro in filled], dim=1),
        tuple(segments),
        micros[0].rows,
        sum(micro.trained for micro in micros),
    )
    return row, list(pairwise(starts))


def _filled(micro: MicroBatch, spare: int) -> MicroBatch:
    if not spare:
        return micro
    length = micro.input_ids.shape[1]
    return replace(
        micro,
        input_ids=F.pad(micro.input_ids, (0, spare)),
        labels=F.pad(micro.labels, (0, spare), value=IGNORED),
        position_ids=torch.cat([micro.position_ids, torch.arange(spare)[None]], dim=1),
        segments=(*micro.segments, (length, length + spare)),
    )


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices of `sizes` in bins of at most `room`, best-fit decreasing; what is larger goes alone."""
    bins: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = [b for b, free in enumerate(left) if free >= sizes[index]]
        if fitting:
            best = min(fitting, key=left.__getitem__)
            bins[best].append(index)
            left[best] -= sizes[index]
        else:
            bins.append([index])
            left.append(room - sizes[index])
    return bins


def like_lengths(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices of `sizes` in groups that are padded to their largest: the least padding, at PASS_COST a group.

    A group's number times its largest is at most `room`, or it is one. Found by dynamic programming over the sizes
    in order, so no cut of a group in two would save more than PASS_COST: the m smallest of a group lack at most
    PASS_COST / m each, and a group of n has at most PASS_COST * (1 + ln n) of padding, whatever the sizes.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    least, begins = [0], [0]  # of the first so many: their cost, and where the last of their groups begins
    for end in range(1, len(order) + 1):
        found = (least[end - 1] + sizes[order[end - 1]], end - 1)
        for start in range(end - 2, -1, -1):
            largest = sizes[order[start]]
            if (end - start) * largest > room or largest - sizes[order[end - 1]] > PASS_COST:
                break
            found = min(found, (least[start] + (end - start) * largest, start))
        least.append(found[0] + PASS_COST)
        begins.append(found[1])
    groups, end = list[list[int]](), len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def share_out(encoded: Sequence[Encoded], processes: int) -> list[list[Encoded]]:
    """Deal the examples of a step to processes so that each gets about as many tokens."""
    shares: list[list[Encoded]] = [[] for _ in range(processes)]
    load = [0] * processes
    for row in sorted(encoded, key=lambda e: -len(e.ids)):
        lightest = load.index(min(load))
        shares[lightest].append(row)
        load[lightest] += len(row.ids)
    return shares


def trained_tokens(encoded: Sequence[Encoded]) -> int:
    """Tokens that have a label: a trained first token has nothing to be predicted from."""
    return sum(sum(row.loss_mask[1:]) for row in encoded)


def _row(encoded: Sequence[Encoded], members: Sequence[int]) -> MicroBatch:
    rows = [encoded[index] for index in members]
    sizes = np.array([len(row.ids) for row in rows])
    ends = np.cumsum(sizes)
    ids = np.frombuffer(array("q", chain.from_iterable(row.ids for row in rows)), np.int64)
    trained = np.frombuffer(b"".join(bytes(row.loss_mask) for row in rows), np.uint8).astype(bool)
    labels = np.full(len(ids), IGNORED)
    labels[:-1][trained[1:]] = ids[1:][trained[1:]]
    # The last token of an example predicts nothing: the next token belongs to another one.
    labels[ends - 1] = IGNORED
    positions = np.arange(len(ids)) - np.repeat(ends - sizes, sizes)
    return MicroBatch(
        torch.tensor(ids)[None],
        torch.from_numpy(labels)[None],
        torch.from_numpy(positions)[None],
        tuple(zip((ends - sizes).tolist(), ends.tolist(), strict=True)),
        tuple(members),
        int((labels != IGNORED).sum()),
    )


def _padded(row: MicroBatch) -> MicroBatch:
    """A row for each example of a packed one, filled up at the end to the longest."""
    sizes = torch.tensor([end - start for start, end in row.segments])
    width = int(sizes.max())
    starts = torch.arange(len(sizes)) * width
    places = starts.repeat_interleave(sizes) + row.position_ids[0]

    def laid_out(values: Tensor, filling: int) -> Tensor:
        out = torch.full((len(sizes) * width,), filling)
        out[places] = values[0]
        return out.view(len(sizes), width)

    return replace(
        row,
        input_ids=laid_out(row.input_ids, 0),
        labels=laid_out(row.labels, IGNORED),
        position_ids=torch.arange(width).repeat(len(sizes), 1),
        segments=tuple(zip(starts.tolist(), (starts + sizes).tolist(), strict=True)),
        packed=False,
    )


def _draw(size: int, count: int, pick: random.Random) -> list[int]:
    """Draw `count` of `size` rows; none comes again before all have come."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += pick.sample(range(size), min(count - len(drawn), size))
    return drawn
