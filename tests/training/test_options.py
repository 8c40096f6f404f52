"""Where and how a run runs: said by the environment and the command line, never by the recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from finetune import cli
from finetune.errors import DeviceError, FinetuneError
from finetune.model.device import make_accelerator, pick_device
from finetune.pipeline import train
from finetune.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        f"name: shop\nbase: {{model: {model_folder}, dtype: float32}}\nadapter: {{r: 4}}\n"
        f"data: {{path: {jsonl.name}, heldout: 0.2, max_length: 128}}\ntrain: {{max_steps: 3, batch_size: 8}}\n"
    )
    return Path("recipe.yaml")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "cuda"), ("false", "cuda"), ("0", "cuda"), ("true", "cpu"), ("True", "cpu"), ("1", "cpu"), ("yes", "cpu")],
)
def test_the_gpu_is_used_if_there_is_one_and_accelerates_variable_allows_it(
    value: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert pick_device().type == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == "cpu"


def test_training_and_evaluation_agree_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_accelerator([], tmp_path).device == pick_device() == torch.device("cpu")  # the variable is set


@pytest.mark.parametrize("value", ["", "maybe", "cuda"])
def test_a_value_that_is_neither_true_nor_false_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    with pytest.raises(DeviceError, match=f"ACCELERATE_USE_CPU is '{value}', neither true nor false; set it to true"):
        make_accelerator([], tmp_path)


class Lines(GeneralTracker):
    """A tracker without a package: one JSON line for each call."""

    name = "lines"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.file = Path(logging_dir, f"{run_name}.jsonl")

    @property
    def tracker(self) -> Path:
        return self.file

    def start(self) -> None:
        self.file.parent.mkdir(parents=True)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        # TensorBoard takes nothing else, and neither do others.
        assert {type(value) for value in values.values()} <= {bool, str, float, int, type(None)}
        self.write(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.write({"step": step, **values})

    def write(self, values: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(values) + "\n")


def test_a_tracker_gets_the_settings_and_every_step(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "lines", Lines)
    monkeypatch.setattr(
        sys, "argv", ["finetune", "train", str(recipe), "data.columns={output: output}", "--tracker=lines"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    lines = Path("adapters/trackers/finetune.jsonl").read_text().splitlines()
    settings, *entries = map(json.loads, lines)
    assert (settings["name"], settings["seed"], settings["train.max_steps"]) == ("shop", 0, 3)
    assert settings["data.columns"] == '{"output": "output"}'
    assert [json.loads(line) for line in Path("adapters/shop/log.jsonl").read_text().splitlines()] == entries
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3]


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_loaded(recipe: Path) -> None:
    with pytest.raises(FinetuneError, match=r"--tracker all: accelerate has no such tracker; there are aim, clearml, "):
        train(load_recipe(recipe), trackers=["all"])
    installed = set(map(str, get_available_trackers()))
    absent = next(name for name in LOGGER_TYPE_TO_CLASS if name not in installed)
    with pytest.raises(DeviceError, match=f"--tracker {absent}: its package is not installed; pip install {absent}"):
        train(load_recipe(recipe), trackers=[absent])
    assert not Path("adapters").exists()


def test_checkpoints_come_after_whole_steps(recipe: Path) -> None:
    with pytest.raises(FinetuneError, match="checkpoint_every is 0; give 1 step or more"):
        train(load_recipe(recipe), checkpoint_every=0)
