"""finetune plan with several recipes: what they need at once, and that it refuses what training refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from finetune.data.dataset import load_dataset
from finetune.jobs import RunOptions, make_jobs
from finetune.model.base import load_base
from finetune.model.memory import OWN, estimate
from finetune.model.tokenizer import load_chat_template
from finetune.planning.plan import Assumptions, make_plan, read_need
from finetune.planning.together import plan_together
from finetune.recipe import load_recipe
from finetune.terminal.plan import show_plan
from tests.planning.conftest import Run
from tests.planning.test_plan import LLAMA_65B, large

ROOM = Assumptions(gpu=24 * 10**9)


@pytest.fixture
def recipes(recipe: Path) -> list[Path]:
    """Three recipes of one base: other ranks, targets, batches and epochs."""
    text = recipe.read_text()
    for name, changes in {
        "signs": {"r: 4": "r: 16, target_modules: [q_proj, down_proj]", "batch_size: 8": "batch_size: 3"},
        "menus": {"r: 4": "r: 8", "epochs: 2": "epochs: 1"},
    }.items():
        changed = text.replace("name: shop", f"name: {name}")
        for old, new in changes.items():
            changed = changed.replace(old, new)
        Path(f"{name}.yaml").write_text(changed)
    return [recipe, Path("signs.yaml"), Path("menus.yaml")]


def test_the_base_is_there_once_and_each_adapter_has_its_own_states(recipes: list[Path]) -> None:
    loaded = [load_recipe(path) for path in recipes]
    found, alone = plan_together(loaded, ROOM), [make_plan(recipe, ROOM) for recipe in loaded]
    assert [member.name for member in found.members] == ["shop", "signs", "menus"]
    for member, report in zip(found.members, alone, strict=True):
        own = next(option.estimate for option in report.options if option.own)
        assert (member.alone, member.plan, member.trained) == (own, report.plan, report.trained)
        assert member.states == 16 * report.trained
    assert found.states == sum(member.states for member in found.members)
    assert found.base_bytes == alone[0].options[0].estimate.peak - found.members[0].states - found.members[0].step
    assert found.steps == max(report.load.steps for report in alone)
    assert found.tokens == sum(report.load.tokens for report in alone)
    assert found.flops == pytest.approx(sum(report.flops for report in alone))
    assert found.plan.tokens == sum(report.load.step_tokens for report in alone), "rows hold the steps of all"


def test_a_shared_micro_batch_is_the_neediest_ones_and_the_others_matrices(recipes: list[Path]) -> None:
    loaded = [load_recipe(path) for path in recipes]
    found = plan_together(loaded, ROOM)
    needs = [read_need(recipe, cpu=False) for recipe in loaded]
    peaks = [estimate(need.shape, need.work) for need in needs]
    most = max(range(3), key=lambda number: peaks[number].peak)
    others = [peak for number, peak in enumerate(peaks) if number != most]
    casts = sum(peak.of(OWN) - peak.of(["gradients", "optimizer"]) for peak in others)
    assert found.step > peaks[most].of(["activations"]) + casts
    assert max(member.alone.peak for member in found.members) < found.peak
    assert found.peak < sum(member.alone.peak for member in found.members)


def test_training_chooses_the_plan_that_was_counted(recipes: list[Path], model_folder: Path) -> None:
    """On this machine there is room for all, so both take whole steps."""
    loaded = [load_recipe(path, [f"base.model={model_folder}", "base.quantization=none"]) for path in recipes]
    template = load_chat_template(loaded[0].base)
    datasets = [load_dataset(recipe.data, template) for recipe in loaded]
    base = load_base(loaded[0].base, torch.device("cpu"), template)
    jobs = make_jobs(loaded, base, datasets, RunOptions(), lambda event: None)
    counted = plan_together(loaded).plan
    assert {(job.plan.tokens, job.plan.recompute) for job in jobs.values()} == {(counted.tokens, counted.recompute)}


def test_it_says_what_fits_in_80_columns_and_as_json(
    recipes: list[Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    large(Path("base"), **LLAMA_65B)
    names = [str(path) for path in recipes]
    code, said = run(*names, "--gpu", "48GB", "--format", "json")
    found = json.loads(said)
    assert (code, found["fits"]) == (0, True)
    assert sum(found["together"]["parts"].values()) == found["together"]["peak"]
    assert [adapter["name"] for adapter in found["adapters"]] == ["shop", "signs", "menus"]
    assert all(adapter["alone"]["fits"] for adapter in found["adapters"])
    assert found["parameters"] == 65_285_660_672
    code, said = run(*names, "--gpu", "36GB", "--tokens-per-second", "100")
    assert code == 1
    assert "does not fit" in said
    report = plan_together([load_recipe(path) for path in recipes], Assumptions(36 * 10**9, 100.0, 2.5, 300.0))
    show_plan(Console(width=80), report, gpu=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for words in ("there once for all", "shop", "signs", "menus", "all at once", "kWh", "one after the other"):
        assert words in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("r: 16", "method: dora, r: 16"), "signs: adapter.method dora cannot be trained together with other adapters"),
        (("r: 16", "dropout: 0.1, r: 16"), "signs: adapter.dropout 0.1 cannot be trained together"),
        (("r: 16", "modules_to_save: [norm], r: 16"), "signs: adapter.modules_to_save cannot be trained together"),
        (("dtype: bfloat16", "dtype: float32"), "of two bases: base.dtype float32 and bfloat16"),
        (("name: signs", "name: shop"), "two recipes write 'shop'"),
    ],
)
def test_what_training_refuses_is_refused_with_the_reason(
    recipes: list[Path], run: Run, change: tuple[str, str], words: str
) -> None:
    recipes[1].write_text(recipes[1].read_text().replace(*change))
    code, said = run(*map(str, recipes))
    assert code == 2
    assert words in said
    assert "Traceback" not in said
