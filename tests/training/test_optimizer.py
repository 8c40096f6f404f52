"""Optimizers: rates per group, states that can be put back, and gradients that are never applied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.data.examples import Example
from finetune.errors import DeviceError
from finetune.model.base import Base
from finetune.recipe import AdapterSection, TrainSection
from finetune.training.optimizer import LORA_PLUS, Optimizer
from tests.conftest import MakeBase
from tests.training.helpers import SECTION, encoded, make_job, run, weights

SIZES = {"adamw": 64, "adamw_8bit": 8192}  # bitsandbytes keeps 32 bits below 4,096 numbers


class Pair(nn.Module):
    """Two matrices with the names of an adapter's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(size, 1, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(1, size, bias=False)})
        self.layer = nn.Module()


class Model(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.pair = Pair(size)

    @property
    def both(self) -> tuple[nn.Parameter, nn.Parameter]:
        a, b = self.parameters()
        return a, b


def step(model: nn.Module, optimizer: Optimizer, seed: int, *, finite: bool = True) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer.step(1e-3, torch.tensor(finite))


def test_with_lora_plus_b_moves_sixteen_times_as_far_in_the_first_step() -> None:
    model = Model(64)
    before = [parameter.detach().clone() for parameter in model.both]
    optimizer = Optimizer(dict(model.named_parameters()), TrainSection(), ["lora+"])
    step(model, optimizer, 0)
    # The first step of AdamW is the rate in every place, whatever the gradient.
    moved = [float((p.detach() - old).abs().mean()) for p, old in zip(model.both, before, strict=True)]
    assert moved == pytest.approx([1e-3, LORA_PLUS * 1e-3], rel=1e-3)


def test_clipping_scales_every_gradient_by_the_norm_of_all() -> None:
    torch.manual_seed(0)
    layers = {f"{number}.weight": nn.Parameter(torch.randn(size)) for number, size in enumerate((3, 1_000_001, 64))}
    optimizer, gradients = Optimizer(layers, TrainSection()), {name: torch.randn(len(p)) for name, p in layers.items()}
    for name, parameter in layers.items():
        assert parameter.grad is not None
        parameter.grad.copy_(gradients[name])
    exact = float(torch.cat(list(gradients.values())).double().norm())
    # A single fp32 sum over so many numbers is off by 1e-5.
    assert float(optimizer.clip(1.0)) == pytest.approx(exact, rel=1e-6)
    for name, parameter in layers.items():
        torch.testing.assert_close(parameter.grad, gradients[name] / exact, rtol=1e-5, atol=1e-9)
    before = optimizer.gradient.clone()
    optimizer.clip(2.0)  # of what has a norm of 1
    assert torch.equal(optimizer.gradient, before)


def test_parameters_keep_their_values_and_share_one_gradient() -> None:
    layers = {"a": nn.Parameter(torch.arange(6.0).view(2, 3).t()), "b": nn.Parameter(torch.full((5,), 7.0))}
    optimizer = Optimizer(layers, TrainSection())
    assert torch.equal(layers["a"], torch.arange(6.0).view(2, 3).t())
    assert torch.equal(layers["b"], torch.full((5,), 7.0))
    (layers["a"].sum() + 2 * layers["b"].sum()).backward()
    assert float(optimizer.gradient.sum()) == 6 + 2 * 5
    optimizer.step(0.1, torch.tensor(True))
    assert float(optimizer.gradient.abs().sum()) == 0
    assert torch.equal(layers["b"], torch.full((5,), 6.9))


@pytest.mark.parametrize("name", SIZES)
def test_a_state_that_is_put_back_goes_on_bit_for_bit(name: str) -> None:
    section = TrainSection(optimizer=name)  # type: ignore[arg-type]
    first, second = Model(SIZES[name]), Model(SIZES[name])
    optimizer = Optimizer(dict(first.named_parameters()), section, ["lora+"])
    for seed in range(3):
        step(first, optimizer, seed)
    saved = optimizer.state_tensors()
    assert {tensor.dtype for key, tensor in saved.items() if "state" in key} <= {torch.uint8}
    second.load_state_dict(first.state_dict())
    other = Optimizer(dict(second.named_parameters()), section, ["lora+"])
    other.restore_state(saved)
    for seed in range(3, 6):
        step(first, optimizer, seed)
        step(second, other, seed)
    for mine, theirs in zip(first.both, second.both, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", SIZES)
def test_gradients_that_are_not_finite_are_never_applied(name: str) -> None:
    model = Model(SIZES[name])
    optimizer = Optimizer(dict(model.named_parameters()), TrainSection(optimizer=name))  # type: ignore[arg-type]
    step(model, optimizer, 0)
    before = [parameter.detach().clone() for parameter in model.both]
    assert model.both[0].grad is not None
    model.both[0].grad.fill_(float("nan"))
    optimizer.step(1e-3, torch.tensor(False))
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.both, before, strict=True))
    step(model, optimizer, 1)
    assert all(bool(parameter.isfinite().all()) for parameter in model.both)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_frozen_half_of_a_start_in_the_weight_never_moves(
    base: Base, examples: tuple[Example, ...], tmp_path: Path, optimizer: str
) -> None:
    """Blocks of 256 numbers with an 8-bit state in common hold numbers of both halves."""
    adapter = AdapterSection(method="pissa", r=30, alpha=30.0)
    section = SECTION.model_copy(update={"optimizer": optimizer})
    job = make_job(base, encoded(base, examples), tmp_path / "none", section, adapter)
    before = weights(job.model)
    run(job)
    for name, after in weights(job.model).items():
        dim = 0 if "lora_A" in name else 1
        moved, frozen = (after - before[name]).chunk(2, dim)
        assert float(moved.abs().max()) > 0
        assert bool((frozen == 0).all())


def test_a_paged_optimizer_on_a_cpu_is_refused_before_training(
    base: Base, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    section = SECTION.model_copy(update={"optimizer": "paged_adamw_8bit"})
    with pytest.raises(DeviceError, match=r"paged_adamw_8bit pages .* set train.optimizer to adamw_8bit or adamw"):
        run(make_job(base, encoded(base, examples), tmp_path / "none", section))


@pytest.mark.parametrize(
    ("adapter", "section"),
    [
        (AdapterSection(method="pissa", r=4, alpha=4.0), SECTION),
        (AdapterSection(method="eva", r=4, alpha=8.0), SECTION),
        (AdapterSection(method=("lora", "lora+", "neftune"), r=4, alpha=8.0), SECTION),
        (AdapterSection(r=64, alpha=8.0), SECTION.model_copy(update={"optimizer": "adamw_8bit"})),
        (AdapterSection(r=4, alpha=8.0, modules_to_save=("embed_tokens",)), SECTION),
    ],
    ids=["pissa", "eva", "lora+ neftune", "adamw_8bit", "modules_to_save"],
)
def test_an_interrupted_run_ends_with_the_adapter_of_a_whole_one(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path, adapter: AdapterSection, section: TrainSection
) -> None:
    found = []
    for name, limits in (("whole", [None]), ("parts", [5, None])):
        for limit in limits:
            base = make_base()
            job = make_job(base, encoded(base, examples), tmp_path / name, section, adapter, checkpoint_every=3)
            try:
                run(job, Until(limit))
            except Stopped:
                assert limit == 5
        found.append(weights(job.model) | {n: p for n, p in job.model.named_parameters() if ".modules_to_save." in n})
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


class Stopped(Exception):
    pass


class Until(list[object]):
    """Takes events, and ends the run at a step as a crash would."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def append(self, event: object) -> None:
        if getattr(event, "step", None) == self.step is not None:
            raise Stopped
        super().append(event)
