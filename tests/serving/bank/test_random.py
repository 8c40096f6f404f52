"""Random loads, unloads, swaps, blends and mixed batches, held against fresh models with PEFT's own layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.errors import AdapterError
from finetune.model.base import weights_sha256
from finetune.serving.bank import AdapterBank, Lease
from finetune.serving.voices import parse_voice
from finetune.store.folders import CARD, CONFIG, WEIGHTS
from tests.conftest import MakeBase
from tests.serving.making import Oracle, write_adapter

TOLERANCE = 1e-5  # of the largest logit
NAMES = ("ann", "bob", "cat", "dan", "eve")
CONTENTS = 12  # that a name may get
IDS = torch.randint(6, 380, (4, 6), generator=torch.Generator().manual_seed(0))
Content = tuple[tuple[str, float], ...]


class World:
    """A bank, and what it should hold."""

    def __init__(self, make_base: MakeBase, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.base = make_base()
        self.digest = weights_sha256(self.base.model)
        self.store = folder / "store"
        self.oracle = Oracle(make_base, IDS, folder / "contents")
        self.bank = AdapterBank(self.base, store=self.store, slots=6, host=3)
        self.loaded: dict[str, str] = {}  # name -> content
        self.disk: dict[str, str] = {}
        self.held: list[tuple[Lease, Content]] = []
        self.digests: dict[Content, str] = {(): "base"}
        self.compared = 0

    def write(self, name: str) -> str:
        """Put random content into a folder of the store and return what it is called."""
        number = self.random.randrange(CONTENTS)
        shapes = [{}, {"r": 8}, {"use_rslora": True}, {"targets": ("q_proj", "down_proj")}, {"r": 2, "size": 0.1},
                  {"rank_pattern": {"k_proj": 7}}]  # fmt: skip
        write_adapter(self.store / name, self.base, number, **shapes[number % len(shapes)])  # type: ignore[arg-type]
        self.disk[name] = f"content{number}"
        self.oracle.keep(self.store / name, self.disk[name])
        return self.disk[name]

    def load(self) -> None:
        name = self.random.choice(NAMES)
        content = self.write(name) if name not in self.disk or self.random.random() < 0.5 else self.disk[name]
        assert self.bank.load(name) == name
        self.loaded[name] = content

    def load_what_is_broken(self) -> None:
        name = self.random.choice(NAMES)
        self.write(name)
        kind, target = self.random.choice(("short", "shape", "config", "nothing")), self.store / name
        if kind == "short":
            whole = (target / WEIGHTS).read_bytes()
            (target / WEIGHTS).write_bytes(whole[: self.random.randrange(len(whole))])
        elif kind == "shape":
            text = (target / CONFIG).read_text()
            (target / CONFIG).write_text(text.replace('"r": ', '"r": 1'))
        else:
            (target / (CONFIG if kind == "config" else CARD)).unlink()
        with pytest.raises(AdapterError):
            self.bank.load(name)
        self.write(name)
        if name in self.loaded:  # what a lease would have to read again is another adapter now
            self.bank.unload(name)
            del self.loaded[name]

    def unload(self) -> None:
        name = self.random.choice(NAMES)
        if name in self.loaded:
            self.bank.unload(name)
            del self.loaded[name]
        for call in (self.bank.unload, self.bank.lease):
            with pytest.raises(AdapterError, match="is not loaded"):
                call(name)

    def voice(self) -> str | None:
        names = self.random.sample(sorted(self.loaded), min(len(self.loaded), self.random.choice((0, 1, 1, 1, 2, 3))))
        parts = [f"{self.random.choice((1, 1, 0.5, -0.25))}*{name}" for name in names]
        return "+".join(parts) if parts else None

    def lease(self) -> None:
        voice = self.voice()
        content = tuple((self.loaded[name], weight) for name, weight in parse_voice(voice).parts)
        if any(self.disk[name] != self.loaded[name] for name, _ in parse_voice(voice).parts):
            return
        lease = self.bank.lease(voice)
        assert self.digests.setdefault(content, lease.digest) == lease.digest
        self.held.append((lease, content))

    def release(self) -> None:
        if self.held:
            lease, _ = self.held.pop(self.random.randrange(len(self.held)))
            lease.release()

    def swap(self) -> None:
        if self.held:
            lease, content = self.random.choice(self.held)
            self.compare([lease.slot], [content] * len(IDS))

    def mix(self) -> None:
        if self.held:
            rows = self.random.choices(self.held, k=len(IDS))
            self.compare([lease.slot for lease, _ in rows], [content for _, content in rows])

    def disable(self) -> None:
        self.compare([0], [()] * len(IDS))

    def compare(self, slots: list[int], contents: list[Content]) -> None:
        tokens = self.random.choice((1, IDS.shape[1]))
        with torch.no_grad(), self.bank.routed(slots):
            found = self.base.model(input_ids=IDS[:, :tokens], use_cache=False).logits
        for row, content in enumerate(contents):
            wanted = self.oracle.asked(content)[row, :tokens]
            self.check(found[row], wanted, content)

    def check(self, found: Tensor, wanted: Tensor, content: Content) -> None:
        self.compared += 1
        error = float((found - wanted).abs().max() / wanted.abs().max())
        assert error < TOLERANCE, (content, error)

    def run(self, operations: int) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.load, 5), (self.load_what_is_broken, 1), (self.unload, 1), (self.lease, 6), (self.release, 5),
            (self.swap, 8), (self.mix, 10), (self.disable, 1),
        ]  # fmt: skip
        for number in range(operations):
            (operation,) = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            operation()
            if number % 100 == 0:
                assert weights_sha256(self.base.model) == self.digest
        assert weights_sha256(self.base.model) == self.digest
        assert self.bank.names == list(dict.fromkeys(self.bank.names))
        assert set(self.bank.names) == set(self.loaded)
        distinct = list(self.digests.values())
        assert len(set(distinct)) == len(distinct)


def test_sixty_random_operations(plain_make: MakeBase, tmp_path: Path) -> None:
    world = World(plain_make, tmp_path, seed=0)
    world.run(60)
    assert world.compared > 40


@pytest.mark.slow
def test_ten_thousand_random_operations(plain_make: MakeBase, tmp_path: Path) -> None:
    world = World(plain_make, tmp_path, seed=1)
    world.run(10_000)
    assert world.compared > 10_000


@pytest.fixture
def plain_make(model_folder: Path) -> MakeBase:
    from finetune.model.base import load_base
    from finetune.recipe import BaseSection

    section = BaseSection(model=str(model_folder), quantization="none", dtype="float32")
    return lambda: load_base(section, torch.device("cpu"))
