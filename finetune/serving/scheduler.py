"""Which rows run when: rows join and leave at any step, long prompts are read in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from finetune.serving.forward import Forward
from finetune.serving.lanes import Lane, PaddedLane, Route, RowLane, Step, nowhere
from finetune.serving.prefix import PrefixCache
from finetune.serving.rows import Row

UNLIMITED = 1 << 62
SPARE = 128  # tokens of an answer that there must be room for when a row begins


class Scheduler:
    """Waiting rows -> lanes, first come, first served."""

    def __init__(
        self,
        forward: Forward,
        route: Route = nowhere,
        *,
        max_rows: int = UNLIMITED,
        part: int = UNLIMITED,
        budget: int | None = None,
        prefix: PrefixCache | None = None,
    ) -> None:
        """`part`: tokens of prompts per step; `budget`: tokens that the buffers may have room for."""
        self.waiting: deque[Row] = deque()
        self.lanes: list[Lane] = []
        self._forward, self._route, self._prefix = forward, route, prefix
        self._max_rows, self._part, self._budget = max_rows, part, budget
        self._begun = 0

    @property
    def running(self) -> list[Row]:
        return [row for lane in self.lanes for row in lane.rows]

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(lane.rows for lane in self.lanes)

    def step(self) -> Step:
        """Let waiting rows in and give every lane a turn; return the new tokens. The caller lets rows leave."""
        self._make_room()
        self._admit()
        return [found for lane in self.lanes for found in lane.step()]

    def leave(self, rows: Iterable[Row], sound: bool = True) -> None:
        """Take rows out, wherever they are; `sound` as in RowLane.leave."""
        gone = set(rows)
        if gone:
            self.waiting = deque(row for row in self.waiting if row not in gone)
            for lane in self.lanes:
                lane.leave(gone, sound)
            self.lanes = [lane for lane in self.lanes if lane.rows]

    def drop_lanes(self) -> None:
        """Forget the running rows."""
        self.lanes = []

    def _admit(self) -> None:
        if not self.waiting:
            return
        one_lane = self._forward.serves_rows()
        lane = next((lane for lane in self.lanes if one_lane and _suits(lane.rows[0], self.waiting[0])), None)
        if lane is not None and not lane.open:
            return
        if rows := self._next():
            if lane is None:
                lane = self._row_lane() if one_lane else PaddedLane(self._forward, self._route)
                self.lanes.append(lane)
            lane.join(rows)

    def _row_lane(self) -> RowLane:
        return RowLane(self._forward, self._route, self._part, self._budget, self._prefix)

    def _make_room(self) -> None:
        """Send rows back to wait, the last to begin first, until the others' next tokens fit into the budget."""
        rows = sorted(self.running, key=lambda row: row.number)
        while self._budget is not None and len(rows) > 1 and self._size(rows) > self._budget:
            self.leave([last := rows.pop()])
            self.waiting.appendleft(last)

    def _size(self, rows: Sequence[Row], spare: int = 1) -> int:
        """Tokens that the buffers must have room for."""
        return len(rows) * max(min(row.longest, row.length + spare) for row in rows)

    def _next(self) -> list[Row]:
        """Take waiting rows that fit beside the running ones and are read in one part; a lone row always fits."""
        rows, taken, width = self.running, list[Row](), 0
        while self.waiting and len(rows) < self._max_rows:
            row = self.waiting[0]
            width = max(width, row.length)
            if taken and not _suits(taken[0], row):
                break
            if rows and self._budget is not None and self._size([*rows, row], SPARE) > self._budget:
                break
            if taken and width * (len(taken) + 1) > self._part:
                break
            self._begun += 1
            row.number = self._begun
            rows.append(self.waiting.popleft())
            taken.append(row)
        return taken


def _suits(row: Row, other: Row) -> bool:
    """Whether two rows may share a forward pass."""
    return row.slot == other.slot or (row.mixes and other.mixes)
