"""What `benchmarks/serving.py` measures of a bank of adapters: each function takes a base and returns its numbers."""

from __future__ import annotations

import ctypes
import gc
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import DynamicCache

from finetune.model.base import Base, load_base
from finetune.model.dense import keep_dense
from finetune.recipe import BaseSection
from finetune.serving.bank import AdapterBank
from finetune.serving.forward import spare_bytes
from finetune.store.folders import BaseCard, Card
from finetune.store.weights import PREFIX, linear_shapes

ROWS, BEHIND, RANK, PREFILL = 8, 64, 8, 64
RESIDENT = (1, 8, 64, 512)
STEPS = 16  # of rows that keep their adapters
Way = Callable[[], Any]


class Place(NamedTuple):
    """A base, and where adapters for it are written."""

    section: BaseSection
    base: Base
    folder: Path


def write_adapter(place: Place, name: str, seed: int) -> Path:
    """A random adapter folder, in the base's dtype so that a file is as large as what is loaded."""
    folder = place.folder / name
    tensors, linears = {}, linear_shapes(place.base.model)
    generator = torch.Generator().manual_seed(0)
    linears.pop("lm_head", None)
    for full, (rows, columns) in linears.items():
        for letter, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            drawn = torch.rand(shape, generator=generator).sub_(0.5).mul_(0.05 + seed / 10000)
            tensors[f"{PREFIX}{full}.lora_{letter}.weight"] = drawn.to(place.base.model.dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=sorted(linears), task_type="CAUSAL_LM")
    config.save_pretrained(str(folder))
    known = BaseCard(model=place.base.name, quantization=place.base.quantization, fingerprint=place.base.fingerprint)
    card = Card(name=name, base=known, method="lora", r=RANK, alpha=2.0 * RANK, created="2026-01-01T00:00:00Z")
    (folder / "card.json").write_text(card.model_dump_json())
    return folder


def load_many(place: Place, bank: AdapterBank, count: int, *, keep: bool = False) -> list[str]:
    """Load `count` adapters, each written, loaded and, unless `keep`, taken off the disk."""
    names = [f"adapter{number}" for number in range(count)]
    for number, name in enumerate(names):
        if name in bank.names:
            continue
        folder = place.folder / name
        if not folder.exists():
            write_adapter(place, name, number)
        bank.load(folder)
        if not keep:
            shutil.rmtree(folder)
    return names


class Stepper:
    """The same step again and again: ids (B, T) behind a cache of `behind` tokens."""

    def __init__(self, model: Any, tokens: int, behind: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model, self.length = model, behind
        self.ids = torch.randint(3, model.config.vocab_size, (ROWS, tokens), generator=generator)
        self.cache = DynamicCache(config=model.config)
        if behind:
            before = torch.randint(3, model.config.vocab_size, (ROWS, behind), generator=generator)
            model(input_ids=before, past_key_values=self.cache)

    def __call__(self, **options: Any) -> None:
        self.model(input_ids=self.ids, past_key_values=self.cache, logits_to_keep=1, **options)
        if self.length:
            self.cache.crop(-self.ids.shape[1])
        else:
            self.cache = DynamicCache(config=self.model.config)


def in_turn(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way; all are run in every round, in an order of its own."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for number in range(rounds + 2):
        for name in order.sample(list(ways), len(ways)):
            start = time.perf_counter()
            ways[name]()
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def measure_batches(place: Place, rounds: int) -> dict[str, Any]:
    """Steps and prefills with the base, one adapter and eight, by the bank and by PEFT's layers, in turn."""
    bank = AdapterBank(place.base)
    names = load_many(place, bank, ROWS, keep=True)
    eight = [bank.lease(name).slot for name in names]
    peft = _by_peft(place, names)
    found: dict[str, Any] = {}
    for kind, tokens, behind in (("step", 1, BEHIND), ("prefill", PREFILL, 0)):
        with torch.no_grad():
            ours, theirs = Stepper(place.base.model, tokens, behind), Stepper(peft, tokens, behind)
            slots = {"base": [0], "one adapter": eight[:1] * ROWS, "8 adapters": eight}
            ways: dict[str, Way] = {name: _routed(bank, rows, ours) for name, rows in slots.items()}
            ways["PEFT, one adapter"] = theirs
            ways["PEFT, 8 adapters"] = partial(theirs, adapter_names=list(names))
            found[kind] = in_turn(ways, rounds)
        found[kind]["8 over one"] = found[kind]["8 adapters"] / found[kind]["one adapter"]
        found[kind]["PEFT, 8 over one"] = found[kind]["PEFT, 8 adapters"] / found[kind]["PEFT, one adapter"]
    return found


def _routed(bank: AdapterBank, slots: Sequence[int], step: Stepper) -> Way:
    def run() -> None:
        with bank.routed(slots):
            step()

    return run


def _by_peft(place: Place, names: Sequence[str]) -> PeftModel:
    """PEFT's own layers over a base of its own, all adapters loaded and the first one set."""
    base = load_base(place.section, torch.device("cpu"))
    keep_dense(base.model, spare_bytes(base.device))  # as ours
    model = PeftModel.from_pretrained(base.model, str(place.folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(place.folder / name), adapter_name=name)
    model.set_adapter(names[0])
    return model.eval()  # type: ignore[no-any-return]


def measure_swaps(place: Place, rounds: int) -> dict[str, float]:
    """Milliseconds of a swap, of a load from the disk, and of the base anew."""
    bank = AdapterBank(place.base)
    names, draw = load_many(place, bank, ROWS, keep=True), random.Random(0)
    swaps, loads = [], []
    for _ in range(1000):
        name, start = draw.choice(names), time.perf_counter()
        with bank.lease(name) as lease, bank.routed([lease.slot]):
            swaps.append(time.perf_counter() - start)
    for number in range(max(5, rounds // 4)):
        folder = write_adapter(place, f"cold{number}", 1000 + number)
        start = time.perf_counter()
        bank.load(folder)
        loads.append(time.perf_counter() - start)
    start = time.perf_counter()
    again = AdapterBank(load_base(place.section, torch.device("cpu")))
    again.load(place.folder / names[0])
    reload = time.perf_counter() - start
    swaps.sort()
    with torch.no_grad():
        step, leases = Stepper(place.base.model, 1, BEHIND), [bank.lease(name) for name in names]
        same = _routed(bank, [leases[0].slot], step)
        turns = iter([lease.slot for lease in leases] * (rounds + 2))
        steps = in_turn({"same": same, "swapped": lambda: _routed(bank, [next(turns)], step)()}, rounds)
    p50 = statistics.median(swaps)
    return {
        "swap p50": 1e3 * p50,
        "swap p99": 1e3 * swaps[int(0.99 * len(swaps))],
        "load from the disk p50": 1e3 * statistics.median(loads),
        "base and adapter anew": 1e3 * reload,
        "anew over swap": reload / p50,
        "step, adapter swapped before each over not": steps["swapped"] / steps["same"],
    }


def measure_resident(place: Place, rounds: int) -> dict[str, float]:
    """Memory of a hundred adapters by the process's resident size, and tokens per second by how many are loaded:
    of batches whose rows all have one of them, and of batches in which every row has another."""
    bank, draw = AdapterBank(place.base), random.Random(0)
    own = RANK * sum(sum(shape) for name, shape in linear_shapes(place.base.model).items() if name != "lm_head")
    own *= 100 * place.base.model.dtype.itemsize
    with torch.no_grad():
        step, names = Stepper(place.base.model, 1, BEHIND), load_many(place, bank, 1)
        _steps(bank, step, names * ROWS)
        before = _resident()
        names += load_many(place, bank, 101)[1:]
        loaded = _resident() - before
        _steps(bank, step, draw.sample(names, ROWS))
        found = {"adapters MiB": own / 2**20, "memory over adapters": loaded / own}
        found["memory over adapters, 8 mixed"] = (_resident() - before) / own
        names += load_many(place, bank, max(RESIDENT))[101:]
        speeds: dict[str, list[float]] = {}
        for number in range(rounds // 2 + 1):
            for count in draw.sample(RESIDENT, len(RESIDENT)):
                kinds = {"one of": [draw.choice(names[:count])] * ROWS}
                if count >= ROWS:
                    kinds[f"{ROWS} of"] = draw.sample(names[:count], ROWS)
                for kind in draw.sample(list(kinds), len(kinds)):
                    seconds = _steps(bank, step, kinds[kind])
                    speeds.setdefault(f"tokens/s, {kind} {count}", []).extend([ROWS * STEPS / seconds] * (number > 0))
    return found | {kind: statistics.median(speeds[kind]) for kind in sorted(speeds, key=_by_kind_and_count)}


def _by_kind_and_count(name: str) -> tuple[bool, int]:
    return "one of" not in name, int(name.rsplit(" ", 1)[1])


def _steps(bank: AdapterBank, step: Stepper, names: Sequence[str]) -> float:
    """Seconds of some steps of rows that have these adapters, one each, leased anew."""
    start = time.perf_counter()
    leases = [bank.lease(name) for name in names]
    run = _routed(bank, [lease.slot for lease in leases], step)
    for _ in range(STEPS):
        run()
    for lease in leases:
        lease.release()
    return time.perf_counter() - start


def _resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])
