"""What contenders that stand on transformers.Trainer share: model, rows, settings, and somebody who watches."""

from __future__ import annotations

import tempfile
from typing import Any

from recording import Recorder, Row, Task, labels

R, ALPHA = 16, 32


def load_stock(task: Task) -> tuple[Any, Any]:
    """Model and tokenizer as transformers loads them: NF4, double quantisation, bf16 elsewhere."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        task.model, dtype=torch.bfloat16, device_map={"": task.device}, quantization_config=four_bits
    )
    return model, AutoTokenizer.from_pretrained(task.model)


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def training_arguments(task: Task) -> dict[str, Any]:
    """What every Trainer is told; the rest stays at its defaults."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": task.warm_up + task.steps,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": task.seed,
        "bf16": True,
        "use_cpu": task.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def watch(trainer: Any, recorder: Recorder) -> Any:
    """Train with a recorder looking on; return the trained model."""
    from transformers import TrainerCallback

    accelerator, norms = trainer.accelerator, []
    clip = accelerator.clip_grad_norm_

    def noting(*args: Any, **kwargs: Any) -> Any:
        norms.append(clip(*args, **kwargs))
        return norms[-1]

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.step(norms[-1], trainer.model)

    accelerator.clip_grad_norm_ = noting
    trainer.add_callback(Watch())
    trainer.train()
    return trainer.model


def dataset(rows: list[Row], *, attention_mask: bool = False) -> Any:
    """Tokenised rows as a datasets.Dataset."""
    from datasets import Dataset

    columns = {"input_ids": [row["ids"] for row in rows], "labels": [labels(row) for row in rows]}
    if attention_mask:
        columns["attention_mask"] = [[1] * len(row["ids"]) for row in rows]
    return Dataset.from_dict(columns)


def adapter_dtype(model: Any) -> str:
    """What the trained numbers are held in."""
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    return "/".join(sorted(found)).replace("bfloat16", "bf16").replace("float32", "fp32")
