"""Which adapter each row of a forward pass gets: a plan on the model, read by its linears.

    y = x W^T + (x A^T) B^T      A: (r, in); B: (out, r), kept transposed, with the scale folded in

One adapter for all rows: two plain products. Several: their A and B lie one behind the other, ranks padded with
zeros, rows are put with those of the same adapter, and two batched products do all of them; where that would pad
too much of a long prefill, two plain products per adapter. As in S-LoRA (Sheng et al. 2023, arXiv 2311.03285) and
Punica (Chen et al. 2023, arXiv 2310.18547), without kernels of our own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.errors import AdapterError, ModelError
from finetune.model.decoder import ROUTE
from finetune.model.lowrank import Branch

_ROUTER = "finetune_router"  # attribute of a model
MOST_PADDING = 2  # a prefill is padded to at most so many times its rows


class Pair(NamedTuple):
    a: Tensor  # (r, in)
    b: Tensor  # (r, out), the scale folded in


Weights = tuple[Pair | None, ...]  # of each linear, by its number


class Member(NamedTuple):
    """An adapter of a batch; its slot is its own for good, so slots are compared, never weights."""

    slot: int
    weights: Weights


class Plan:
    """What the linears add while it is on: nothing, in this class."""

    def enter(self) -> None:
        """Called when it is switched on."""

    def leave(self) -> None:
        """Called when it is switched off."""

    def add(self, number: int, x: Tensor, out: Tensor) -> Tensor:
        """The output (B, T, out) of linear `number` for x (B, T, in), the adapters' part added to the base's `out`."""
        return out

    def branch(self, number: int) -> Branch | None:
        """The branch that all rows have on a linear, for forwards of their own."""
        return None


class One(Plan):
    """The same adapter for all rows, however many."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def add(self, number: int, x: Tensor, out: Tensor) -> Tensor:
        pair = self.weights[number]
        if pair is None:
            return out
        low = F.linear(x.to(pair.a.dtype), pair.a)
        if out.dtype != pair.b.dtype:
            return out + (low @ pair.b).to(out.dtype)
        out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), pair.b)
        return out

    def branch(self, number: int) -> Branch | None:
        pair = self.weights[number]
        return None if pair is None else Branch(pair.a, pair.b.t(), 1.0)


class Stacks:
    """Copies of the adapters that run together, per linear one behind the other: (P, R, in) and (P, R, out).

    An adapter keeps its place from one plan to the next, so that a row that joins costs one copy. Only the thread
    that runs forwards changes them; a linear's copies are made when it runs.
    """

    def __init__(self) -> None:
        self.places: list[Member | None] = []
        self.version = 0  # of the places
        self._filled: dict[int, _Filled] = {}

    def line_up(self, members: Sequence[Member]) -> list[int]:
        """Give the members the first places, in this order, so that as many rows need not be put in order."""
        self._set(list(members))
        return list(range(len(members)))

    def place(self, members: Sequence[Member]) -> list[int]:
        """Give each member a place and return them; others lose theirs only if it is needed, or too many are idle."""
        places = self.places[: len(members)] if len(self.places) > 2 * len(members) else list(self.places)
        wanted, there = {member.slot for member in members}, set(_slots(places))
        free = [place for place, slot in enumerate(_slots(places)) if slot not in wanted]
        for member in members:
            if member.slot in there:
                continue
            if free:
                places[free.pop(0)] = member
            else:
                places.append(member)
        self._set(places)
        found = {slot: place for place, slot in enumerate(_slots(places))}
        return [found[member.slot] for member in members]

    def forget(self, slot: int) -> None:
        """Take an adapter out, and the copies with it once no other is left."""
        self._set([None if each is not None and each.slot == slot else each for each in self.places])
        if not any(self.places):
            self._set([])
            self._filled.clear()

    def pair(self, number: int) -> Pair | None:
        """The stacked weights (P, R, in) and (P, R, out) of a linear, R the largest rank; None where none has one."""
        found = self._filled.get(number)
        if found is None or found.version != self.version:
            found = self._filled[number] = _fill(found, self.places, number, self.version)
        return found.pair

    def bytes(self) -> int:
        """Memory that the copies take."""
        kept = [tensor for found in list(self._filled.values()) if found.room for tensor in found.room]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def _set(self, places: list[Member | None]) -> None:
        if _slots(places) != _slots(self.places):
            self.places, self.version = places, self.version + 1


def _slots(places: Sequence[Member | None]) -> list[int | None]:
    return [None if member is None else member.slot for member in places]


class _Filled(NamedTuple):
    version: int
    slots: tuple[int | None, ...]  # what lies there
    room: Pair | None  # (capacity, R, ...)
    pair: Pair | None  # the part of it that is used


def _fill(old: _Filled | None, places: Sequence[Member | None], number: int, version: int) -> _Filled:
    """Copy in what does not lie there yet; new memory only where places or ranks outgrow the old, or shrink much."""
    pairs = [member.weights[number] if member else None for member in places]
    given = [pair for pair in pairs if pair is not None]
    if not given:
        return _Filled(version, (), None, None)
    rank, room = max(len(pair.a) for pair in given), old.room if old else None
    there, slots = old.slots if old else (), _slots(places)
    if room is None or len(room.a) < len(places) or not rank <= room.a.shape[1] <= 2 * rank:
        capacity, there = 1 << (len(places) - 1).bit_length(), ()
        room = Pair(*(given[0][i].new_empty(capacity, rank, given[0][i].shape[1]) for i in (0, 1)))
    new = [place for place, slot in enumerate(slots) if there[place : place + 1] != (slot,)]
    if len(new) == len(given) == len(places) and {len(pair.a) for pair in given} == {room.a.shape[1]}:
        for i in (0, 1):  # in one go, not by many small copies
            torch.stack([pair[i] for pair in given], out=room[i][: len(places)])
        new = []
    for place in new:
        for target, source in zip(room, pairs[place] or (None, None), strict=True):
            used = 0 if source is None else len(source)
            if source is not None:
                target[place, :used].copy_(source)
            target[place, used:].zero_()
    return _Filled(version, tuple(slots), room, Pair(room.a[: len(places)], room.b[: len(places)]))


class Mixed(Plan):
    """An adapter, or none, for each row."""

    def __init__(self, rows: Sequence[Member | None], stacks: Stacks, device: torch.device) -> None:
        self.rows, self.stacks, self.device = rows, stacks, device
        self.groups: dict[int, list[int]] = {}  # slot -> rows
        for row, member in enumerate(rows):
            if member is not None:
                self.groups.setdefault(member.slot, []).append(row)
        self.members = [member for row, member in enumerate(rows) if member and self.groups[member.slot][0] == row]
        self.each = max(map(len, self.groups.values()))  # rows of an adapter, padded
        self._indices = [torch.tensor(self.groups[member.slot], device=device) for member in self.members]
        self._version = -1

    def add(self, number: int, x: Tensor, out: Tensor) -> Tensor:
        if x.dim() != 3 or len(x) != len(self.rows):
            what = f"a layer of this model got rows of shape {tuple(x.shape)} for a batch of {len(self.rows)}"
            raise ModelError(f"{what}: it does not keep rows apart", fix="run one adapter at a time over this base")
        if x.shape[1] > 1 and len(self.members) * self.each > MOST_PADDING * len(self.rows):
            return self._one_by_one(number, x, out)
        if self._version != self.stacks.version:
            self._arrange()
        pair = self.stacks.pair(number)
        if pair is None:
            return out
        if self._straight and x.dtype == out.dtype == pair.a.dtype:
            return out.baddbmm_(torch.bmm(x, pair.a.transpose(1, 2)), pair.b)
        grouped = x.index_select(0, self._gather).view(len(pair.a), -1, x.shape[-1]).to(pair.a.dtype)
        change = torch.bmm(torch.bmm(grouped, pair.a.transpose(1, 2)), pair.b)
        change = change.view(-1, x.shape[1], out.shape[-1]).index_select(0, self._back).to(out.dtype)
        return out.add_(change) if self._rows is None else out.index_add_(0, self._rows, change)

    def branch(self, number: int) -> Branch | None:
        raise ModelError(f"a packed row was run with {len(self.rows)} slots", fix="give it one slot")

    def _arrange(self) -> None:
        """Work out where each row goes: place by place, the rows of an adapter padded to those of the largest."""
        lined_up = len(self.members) == len(self.rows)  # a row each: a few copies now are less than sorting every step
        places = self.stacks.line_up(self.members) if lined_up else self.stacks.place(self.members)
        gather, back = [0] * (len(self.stacks.places) * self.each), dict[int, int]()
        for place, member in zip(places, self.members, strict=True):
            for number, row in enumerate(self.groups[member.slot]):
                gather[place * self.each + number] = row
                back[row] = place * self.each + number
        rows = sorted(back)
        self._straight = self.each == 1 and gather == rows == list(range(len(self.rows)))
        self._gather = torch.tensor(gather, device=self.device)
        self._back = torch.tensor([back[row] for row in rows], device=self.device)
        self._rows = None if len(rows) == len(self.rows) else torch.tensor(rows, device=self.device)
        self._version = self.stacks.version

    def _one_by_one(self, number: int, x: Tensor, out: Tensor) -> Tensor:
        for member, rows in zip(self.members, self._indices, strict=True):
            pair = member.weights[number]
            if pair is not None:
                low = F.linear(x.index_select(0, rows).to(pair.a.dtype), pair.a)
                out.index_add_(0, rows, (low @ pair.b).to(out.dtype))
        return out


class Router:
    """The forwards of a model's linears, and the plan that they follow at the moment; one per model."""

    def __init__(self, model: nn.Module) -> None:
        if any(hasattr(module, "lora_A") for module in model.modules()):
            raise AdapterError("this base carries an adapter of PEFT's own", fix="load it anew")
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.numbers = {name: number for number, name in enumerate(linears)}
        self.plan: Plan | None = None
        self.lock = threading.RLock()  # held while a plan is on
        for number, linear in enumerate(linears.values()):
            linear.__dict__[ROUTE] = _Route(self, number, linear.__dict__.get("forward"))
            linear.__dict__["forward"] = MethodType(_forward, linear)

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        return self  # PEFT copies modules that it trains in full: the copies go by the same plan

    def switch(self, plan: Plan | None) -> Plan | None:
        """Follow another plan and return the one before; the caller holds the lock."""
        before = self.plan
        if plan is not before:
            if before is not None:
                before.leave()
            self.plan = None
            if plan is not None:
                plan.enter()
            self.plan = plan
        return before

    @staticmethod
    def of(model: nn.Module) -> Router:
        """The router of a model, put on it at the first call."""
        found: Router | None = model.__dict__.get(_ROUTER)
        if found is None:
            found = model.__dict__[_ROUTER] = Router(model)
        return found


class _Route(NamedTuple):
    router: Router
    number: int
    own: Any  # the forward that the linear had before, if not its class's

    def branch(self) -> Branch | None:
        """The branch of a linear in a forward pass of one row."""
        plan = self.router.plan
        return None if plan is None else plan.branch(self.number)


def _forward(linear: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    router, number, own = linear.__dict__[ROUTE]
    out: Tensor = type(linear).forward(linear, x, *args, **kwargs) if own is None else own(x, *args, **kwargs)
    return out if router.plan is None else router.plan.add(number, x, out)
