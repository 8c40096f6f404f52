"""A step that does not fit is cut smaller: the same result, and a word about it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune.data.examples import Example
from finetune.errors import TrainingError
from finetune.model.base import Base
from finetune.recipe import TrainSection
from finetune.training.accumulate import Ahead, Step
from finetune.training.budget import MemoryPlan, is_out_of_memory
from finetune.training.telemetry import Event, NoticeEvent
from tests.conftest import MakeBase
from tests.training.helpers import encoded, make_job, run, weights

SECTION = TrainSection(epochs=1.0, batch_size=8, learning_rate=5e-3)
Failure = Callable[[int, int], bool]  # number of the forward pass, tokens of the row -> whether memory ends


@contextmanager
def memory_ends(model: nn.Module, when: Failure, error: BaseException, backward: bool = False) -> Iterator[None]:
    """Raise what PyTorch raises, in chosen passes through the model's last layer, forward or backward."""
    passes = 0

    def on_forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal passes
        tokens, failing = output.shape[1], when(passes, output.shape[1])
        passes += 1
        assert tokens
        if failing and backward and output.requires_grad:
            output.register_hook(on_backward)
        elif failing:
            raise error

    def on_backward(gradient: Tensor) -> None:
        raise error

    norm = model.model.norm  # type: ignore[union-attr]
    handle = norm.register_forward_hook(on_forward)  # type: ignore[union-attr,operator]
    try:
        yield
    finally:
        handle.remove()


def trained(
    base: Base, examples: tuple[Example, ...], folder: Path, plan: MemoryPlan, events: list[Event]
) -> dict[str, Tensor]:
    job = replace(make_job(base, encoded(base, examples), folder, SECTION), plan=plan)
    run(job, events)
    return weights(job.model)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative, of the whole adapter: AdamW divides by the gradient, so single numbers show the order of a sum."""
    return float(_flat({name: one[name] - other[name] for name in one}).norm() / _flat(other).norm())


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_budget_and_changes_nothing_else(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, error: BaseException, backward: bool
) -> None:
    expected = trained(make_base(), examples, tmp_path / "none", MemoryPlan(10_000), [])
    base, events = make_base(), list[Event]()
    with memory_ends(base.model, lambda number, tokens: number in (1, 4, 5), error, backward):
        found = trained(base, examples, tmp_path / "none", MemoryPlan(10_000), events)
    assert difference(found, expected) < 1e-6
    notices = [event.text for event in events if isinstance(event, NoticeEvent)]
    sizes = [int(match[1]) for text in notices if (match := re.search(r"going on with micro-batches of (\d+)", text))]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert all("out of memory at" in text and "same result" in text for text in notices)


def test_a_single_example_that_does_not_fit_recomputes_and_then_is_named(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    base, events = make_base(), list[Event]()
    rows = encoded(base, examples)
    longest = max(rows, key=lambda row: len(row.ids))
    width = -(-len(longest.ids) // 64) * 64
    error = torch.OutOfMemoryError("out of memory")
    job = replace(make_job(base, rows, tmp_path / "none", SECTION), plan=MemoryPlan(10_000))
    with memory_ends(base.model, lambda number, tokens: tokens >= width, error), pytest.raises(TrainingError) as raised:
        run(job, events)
    assert re.match(r"examples:\d+: an example of \d+ tokens does not fit into memory, alone and", str(raised.value))
    assert "lower data.max_length" in str(raised.value)
    assert raised.value.exit_code == 1
    assert any("every layer is recomputed" in event.text for event in events if isinstance(event, NoticeEvent))


def test_other_errors_are_not_swallowed(base: Base, examples: tuple[Example, ...], tmp_path: Path) -> None:
    job = make_job(base, encoded(base, examples), tmp_path / "none", SECTION)
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(error)
    with (
        memory_ends(base.model, lambda number, tokens: True, error),
        pytest.raises(RuntimeError, match="mat1 and mat2"),
    ):
        run(job)


LIMITED = """
import resource, sys, json
from pathlib import Path
import torch
from dataclasses import replace
from finetune.data.encoding import Encoded
from finetune.model.base import load_base
from finetune.recipe import AdapterSection, BaseSection, TrainSection
from finetune.training.budget import MemoryPlan
from finetune.training.telemetry import NoticeEvent
from tests.training.helpers import make_job, run, weights

torch.set_num_threads(1)
base = load_base(BaseSection(model=sys.argv[1], dtype="float32"), torch.device("cpu"))
ids = [1 + n % 100 for n in range(250)]
rows = [Encoded(ids, [0] * 200 + [1] * 50, f"rows:{n}", 50) for n in range(32)]
section = TrainSection(epochs=1.0, batch_size=32, learning_rate=5e-3)
job = make_job(base, rows, Path(sys.argv[2]), section, AdapterSection(r=4, alpha=8.0))
events = []
run(replace(job, section=section.model_copy(update={"learning_rate": 1e-9}), plan=MemoryPlan(500)))  # warms up
if sys.argv[3] == "limited":
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
run(replace(job, plan=MemoryPlan(100_000)), events)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
torch.save(weights(job.model), sys.argv[4])
print(json.dumps([event.text for event in events if isinstance(event, NoticeEvent)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit of the address space")
def test_a_true_limit_of_memory_is_survived_with_the_same_adapter(model_folder: Path, tmp_path: Path) -> None:
    said, found = {}, {}
    for kind in ("free", "limited"):
        out = tmp_path / f"{kind}.pt"
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(model_folder), str(tmp_path / kind), kind, str(out)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said[kind], found[kind] = done.stdout, torch.load(out)
    assert "out of memory" not in said["free"]
    assert "out of memory" in said["limited"]
    assert difference(found["limited"], found["free"]) < 1e-6


def test_steps_are_prepared_one_ahead_in_order_and_errors_reach_the_caller() -> None:
    made, threads = list[int](), set[str]()

    def make(number: int) -> Step:
        made.append(number)
        threads.add(threading.current_thread().name)
        if number == 4:
            raise TrainingError("row 4 cannot be read")
        return Step([], number, [], [], 0)

    ahead = Ahead(make, 5)
    assert [ahead(number).count for number in (2, 3)] == [2, 3]  # a resumed run begins in the middle
    with pytest.raises(TrainingError, match="row 4"):
        ahead(4)
    ahead.close()
    assert made == [2, 3, 4]
    assert threading.current_thread().name not in threads
    assert not any(thread.name.startswith("collate") for thread in threading.enumerate())
