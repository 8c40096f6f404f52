"""Packing: examples of one optimizer step -> rows of many examples, no padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.data.template import Encoded

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """One row of T tokens; examples stand one behind the other and never see each other.

    labels[t] is the token to predict *from* position t (already shifted), -100 where nothing is
    trained; position_ids restart with every example; segments holds each example's (start, end).
    """

    input_ids: Tensor  # (1, T)
    labels: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    segments: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]  # index of each example in what was packed
    trained: int  # labels that are not ignored

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

    def epoch(self, number: int, seed: int) -> list[Encoded]:
        """Shuffle the main rows and draw from each mixed-in source, anew for every epoch."""
        pick = random.Random(f"{seed}/{number}")
        rows = list(self.main)
        for source, weight in self.mix:
            rows += _draw(source, round(weight * len(self.main)), pick)
        pick.shuffle(rows)
        return rows


def pack(encoded: Sequence[Encoded], budget: int, *, isolate: bool = True) -> list[MicroBatch]:
    """Best-fit-decreasing packing into rows of at most `budget` tokens (longer examples go alone).

    `isolate=False`: one example per row, for models whose layers cannot keep examples apart.
    """
    bins = best_fit([len(row.ids) for row in encoded], budget if isolate else 0)
    return [_row(encoded, members) for members in bins]


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
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments = []
    for index in members:
        row = encoded[index]
        segments.append((len(ids), len(ids) + len(row.ids)))
        ids += row.ids
        following = zip(row.ids[1:], row.loss_mask[1:], strict=True)
        # The last token of an example predicts nothing: the next token belongs to another one.
        labels += [token if trained else IGNORED for token, trained in following] + [IGNORED]
        positions += range(len(row.ids))
    return MicroBatch(
        torch.tensor([ids]),
        torch.tensor([labels]),
        torch.tensor([positions]),
        tuple(segments),
        tuple(members),
        sum(label != IGNORED for label in labels),
    )


def _draw(rows: Sequence[Encoded], count: int, pick: random.Random) -> list[Encoded]:
    """Draw `count` rows; none comes again before all have come."""
    drawn: list[Encoded] = []
    while len(drawn) < count:
        drawn += pick.sample(list(rows), min(count - len(drawn), len(rows)))
    return drawn
