"""What a measured training process is told and what it notes: the same for every contender; imports no finetune."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

IGNORED = -100
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "trl",
    "llamafactory",
    "unsloth",
    "axolotl",
    "finetune",
)
Row = dict[str, list[int]]  # ids, and mask: 1 = trained


@dataclass(frozen=True)
class Task:
    """What one process does."""

    contender: str
    model: str  # folder
    rows: str  # JSON: {"train": [Row], "heldout": [Row]}
    device: str
    batch: int  # examples per optimizer step
    warm_up: int  # optimizer steps before the clock starts
    steps: int
    learning_rate: float
    seed: int
    evaluate_every: int = 0  # steps between held-out losses, none if 0
    without: tuple[str, ...] = ()  # techniques of finetune that are turned off
    compiled: bool = False  # finetune train --compile
    overhead: bool = False  # time the parts of a step of finetune

    @classmethod
    def read(cls, path: str) -> Task:
        """Read a task that the driver wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        found["without"] = tuple(found["without"])
        return cls(**found)


class Recorder:
    """Notes of one run: memory, time and gradient norm of every optimizer step, held-out loss."""

    def __init__(self, task: Task) -> None:
        self.task = task
        every = json.loads(Path(task.rows).read_text(encoding="utf-8"))
        self.rows: list[Row] = every["train"]
        self.heldout: list[Row] = every["heldout"]
        self.settings = ""
        self.resident = 0
        self.stamps: list[float] = []  # seconds at the end of every step, evaluation not counted
        self.norms: list[Any] = []
        self.curve: list[tuple[float, float]] = []  # training seconds, held-out loss
        self.paused = 0.0
        self.parts: dict[str, float] = {}  # seconds in parts of the timed steps
        self.loaded_at = 0.0

    def loaded(self) -> None:
        """The base is in memory: peaks are counted above this."""
        import torch

        gc.collect()
        if self.task.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.resident = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            self.resident = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        self.loaded_at = time.perf_counter()

    def step(self, norm: Any, model: Any) -> None:
        """An optimizer step is done, with this norm of its gradient before clipping."""
        import torch

        if self.task.device == "cuda" and len(self.stamps) + 1 in (self.task.warm_up, self.total):
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter() - self.paused)
        self.norms.append(norm)
        if len(self.stamps) == self.task.warm_up:
            self.parts = dict.fromkeys(self.parts, 0.0)
        every = self.task.evaluate_every
        if every and len(self.stamps) >= self.task.warm_up and (len(self.stamps) - self.task.warm_up) % every == 0:
            start = time.perf_counter()
            loss = heldout_loss(model, self.heldout, self.task.device)
            self.curve.append((self.stamps[-1] - self.stamps[self.task.warm_up - 1], loss))
            self.paused += time.perf_counter() - start

    @property
    def total(self) -> int:
        """Optimizer steps of the run, warm-up included."""
        return self.task.warm_up + self.task.steps

    @property
    def timed(self) -> list[Row]:
        """The rows of the timed steps."""
        return self.rows[self.task.warm_up * self.task.batch : self.total * self.task.batch]

    def result(self, model: Any) -> dict[str, Any]:
        """What was measured. Raises ValueError if it did not train."""
        import torch

        peak = self._peak()
        norms = [float(norm) for norm in self.norms]
        if len(norms) != self.total or not all(math.isfinite(norm) and norm > 0 for norm in norms):
            raise ValueError(f"{self.task.contender} did not train: {self.total} steps, gradient norms {norms}")
        timed = self.timed
        seconds = self.stamps[-1] - self.stamps[self.task.warm_up - 1]
        tokens = sum(len(row["ids"]) for row in timed)
        trained = sum(sum(row["mask"][1:]) for row in timed)
        return {
            "tokens_per_s": tokens / seconds,
            "trained_tokens_per_s": trained / seconds,
            "examples_per_s": len(timed) / seconds,
            "seconds_per_step": seconds / self.task.steps,
            **peak,
            "heldout_loss": heldout_loss(model, self.heldout, self.task.device),
            "gradient_norm_min": min(norms),
            "gradient_norms": norms,
            "seconds": seconds,
            "seconds_to_first_step": self.stamps[0] - self.loaded_at,
            "curve": self.curve,
            "parts": {name: spent / seconds for name, spent in self.parts.items()},
            "settings": self.settings,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _peak(self) -> dict[str, float]:
        import torch

        if self.task.device == "cuda":
            most, base = torch.cuda.max_memory_allocated(), self.resident
            reserved = {"reserved_mib": torch.cuda.max_memory_reserved() / 2**20}
            return {"peak_above_base_mib": (most - base) / 2**20, "peak_mib": most / 2**20, **reserved}
        most = status("VmHWM")
        return {"peak_above_base_mib": (most - self.resident) / 1024, "peak_mib": most / 1024}


def status(key: str) -> int:
    """KiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def versions() -> dict[str, str]:
    """Versions of the packages that matter, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def labels(row: Row) -> list[int]:
    """The row's ids, -100 where nothing is trained; not shifted, as transformers wants them."""
    return [token if trained else IGNORED for token, trained in zip(row["ids"], row["mask"], strict=True)]


def heldout_loss(model: Any, rows: Sequence[Row], device: str) -> float:
    """Mean NLL per trained token in fp32, a row at a time through the model's plain forward.

    The model stays in training mode, which without dropout changes nothing: in evaluation mode bitsandbytes re-packs
    the 4-bit weights on some CPUs, and later steps would train through wrong ones.
    """
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, wanted = (torch.tensor([numbers], device=device) for numbers in (row["ids"], labels(row)))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            nll = torch.nn.functional.cross_entropy(logits, wanted[0, 1:], ignore_index=IGNORED, reduction="sum")
            total, count = total + float(nll), count + sum(row["mask"][1:])
    return total / count
