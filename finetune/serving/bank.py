"""Many adapters over one base: each row of a forward pass uses the one it is given.

    bank = AdapterBank(base)
    bank.load("pizza")
    with bank.lease("pizza") as one, bank.lease("pizza+0.5*cheerful") as two, bank.routed([one.slot, two.slot, 0]):
        base.model(input_ids)        # (3, T): an adapter, a blend and the base

Slots (the base's device), behind them host memory, behind that the disk; on a CPU the first two are one. What is
loaded is never changed: the same name with other weights is another slot, and what holds a lease goes on with the
old one. Everything is known by the digest of its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from finetune.errors import AdapterError
from finetune.model.base import Base
from finetune.serving.bank_peft import Alone, wrap
from finetune.serving.bank_tiers import Tiers
from finetune.serving.bank_weights import Frame, Resident
from finetune.serving.routing import Member, Mixed, One, Plan, Router, Stacks
from finetune.serving.voices import Voice, parse_voice
from finetune.store.folders import StoredAdapter, check_base, find_adapter
from finetune.store.spelt import spell_out
from finetune.store.weights import LoraWeights, linear_shapes, read_weights

BASE_SLOT, BASE_DIGEST = 0, "base"


class Lease:
    """The right to run rows with one voice until it is released, whatever is loaded or unloaded meanwhile."""

    def __init__(self, voice: Voice, resident: Resident | None, system: str | None, end: Callable[[], None]) -> None:
        self.voice = str(voice) or None  # None: the base
        self.slot = resident.slot if resident else BASE_SLOT
        self.digest = resident.digest if resident else BASE_DIGEST  # of the content: the key for caches
        self.system = system  # the system prompt of the card; of a blend: of its first part that has one
        self.why = resident.why if resident else ""
        self._end: Callable[[], None] | None = end

    @property
    def mixes(self) -> bool:
        """Whether its rows may share a forward pass with rows of other slots; if not, `why` says the reason."""
        return not self.why

    def release(self) -> None:
        """Give the lease back; once is enough."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class AdapterBank:
    """Adapters over one base. Any thread may load, unload and lease; one thread at a time runs forward passes."""

    def __init__(self, base: Base, *, slots: int = 64, host: int = 1024, store: str | Path = "adapters") -> None:
        """slots: adapters on the base's device at most; host: in host memory, which on a CPU is the same."""
        if slots < 1 or host < 1:
            raise AdapterError(f"a bank of {slots} slots and {host} adapters in host memory cannot serve any")
        self.base, self.store = base, Path(store)
        self._router = Router.of(base.model)
        frame = Frame(self._router.numbers, linear_shapes(base.model), base.model.dtype, base.device)
        self._tiers = Tiers(frame, slots, host)
        head = base.model.get_output_embeddings()
        self._head = {name for name, module in base.model.named_modules() if module is head}
        self._named: dict[str, tuple[StoredAdapter, Resident]] = {}
        self._stacks = Stacks()
        self._last: tuple[tuple[int, ...], Plan | None] = ((), None)

    @property
    def names(self) -> list[str]:
        """What is loaded, in the order of loading."""
        with self._tiers.lock:
            return list(self._named)

    def stored(self, name: str) -> StoredAdapter:
        """Folder and card of a loaded adapter. Raises AdapterError."""
        with self._tiers.lock:
            return self._entry(name)[0]

    def load(self, adapter: str | Path, *, force: bool = False) -> str:
        """Load an adapter by its name in the store, or by its folder; return its name. All or nothing.

        The same name again: new content takes its place, and rows that are running end with the old one.
        `force` takes one of another base. Raises AdapterError if it is not fit for this base.
        """
        stored = find_adapter(str(adapter), self.store)
        self._refuse_namesake(stored)
        check_base(stored, self.base.fingerprint, self.base.name, self.base.revision, force=force)
        found = read_weights(stored.folder, self._tiers.frame.shapes)
        fresh = self._tiers.find(found.digest) or self._prepare(found, stored)
        with self._tiers.lock:
            self._refuse_namesake(stored)
            resident = self._tiers.hold(fresh)
            before = self._named.get(stored.name)
            resident.folders[stored.name] = stored.folder
            self._named[stored.name] = (stored, resident)
            if before is not None and before[1] is not resident:
                self._unname(stored.name, before[1])
            self._tiers.release(resident)
        self._forget()
        return stored.name

    def unload(self, name: str) -> None:
        """Take a name away; rows that have a lease end as they began. Raises AdapterError if it is not loaded."""
        with self._tiers.lock:
            resident = self._entry(name)[1]
            del self._named[name]
            self._unname(name, resident)
        self._forget()

    def lease(self, voice: str | None) -> Lease:
        """Pin the weights of a voice: None, a name, or a blend such as pizza+0.5*cheerful.

        Raises AdapterError if a part is not loaded, cannot be blended, or has changed on the disk.
        """
        wanted = parse_voice(voice)
        if not wanted.parts:
            return Lease(wanted, None, None, lambda: None)
        with self._tiers.lock:
            parts = [(*self._entry(name), weight) for name, weight in wanted.parts]
            for _, resident, _ in parts:
                self._tiers.hold(resident)
        try:
            for _, resident, _ in parts:
                self._tiers.fetch(resident)
            system = next((stored.card.system for stored, _, _ in parts if stored.card.system is not None), None)
            chosen = parts[0][1]
            if len(parts) > 1 or parts[0][2] != 1:
                chosen = self._blended([(resident, weight) for _, resident, weight in parts])
            held = self._tiers.hold(chosen)
            return Lease(wanted, held, system, partial(self._end, held))
        finally:
            for _, resident, _ in parts:
                self._tiers.release(resident)

    @contextmanager
    def routed(self, slots: Sequence[int]) -> Iterator[None]:
        """Rows 0..B-1 of every forward pass inside use these slots; one slot alone stands for all rows.

        Raises AdapterError for a slot that is gone, and for several where one cannot be mixed with others.
        """
        with self._router.lock:
            before = self._router.switch(self._plan(tuple(slots)))
            try:
                yield
            finally:
                self._router.switch(before)

    def memory(self) -> dict[str, int]:
        """Bytes: `adapters` in host memory, `slots` on another device, `mixed`: copies of those that run together."""
        every, apart = self._tiers.everything(), self.base.device.type != "cpu"
        on_device = sum(resident.bytes for resident in every if resident.weights) if apart else 0
        return {
            "adapters": sum(resident.bytes for resident in every),
            "slots": on_device,
            "mixed": self._stacks.bytes(),
        }

    def _entry(self, name: str) -> tuple[StoredAdapter, Resident]:
        if name not in self._named:
            known = ", ".join(self._named) or "none"
            raise AdapterError(f"adapter {name!r} is not loaded (loaded: {known})")
        return self._named[name]

    def _refuse_namesake(self, stored: StoredAdapter) -> None:
        with self._tiers.lock:
            there = self._named.get(stored.name)
            if there is not None and there[0].folder.resolve() != stored.folder.resolve():
                raise AdapterError(f"another adapter named {stored.name!r} is loaded", where=str(stored.folder))

    def _prepare(self, found: LoraWeights, stored: StoredAdapter) -> Resident:
        """Everything that can fail, before anybody can see it."""
        resident = self._tiers.new(found.digest)
        on_head = bool(self._head & set(found.modules))
        if found.plain and not on_head:
            self._tiers.fill(resident, found, stored.folder)
        else:
            shapes = self._tiers.frame.shapes
            resident.why = f"{found.why or 'a branch on the output head'}: PEFT runs it, and by itself"
            resident.wrapped = wrap(self.base, stored.folder, spell_out(stored.folder, shapes), self._router)
        return resident

    def _blended(self, parts: Sequence[tuple[Resident, float]]) -> Resident:
        if alone := next((resident for resident, _ in parts if resident.why), None):
            raise AdapterError(f"{', '.join(sorted(alone.folders))} cannot be blended ({alone.why})")
        return self._tiers.blended(parts)

    def _unname(self, name: str, resident: Resident) -> None:
        self._tiers.hold(resident)
        resident.folders.pop(name, None)
        self._tiers.release(resident)

    def _end(self, resident: Resident) -> None:
        self._tiers.release(resident)
        self._forget()

    def _plan(self, slots: tuple[int, ...]) -> Plan | None:
        """What these slots mean for the linears; the caller holds the router's lock."""
        if self._tiers.dropped:
            self._forget()
        if slots != self._last[0]:
            self._last = (slots, self._make_plan(slots))
        return self._last[1]

    def _make_plan(self, slots: tuple[int, ...]) -> Plan | None:
        rows = [None if slot == BASE_SLOT else self._tiers.at(slot) for slot in slots]
        residents = list({id(each): each for each in rows if each is not None}.values())
        if not residents:
            return None
        self._tiers.put_on_device(residents)
        if len(set(slots)) == 1:
            found = residents[0]
            return Alone(found.wrapped) if found.wrapped is not None else One(found.weights)
        if alone := next((each for each in residents if each.why), None):
            raise AdapterError(f"slot {alone.slot} cannot run beside others ({alone.why})", fix="run its rows apart")
        members = {each.slot: Member(each.slot, each.weights) for each in residents}
        return Mixed([members.get(slot) for slot in slots], self._stacks, self.base.device)

    def _forget(self) -> None:
        """Drop the copies of what is gone, unless a forward pass is running: then before the next."""
        if not self._tiers.dropped or not self._router.lock.acquire(blocking=False):
            return
        try:
            while self._tiers.dropped:
                gone = self._tiers.dropped.pop()
                self._stacks.forget(gone.slot)
                if gone.slot in self._last[0]:
                    self._last = ((), None)
        finally:
            self._router.lock.release()
