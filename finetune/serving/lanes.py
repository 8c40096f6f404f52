"""Rows that run together in one forward pass.

Where the model allows it rows have lengths of their own and come and go at any step (RowLane); else those that
start together are padded to one length (PaddedLane).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from finetune.serving.forward import Forward, Padded
from finetune.serving.prefix import Known, PrefixCache
from finetune.serving.rows import Row
from finetune.serving.sampling import NOT_FINITE, Choice, Sampler

Route = Callable[[Sequence[int]], AbstractContextManager[object]]  # the bank's slot of each row of a forward pass
Step = list[tuple[Row, Choice]]  # one token of each row that got one


class Lane(Protocol):
    @property
    def rows(self) -> list[Row]: ...  # every row of the lane
    @property
    def open(self) -> bool: ...  # whether rows may join now
    def join(self, rows: Sequence[Row]) -> None: ...
    def step(self) -> Step: ...
    def leave(self, rows: Iterable[Row], sound: bool = True) -> None: ...


class PaddedLane:
    """Rows that start together: any cache of transformers' serves."""

    def __init__(self, forward: Forward, route: Route) -> None:
        self.rows: list[Row] = []
        self.open = True
        self._forward, self._route, self._sampler = forward, route, Sampler()
        self._state: Padded | None = None

    def join(self, rows: Sequence[Row]) -> None:
        assert self.open, "rows of this lane start together"
        self.rows, self.open = list(rows), False

    def step(self) -> Step:
        if self._state is None:
            self._state, ids = _pad(self.rows, self._forward.device)
        else:
            ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._forward.device)
        with self._route([row.slot for row in self.rows]):
            logits = self._forward.padded(ids, self._state)
        return _choose(self._sampler, logits, self.rows)

    def leave(self, rows: Iterable[Row], sound: bool = True) -> None:
        gone = set(rows)
        kept = [place for place, row in enumerate(self.rows) if row not in gone]
        if self._state is not None and 0 < len(kept) < len(self.rows):
            self._state.keep(kept)
        self.rows = [self.rows[place] for place in kept]


def _pad(rows: Sequence[Row], device: torch.device) -> tuple[Padded, Tensor]:
    """Pad what is known on the left, so that every row's next token is in the same column; ids are (B, T)."""
    width = max(row.length for row in rows)
    ids = [[0] * (width - row.length) + list(row.known(0, row.length)) for row in rows]
    mask = torch.ones(len(rows), width + max(row.limit - row.tokens for row in rows), dtype=torch.long)
    for place, row in enumerate(rows):
        mask[place, : width - row.length] = 0
    positions = (mask[:, :width].cumsum(dim=1) - 1).clamp(min=0)
    return Padded(mask.to(device), positions.to(device)), torch.tensor(ids, device=device)


class RowLane:
    """Rows of different lengths over one RowCache. Lines [0, n) hold running rows; behind them rows join."""

    def __init__(
        self, forward: Forward, route: Route, part: int, budget: int | None = None, prefix: PrefixCache | None = None
    ) -> None:
        self._forward, self._route, self._part, self._budget, self._prefix = forward, route, part, budget, prefix
        self._cache, self._sampler = forward.new_row_cache(), Sampler()
        self._running: list[Row] = []  # in the order of their lines
        self._joining: list[Row] = []  # likewise, from line `_first` on; the next to run first
        self._first = 0

    @property
    def rows(self) -> list[Row]:
        return [*self._running, *self._joining]

    @property
    def open(self) -> bool:
        return not self._joining

    def join(self, rows: Sequence[Row]) -> None:
        assert self.open, "the rows before are still being read"
        self._first = len(self._running)
        found = [self._find(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda place: rows[place].left)
        self._joining = [rows[place] for place in order]
        self._fit()
        for line, place in enumerate(order, self._first):
            if known := found[place]:
                self._cache.write(line, *known.states())

    def step(self) -> Step:
        """One token for each running row, then the next part of the prompts that are being read."""
        found: Step = []
        if self._running:
            ids = [[row.ids[-1]] for row in self._running]
            found = self._run(self._running, ids, 0, [1] * len(ids))
        return found + self._read() if self._joining else found

    def _find(self, row: Row) -> Known | None:
        known = self._prefix.find(row.digest, row.known(0, row.length)) if self._prefix is not None else None
        row.done = known.tokens if known else 0
        if not row.tokens:
            row.cached = row.done
        return known

    def _read(self) -> Step:
        rows = self._joining
        steps = min(max(row.left for row in rows), max(1, self._part // len(rows)))
        counts = [min(row.left, steps) for row in rows]
        new = [row.known(row.done, row.done + count) for row, count in zip(rows, counts, strict=True)]
        ids = [[0] * (steps - len(part)) + list(part) for part in new]
        done = sum(row.left <= steps for row in rows)  # the first ones: they are in order
        found = self._run(rows, ids, self._first, counts, done)
        self._start([choice.token != NOT_FINITE for _, choice in found])
        return found

    def _run(
        self, rows: Sequence[Row], ids: list[list[int]], first: int, counts: Sequence[int], chosen: int | None = None
    ) -> Step:
        """A forward pass of rows in lines from `first` on; tokens for the first `chosen` of them, or for all."""
        self._fit(max(counts))
        with self._route([row.slot for row in rows]):
            tokens = torch.tensor(ids, device=self._forward.device)
            logits = self._forward.rows(tokens, self._cache, first, [row.done for row in rows], counts)
        for row, count in zip(rows, counts, strict=True):
            row.done += count
        return _choose(self._sampler, logits[:chosen], rows[:chosen])

    def _fit(self, more: int = 0) -> None:
        rows = self.rows
        lines = max(len(self._running), self._first + len(self._joining)) if self._joining else len(self._running)
        self._cache.fit(lines, max(row.done for row in rows) + more, self._budget)

    def _start(self, sound: Sequence[bool]) -> None:
        """The first joining rows have their prompts behind them: they run from now on."""
        for row, finite in zip(self._joining, sound, strict=False):
            line = len(self._running)
            if line != self._first:
                self._cache.move(self._first, line, row.done)
            if finite:
                self._keep(row, line)
            self._running.append(row)
            self._first += 1
        del self._joining[: len(sound)]

    def leave(self, rows: Iterable[Row], sound: bool = True) -> None:
        """Take rows out; not `sound`: their keys and values hold NaN, which must not stay."""
        gone = set(rows)
        for line in reversed(range(len(self._running))):
            row = self._running[line]
            if row not in gone:
                continue
            if sound:
                self._keep(row, line)
            else:
                self._cache.wipe(line)
            last = self._running.pop()
            if last is not row:
                self._cache.move(len(self._running), line, last.done)
                self._running[line] = last
        for place in reversed(range(len(self._joining))):
            if self._joining[place] in gone:
                self._close_gap(place)

    def _close_gap(self, place: int) -> None:
        del self._joining[place]
        self._cache.wipe(self._first + place)
        for line, row in enumerate(self._joining[place:], self._first + place):
            self._cache.move(line + 1, line, row.done)

    def _keep(self, row: Row, line: int) -> None:
        if self._prefix is not None:
            self._prefix.put(
                row.digest, row.known(0, row.done), lambda start, stop: self._cache.read(line, start, stop)
            )


def _choose(sampler: Sampler, logits: Tensor, rows: Sequence[Row]) -> Step:
    if not rows:
        return []
    return list(zip(rows, sampler.choose(logits, [row.draws for row in rows]), strict=True))


def nowhere(slots: Sequence[int]) -> AbstractContextManager[object]:
    """Route without a bank."""
    return nullcontext()
