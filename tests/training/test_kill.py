"""A run killed at any moment goes on from its last checkpoint and ends with the same adapter."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.files import sha256_file
from finetune.training.checkpoint import has_checkpoint


def command(model_folder: Path, jsonl: Path, output: Path, every: int = 5) -> list[str]:
    recipe = jsonl.with_name("recipe.yaml")
    recipe.write_text(
        f"name: shop\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\nadapter: {{r: 4, dropout: 0.1}}\n"
        "train: {epochs: 60, batch_size: 8, learning_rate: 5e-3}\n"
    )
    options = [f"output={output}", "--checkpoint-every", str(every)]
    return [sys.executable, "-m", "finetune", "train", str(recipe), *options]


def test_a_killed_run_leaves_the_checkpoint_of_its_last_even_step(
    model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(model_folder, jsonl, tmp_path, every=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = tmp_path / "shop.checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, errors.decode()
    assert has_checkpoint(checkpoint)
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    assert step % 2 == 0
    assert 2 <= step < 100, "the default would have waited for step 100"


@pytest.mark.slow
def test_killed_runs_end_with_the_adapter_of_an_uninterrupted_one(
    model_folder: Path, jsonl: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = command(model_folder, jsonl, tmp_path / "whole")
    subprocess.run(whole, check=True, capture_output=True, env=environment)
    expected = sha256_file(tmp_path / "whole" / "shop" / "adapter_model.safetensors")

    pick = random.Random(0)
    parts = command(model_folder, jsonl, tmp_path / "parts")
    checkpoint = tmp_path / "parts" / "shop.checkpoint"
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(parts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        deadline = time.monotonic() + 120
        before = checkpoint.stat().st_ino if checkpoint.exists() else 0
        # Wait for a new checkpoint so that each round gets further, then strike at a random moment.
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_ino != before:
                break
            time.sleep(0.01)
        time.sleep(pick.random() * 0.5)
        if process.poll() is None:
            process.kill()
            kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -9, errors.decode()
    assert kills >= 3
    assert sha256_file(tmp_path / "parts" / "shop" / "adapter_model.safetensors") == expected
    assert not checkpoint.exists()
