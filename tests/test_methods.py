"""Every recipe in recipes/methods trains on the built-in base, and its adapter is one that PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from finetune.data.batches import TrainingRows
from finetune.data.dataset import load_dataset
from finetune.errors import DeviceError
from finetune.model.base import Base, load_base, weights_sha256
from finetune.model.lora import attach
from finetune.model.tokenizer import load_chat_template
from finetune.recipe import BaseSection, Recipe, load_recipe
from finetune.training.budget import MemoryPlan
from finetune.training.loop import train
from finetune.training.run import TrainingJob
from finetune.training.telemetry import Event, StepEvent

FOLDER = Path(__file__).parents[1] / "recipes/methods"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAGED = "paged-adamw-8bit"
STEPS = 4
IDS = torch.randint(10, 8000, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make a run of a second of any of the recipes."""
    folder = tmp_path_factory.mktemp("rows")
    lines = (FOLDER.parents[1] / "data/pizza/train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", lines[:4]), ("heldout", lines[4:6])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    data = [f"data.path={folder}/train.jsonl", f"data.heldout={folder}/heldout.jsonl"]
    train = [f"train.epochs={STEPS}", "train.max_steps=null", "train.batch_size=4", "train.schedule=constant"]
    return [*data, *train, "adapter.r=4", "base.dtype=float32"]


def load_tiny() -> Base:
    section = BaseSection(model="tiny", dtype="float32")
    return load_base(section, torch.device("cpu"), load_chat_template(section))


@pytest.fixture(scope="module")
def base() -> Base:
    """One base for all, as in a process that swaps adapters: no method may change a byte of it."""
    return load_tiny()


@pytest.fixture(scope="module")
def digest(base: Base) -> str:
    return weights_sha256(base.model)


def job_of(recipe: Recipe, base: Base, folder: Path) -> TrainingJob:
    dataset = load_dataset(recipe.data, base.template)
    train_rows = TrainingRows(dataset.train)
    model = attach(base, recipe.adapter, recipe.seed, train_rows)
    section, methods = recipe.train, recipe.adapter.methods
    plan, heldout = MemoryPlan(1024), dataset.heldout if section.patience else []
    return TrainingJob(base, model, train_rows, heldout, section, 0, folder / "none", 100, {}, plan, methods)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != PAGED], ids=lambda path: path.stem)
def test_the_recipe_trains_and_its_adapter_is_one_that_peft_reads(
    path: Path, rows: list[str], base: Base, digest: str, tmp_path: Path
) -> None:
    recipe = load_recipe(path, rows)
    base = load_tiny() if recipe.adapter.modules_to_save else base  # PEFT's unload would leave the trained copies in it
    before = logits(base.model)
    job, events = job_of(recipe, base, tmp_path), list[Event]()
    result = train(job, Accelerator(cpu=True), events.append)
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert len(steps) == STEPS
    assert steps[-1].loss < steps[0].loss
    assert all(0 < event.grad_norm < float("inf") for event in steps)
    assert (result.kept_step is not None) == (path.stem == "early-stopping")
    assert weights_sha256(base.model) == digest
    trained = logits(job.model)
    assert float((trained - before).abs().max()) > 0.1, "the adapter does something"
    job.model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    if recipe.adapter.modules_to_save:
        base = load_tiny()
    else:
        job.model.unload()
    torch.testing.assert_close(logits(base.model), before, rtol=1e-4, atol=1e-4)
    read = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(read), trained, rtol=1e-3, atol=2e-3)
    assert weights_sha256(base.model) == digest
    read.unload()


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_start_in_the_weight_begins_with_the_bases_answers_in_bf16_too(
    name: str, rows: list[str], tmp_path: Path
) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml", [*rows, "base.dtype=bfloat16"])
    base = load_base(recipe.base, torch.device("cpu"))
    before = logits(base.model)
    job = job_of(recipe, base, tmp_path)
    torch.testing.assert_close(logits(job.model), before, rtol=0.02, atol=0.1)
    job.model.save_pretrained(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 32, True)


def test_the_paged_one_says_that_it_needs_a_gpu(rows: list[str], base: Base, tmp_path: Path) -> None:
    job = job_of(load_recipe(FOLDER / f"{PAGED}.yaml", rows), base, tmp_path)
    with pytest.raises(DeviceError, match="paged_adamw_8bit"):
        train(job, Accelerator(cpu=True), lambda event: None)
    job.model.unload()


def test_every_recipe_says_what_it_is_for_and_names_the_schema() -> None:
    assert len(RECIPES) >= 14
    for path in RECIPES:
        first, second = path.read_text(encoding="utf-8").splitlines()[:2]
        assert first == "# yaml-language-server: $schema=../../docs/recipe.schema.json"
        assert second.startswith("# ")
        recipe = load_recipe(path)
        assert path.stem in (recipe.name, "shared")
        assert (recipe.data.path, recipe.data.heldout) == ("data/pizza/train.jsonl", "data/pizza/heldout.jsonl")
