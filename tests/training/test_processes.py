"""Two processes under `accelerate launch` train the same adapter as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def test_two_processes_train_the_same_adapter_as_one(model_folder: Path, jsonl: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: pair\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\nadapter: {{r: 4}}\n"
        "train: {epochs: 2, batch_size: 5, learning_rate: 5e-3}\n"
    )
    found = {}
    for count in (1, 2):
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(count)]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"] if count > 1 else []
        done = subprocess.run(
            [sys.executable, *launch, "-m", "finetune", "train", str(recipe), f"output={tmp_path / str(count)}"],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        folder = tmp_path / str(count) / "pair"
        found[count] = load_file(folder / "adapter_model.safetensors")
        steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert sum("loss" in entry for entry in steps) == json.loads((folder / "card.json").read_text())["steps"]
        assert done.stdout.count("adapter written to") == 1
    assert any(tensor.abs().max() > 0 for name, tensor in found[1].items() if "lora_B" in name)
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=0, atol=1e-5)
