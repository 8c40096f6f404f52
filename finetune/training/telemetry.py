"""What a run says while it goes: events, the log and the loss curve."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

LogEntry = dict[str, float]


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step."""

    step: int
    steps: int
    epoch: float
    loss: float  # nats per trained token
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # of this step, prompt and completion
    trained_tokens: int
    tokens_per_second: float
    seconds: float  # since the run began
    memory_bytes: int  # peak
    run: str = ""  # its name where several are trained together


@dataclass(frozen=True)
class HeldoutEvent:
    """Loss on the held-out completions, at the end of an epoch."""

    step: int
    heldout_loss: float
    run: str = ""


@dataclass(frozen=True)
class NoticeEvent:
    """Something a person should know."""

    text: str


Event = StepEvent | HeldoutEvent | NoticeEvent
Emit = Callable[[Event], None]


def log_entry(event: StepEvent | HeldoutEvent) -> LogEntry:
    return {key: value for key, value in asdict(event).items() if key != "run"}


def tagged(emit: Emit, run: str) -> Emit:
    """Say with every event which run it is of, where there are several."""

    def say(event: Event) -> None:
        if not run:
            emit(event)
        elif isinstance(event, NoticeEvent):
            emit(NoticeEvent(f"{run}: {event.text}"))
        else:
            emit(replace(event, run=run))

    return say


def write_log(path: Path, log: Sequence[LogEntry]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")


def read_log(path: Path) -> list[LogEntry]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def peak_memory_bytes(device: torch.device) -> int:
    """Peak allocated GPU memory, or peak resident memory of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """Seconds of the run, across interruptions, and the rate of tokens over the last steps."""

    def __init__(self, seconds_before: float, window: int = 20) -> None:
        self._began = time.perf_counter() - seconds_before
        self._recent: deque[tuple[float, int]] = deque([(seconds_before, 0)], maxlen=window + 1)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def rate(self, tokens: int) -> float:
        """Note `tokens` done just now; return tokens per second over the last `window` notes."""
        self._recent.append((self.seconds, tokens))
        span = self._recent[-1][0] - self._recent[0][0]
        done = sum(count for _, count in list(self._recent)[1:])
        return done / span if span > 0 else 0.0


def plot_loss(log: Sequence[LogEntry], path: Path, title: str) -> None:
    """Draw training loss (each step, and smoothed) and held-out loss as a PNG."""
    import matplotlib  # here: slow, and only needed once at the end

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    steps = [e["step"] for e in log if "loss" in e]
    losses = [e["loss"] for e in log if "loss" in e]
    heldout = [(e["step"], e["heldout_loss"]) for e in log if "heldout_loss" in e]
    figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="training, each step")
    axes.plot(steps, smooth(losses), color="#1f5fa8", linewidth=2, label="training, smoothed")
    if heldout:
        axes.plot(*zip(*heldout, strict=True), "o-", color="#d1495b", linewidth=1.5, label="held-out")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)", title=title)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.1, not 10^-1
    # Over less than a decade there may be no power of ten to read off; over more, nine labels a decade collide.
    minor = (2, 5) if max(losses) > 10 * min(losses) else range(2, 10)
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if int(f"{value:e}"[0]) in minor else "")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def smooth(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average without the bias of its first values."""
    out, average = [], 0.0
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**count))
    return out
