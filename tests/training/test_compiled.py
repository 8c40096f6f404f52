"""Regional compilation: the same training to rounding, few graphs for all shapes, a word where it cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from finetune.cli import main
from finetune.data.encoding import Encoded
from finetune.data.examples import Example
from finetune.errors import DeviceError
from finetune.model.base import Base
from finetune.model.compiled import compiled_regions, region, require_compiler
from finetune.recipe import TrainSection
from finetune.training.budget import MemoryPlan
from finetune.training.run import TrainingJob
from tests.conftest import MakeBase
from tests.training.helpers import encoded, make_job, run, weights
from tests.training.test_together import jobs_of
from tests.training.test_together import run as run_together

CPU = torch.device("cpu")
SECTION = TrainSection(epochs=5.0, batch_size=4, learning_rate=2e-3, max_steps=5)
# What torch.compile imports warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    counters.clear()
    yield
    counters.clear()


def trained(job: TrainingJob) -> tuple[list[float], Tensor]:
    """Loss and gradient norm of every step, and the adapter."""
    log = run(job).log
    numbers = [entry[key] for entry in log for key in ("loss", "grad_norm", "heldout_loss") if key in entry]
    return numbers, torch.cat([tensor.flatten() for tensor in weights(job.model).values()])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@needs_compiler
def test_training_compiled_is_the_same_with_few_graphs_for_all_shapes(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    base = make_base()
    rows = encoded(base, examples)
    job = replace(make_job(base, rows, tmp_path / "none", SECTION), heldout=rows[:3])
    losses, adapter = trained(job)
    assert not counters["stats"]
    for plan in (MemoryPlan(128), MemoryPlan(400, recompute=1), MemoryPlan(64)):
        base = make_base()
        job = make_job(base, rows, tmp_path / "none", SECTION)
        found, same = trained(replace(job, heldout=rows[:3], plan=plan, compiled=True))
        assert found == pytest.approx(losses, rel=1e-4)
        assert apart(same, adapter) < 1e-4
    # Fifteen steps in rows of 64 to 400 tokens: norm, its gradient with and without a residual, rotary embedding,
    # and SwiGLU thrice.
    assert counters["stats"]["unique_graphs"] == 7
    assert not counters["graph_break"]
    long = [Encoded(row.ids * 3, row.loss_mask * 3, row.where, 0) for row in rows]
    run(replace(make_job(make_base(), long, tmp_path / "none", SECTION), compiled=True))
    assert counters["stats"]["unique_graphs"] == 7


@needs_compiler
def test_adapters_trained_together_share_what_is_compiled(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    names = ["default", "adapter1"]
    plain = run_together(jobs_of(make_base(), examples, tmp_path / "plain", names))
    jobs = jobs_of(make_base(), examples, tmp_path / "compiled", names)
    compiled = run_together({name: replace(job, compiled=True) for name, job in jobs.items()})
    for (mine, _), (theirs, _) in zip(compiled, plain, strict=True):
        flat = [torch.cat([part[name].flatten() for name in theirs]) for part in (mine, theirs)]
        assert apart(*flat) < 1e-3
    assert counters["stats"]["unique_graphs"] <= 7
    assert not counters["graph_break"]


@needs_compiler
def test_an_interrupted_run_goes_on_with_and_without(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    """Nothing of it is in the checkpoint."""
    base = make_base()
    rows = encoded(base, examples)
    _, whole = trained(make_job(base, rows, tmp_path / "whole", SECTION))
    first = make_job(make_base(), rows, tmp_path / "parts", SECTION, checkpoint_every=2)
    run(replace(first, compiled=True))
    assert len(run(replace(first, compiled=True)).log) == 5
    resumed = make_job(make_base(), rows, tmp_path / "parts", SECTION)
    _, found = trained(resumed)  # from step 4 of what ran compiled
    assert apart(found, whole) < 1e-4


def test_without_a_compiler_it_is_refused_before_the_base_is_loaded(
    model_folder: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.yaml").write_text(
        f"name: one\noutput: {tmp_path}\nbase: {{model: {model_folder}}}\ndata: {{path: {jsonl}}}\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("finetune.pipeline.load_base", lambda *_: pytest.fail("the base was loaded"))
    monkeypatch.setattr("sys.argv", ["finetune", "train", str(tmp_path / "one.yaml"), "--compile"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--compile needs a C++ compiler on this device (cpu), and there is no g++" in said
    assert "leave it out" in said


def test_a_compiler_that_is_named_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(DeviceError, match=r"there is no .*nothing"):
        require_compiler(CPU)
    (tmp_path / "nothing").write_text("#!/bin/sh\n")
    (tmp_path / "nothing").chmod(0o755)
    require_compiler(CPU)


def test_outside_the_block_nothing_is_compiled(base: Base, examples: tuple[Example, ...], tmp_path: Path) -> None:
    with compiled_regions(False):
        run(make_job(base, encoded(base, examples)[:4], tmp_path / "none", SECTION))
    assert not counters["stats"]


@needs_compiler
def test_what_fails_in_the_compiler_says_so_without_a_traceback() -> None:
    @region
    def broken(x: Tensor) -> Tensor:
        return torch.mm(x, torch.ones(5, 5))

    with compiled_regions(True), pytest.raises(DeviceError, match=r"torch.compile failed: .*; train without --compile"):
        broken(torch.ones(3, 4))
