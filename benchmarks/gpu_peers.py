"""Peers of benchmarks/training.py that need a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recording import Recorder, Task, labels
from stock import ALPHA, R, adapter_dtype, dataset, training_arguments, watch


def run_unsloth(task: Task, recorder: Recorder) -> Any:
    """Unsloth's model and kernels under TRL's trainer, as its notebooks do it."""
    from unsloth import FastLanguageModel  # isort: skip (it patches what is imported after it)
    import torch
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(task.model, load_in_4bit=True, dtype=torch.bfloat16)
    recorder.loaded()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=names, random_state=task.seed
    )
    settings = SFTConfig(
        per_device_train_batch_size=task.batch, train_sampling_strategy="sequential", **training_arguments(task)
    )
    data = dataset(recorder.rows, attention_mask=True)
    trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
    recorder.settings = f"{adapter_dtype(model)} adapter, bf16 autocast, Unsloth's kernels and checkpointing"
    return watch(trainer, recorder)


def run_axolotl(task: Task, recorder: Recorder) -> Any:
    """Axolotl from a config file, as its command reads it, with its LoRA kernels and packing left off."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.loaders import ModelLoader
    from axolotl.train import setup_model_and_trainer

    folder = Path(tempfile.mkdtemp())
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in recorder.rows:
            columns = {"input_ids": row["ids"], "attention_mask": [1] * len(row["ids"]), "labels": labels(row)}
            file.write(json.dumps(columns) + "\n")
    given = training_arguments(task)
    kernels = {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {
        "base_model": task.model,
        "load_in_4bit": True,
        "adapter": "qlora",
        "lora_r": R,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target_modules": names,
        **kernels,
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,  # keeps the order of the rows
        "sequence_len": max(len(row["ids"]) for row in recorder.rows),
        "micro_batch_size": task.batch,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw_torch_fused",
        "bf16": True,
        "warmup_steps": 0,
        "val_set_size": 0.0,
        "lr_scheduler": given["lr_scheduler_type"],
        **{
            key: given[key]
            for key in ("output_dir", "max_steps", "learning_rate", "weight_decay", "max_grad_norm", "seed")
        },
    }
    (folder / "config.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    attach = ModelLoader._load_adapters

    def noting(self: Any) -> Any:
        recorder.loaded()
        return attach(self)

    ModelLoader._load_adapters = noting
    config = load_cfg(folder / "config.yml")
    trainer, *_ = setup_model_and_trainer(config, load_datasets(cfg=config, cli_args=TrainerCliArgs()))
    recorder.settings = f"padded, {adapter_dtype(trainer.model)} adapter, bf16, LoRA kernels"
    return watch(trainer, recorder)


RUNS: dict[str, Callable[[Task, Recorder], Any]] = {"Unsloth": run_unsloth, "Axolotl": run_axolotl}
