"""A recipe to plan, and the command line to plan it with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import cli

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose base has a config and a tokenizer, but no weights."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "base", ignore=shutil.ignore_patterns("*.safetensors"))
    Path("recipe.yaml").write_text(
        f"name: shop\nbase: {{model: base, dtype: bfloat16}}\nadapter: {{r: 4}}\n"
        f"data: {{path: {jsonl.name}, heldout: 0.2, max_length: 128}}\ntrain: {{epochs: 2, batch_size: 8}}\n"
    )
    return Path("recipe.yaml")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", "plan", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    return call
