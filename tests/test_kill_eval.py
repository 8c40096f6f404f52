"""An evaluation killed at any moment goes on where it was and ends with the report of an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune import pipeline
from finetune.recipe import load_recipe
from tests.killing import in_a_fresh_process


@pytest.fixture
def folder(model_folder: Path, jsonl: Path, tmp_path: Path) -> Path:
    """A folder with a recipe and its adapter."""
    lines = [f"- {{id: p{n}, prompt: Give me {n} pizzas, checks: [{{contains: pizza}}]}}\n" for n in range(20)]
    (tmp_path / "prompts.yaml").write_text("prompts:\n" + "".join(lines))
    general = [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "I can help with that."}]
    (tmp_path / "general.jsonl").write_text((json.dumps({"messages": general}) + "\n") * 4)
    (tmp_path / "recipe.yaml").write_text(
        f"name: shop\noutput: {tmp_path / 'adapters'}\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\nadapter: {{r: 4}}\n"
        "train: {max_steps: 2, batch_size: 8, learning_rate: 1e-2}\n"
        "generation: {max_new_tokens: 8, temperature: 0.7}\n"
        f"eval: {{prompts: {tmp_path / 'prompts.yaml'}, general: {tmp_path / 'general.jsonl'}}}\n"
    )
    pipeline.train(load_recipe(tmp_path / "recipe.yaml"))
    return tmp_path


def test_a_killed_evaluation_ends_with_the_same_bytes(folder: Path) -> None:
    assert int(in_a_fresh_process("kill_at_random", folder, 2)) >= 2


@pytest.mark.slow
def test_evaluations_killed_at_two_hundred_moments_end_with_the_same_bytes(folder: Path) -> None:
    assert int(in_a_fresh_process("kill_at_random", folder, 160)) >= 200


def test_a_signal_never_looks_like_a_pass(folder: Path) -> None:
    assert in_a_fresh_process("signalled", folder) == "[130, 143, 137]"


@pytest.mark.slow
def test_a_hundred_evaluations_write_the_same_bytes(folder: Path) -> None:
    assert in_a_fresh_process("evaluate_anew", folder, 100) == "1"
