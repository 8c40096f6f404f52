"""What adapters are in memory, and where: the base's device, host memory behind it, the disk behind that."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from finetune.errors import AdapterError
from finetune.serving.bank_weights import Frame, Resident, arrange, blend, blend_digest
from finetune.store.weights import LoraWeights, read_weights

KEPT_BLENDS = 16  # blends that nobody leases


class Tiers:
    """Every adapter that has a name or a lease, and the last blends, by content; the least used go down first.

    Any thread may call it. What is read or computed is so outside of the lock.
    """

    def __init__(self, frame: Frame, slots: int, host: int) -> None:
        """slots: adapters on a device that is not the CPU, at most; host: in host memory."""
        self.frame, self.slots, self.host = frame, slots, host
        self.lock = threading.RLock()
        self.dropped: list[Resident] = []  # gone since somebody looked
        self._content: dict[str, Resident] = {}  # by digest
        self._used: OrderedDict[int, Resident] = OrderedDict()  # by slot, the last used behind
        self._numbers = count(1)

    def find(self, digest: str) -> Resident | None:
        """The adapter with this content, if it is there."""
        with self.lock:
            return self._content.get(digest)

    def at(self, slot: int) -> Resident:
        """The adapter of a slot. Raises AdapterError if it is gone."""
        with self.lock:
            if slot not in self._used:
                raise AdapterError(f"slot {slot} holds no adapter any more", fix="keep the lease until its rows end")
            return self._used[slot]

    def everything(self) -> list[Resident]:
        """All adapters, the last used behind."""
        with self.lock:
            return list(self._used.values())

    def new(self, digest: str, *, is_blend: bool = False) -> Resident:
        """An empty place, which nobody else sees yet."""
        return Resident(next(self._numbers), digest, is_blend=is_blend)

    def fill(self, resident: Resident, found: LoraWeights, folder: Path) -> None:
        """Put an adapter's branches into host memory and onto the device: everything that can fail."""
        layout, host = arrange(found, self.frame, str(folder))
        weights = layout.views(host.to(self.frame.device))
        with self.lock:
            resident.layout, resident.host, resident.weights = layout, host, weights

    def blended(self, parts: Sequence[tuple[Resident, float]]) -> Resident:
        """The weighted sum of adapters in host memory, made anew unless it is there."""
        digest = blend_digest([(resident.digest, weight) for resident, weight in parts])
        resident = self.find(digest)
        if resident is None:
            pieces = [
                (each.layout, each.host, weight) for each, weight in parts if each.layout and each.host is not None
            ]
            resident = self.new(digest, is_blend=True)
            resident.layout, resident.host = blend(pieces, self.frame)
            resident.weights = resident.layout.views(resident.host.to(self.frame.device))
        return resident

    def hold(self, resident: Resident) -> Resident:
        """Pin an adapter, or the one that has its content already, and return it."""
        with self.lock:
            resident = self._content.setdefault(resident.digest, resident)
            resident.leases += 1
            self._used[resident.slot] = resident
            self._used.move_to_end(resident.slot)
            return resident

    def fetch(self, resident: Resident) -> None:
        """Have a pinned adapter in host memory, from the disk if it fell out. Raises AdapterError if that changed."""
        if resident.host is not None or resident.wrapped is not None:
            return
        folders = list(resident.folders.values())
        for folder in folders:
            with suppress(AdapterError):
                found = read_weights(folder, self.frame.shapes)
                if found.digest == resident.digest:
                    self.fill(resident, found, folder)
                    return
        what = "has changed on the disk, or is gone, since it was loaded"
        raise AdapterError(what, where=", ".join(map(str, folders)), fix="load it again")

    def release(self, resident: Resident) -> None:
        """Undo one `hold`; what has neither name nor lease goes, blends but the last."""
        with self.lock:
            resident.leases -= 1
            if not resident.leases and not resident.folders and not resident.is_blend:
                self._drop(resident)
            idle = [each for each in self._used.values() if each.is_blend and not each.leases]
            for each in idle[: max(0, len(idle) - KEPT_BLENDS)]:
                self._drop(each)
            self._make_room()

    def put_on_device(self, residents: Sequence[Resident]) -> None:
        """Have pinned adapters on the device, others off it if there are too many. Raises AdapterError."""
        with self.lock:
            if len(residents) > self.slots:
                what = f"a batch with {len(residents)} adapters is more than the bank's {self.slots} slots"
                raise AdapterError(what, fix="run fewer at a time, or give the bank more slots")
            for resident in residents:
                self._used.move_to_end(resident.slot)
                if resident.weights or resident.wrapped is not None:
                    continue
                if resident.layout is None or resident.host is None:
                    raise AdapterError(f"slot {resident.slot} is on the disk alone", fix="lease it")
                resident.weights = resident.layout.views(resident.host.to(self.frame.device))
            self._make_room()

    def _make_room(self) -> None:
        """Take the least used off the device, and out of host memory what can be read again, if there are too many."""
        there = [each for each in self._used.values() if each.host is not None]
        free = [each for each in there if not each.leases and not each.is_blend]
        for each in free[: max(0, len(there) - self.host)]:
            each.host, each.weights = None, ()
        if self.frame.device.type != "cpu":  # there host memory is the device
            on_device = [each for each in there if each.weights]
            for each in on_device[: max(0, len(on_device) - self.slots)]:
                each.weights = ()

    def _drop(self, resident: Resident) -> None:
        self._content.pop(resident.digest, None)
        self._used.pop(resident.slot, None)
        self.dropped.append(resident)
