"""The measured processes of benchmarks/training.py: each trains the same rows with one library.

    python benchmarks/contenders.py TASK.json      prints one line of JSON

Only the contender `finetune` imports finetune, so that the others can run in environments of their own. Rows arrive
tokenised, with a loss mask, in the order in which they are trained; the model as a folder of bf16 weights. Peers are
set up as their documentation says, with the settings that are the same for all.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from recording import Recorder, Task
from stock import ALPHA, R, adapter_dtype, dataset, load_stock, lora_config, training_arguments, watch


def run_trainer(task: Task, recorder: Recorder) -> Any:
    """transformers.Trainer with stock PEFT: padded, no checkpointing, no packing."""
    import torch
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    base, tokenizer = load_stock(task)
    recorder.loaded()
    torch.manual_seed(task.seed)
    model = get_peft_model(base, lora_config())
    settings = TrainingArguments(
        per_device_train_batch_size=task.batch, train_sampling_strategy="sequential", **training_arguments(task)
    )
    data = dataset(recorder.rows, attention_mask=True)
    trainer = Trainer(model, settings, train_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer))
    recorder.settings = "padded, fp32 adapter, bf16 autocast, no checkpointing"
    return watch(trainer, recorder)


def run_trl(task: Task, recorder: Recorder, *, tuned: bool = False) -> Any:
    """SFTTrainer at its defaults, or without checkpointing and with the step as one batch."""
    import torch
    from trl import SFTConfig, SFTTrainer

    base, tokenizer = load_stock(task)
    recorder.loaded()
    torch.manual_seed(task.seed)
    default = SFTConfig.per_device_train_batch_size
    size = task.batch if tuned or task.batch % default else default
    changed: dict[str, Any] = {"gradient_checkpointing": False} if tuned else {}
    settings = SFTConfig(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=task.batch // size,
        train_sampling_strategy="sequential",
        **changed,
        **training_arguments(task),
    )
    trainer = SFTTrainer(
        base, settings, train_dataset=dataset(recorder.rows), processing_class=tokenizer, peft_config=lora_config()
    )
    checkpointing = "no checkpointing" if tuned else "checkpointing"
    recorder.settings = (
        f"padded, {size} rows a pass, {adapter_dtype(trainer.model)} adapter, bf16 autocast, {checkpointing}"
    )
    return watch(trainer, recorder)


def run_trl_packed(task: Task, recorder: Recorder) -> Any:
    """SFTTrainer with packing=True (bfd), checkpointing off; each step's examples are packed by themselves."""
    import torch
    from datasets import concatenate_datasets
    from torch.utils.data import DataLoader
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import pack_dataset

    base, tokenizer = load_stock(task)
    recorder.loaded()
    torch.manual_seed(task.seed)
    settings = SFTConfig(
        packing=True,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **training_arguments(task),
    )
    groups, packed, start = [], [], 0
    for first in range(0, recorder.total * task.batch, task.batch):
        step = pack_dataset(dataset(recorder.rows[first : first + task.batch]), settings.max_length, "bfd")
        groups.append(list(range(start, start + len(step))))
        packed.append(step)
        start += len(step)

    class InGroups(SFTTrainer):
        def get_train_dataloader(self) -> Any:
            # As many rows as one step's examples fill; its own collator lays them out as one row without padding.
            return DataLoader(self.train_dataset, batch_sampler=groups, collate_fn=self.data_collator)

    trainer = InGroups(
        base,
        settings,
        train_dataset=concatenate_datasets(packed),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    kind = (
        f"rows of {settings.max_length} tokens, {adapter_dtype(trainer.model)} adapter, bf16 autocast, no checkpointing"
    )
    recorder.settings = f"packed (bfd) into {kind}, attention {base.config._attn_implementation}"
    return watch(trainer, recorder)


def run_llamafactory(task: Task, recorder: Recorder) -> Any:
    """LLaMA-Factory's own loader, collator and trainer, as its run_sft puts them together."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer, loader
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    arguments = training_arguments(task)
    arguments["report_to"] = ["none"]
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": task.model,
            "template": "empty",
            "dataset": "rows",
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": R,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "quantization_bit": 4,
            "quantization_type": "nf4",
            "double_quantization": True,
            "per_device_train_batch_size": task.batch,
            "disable_shuffling": True,
            "remove_unused_columns": False,
            **arguments,
        }
    )
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    attach = loader.init_adapter

    def noting(*args: Any, **kwargs: Any) -> Any:
        recorder.loaded()
        return attach(*args, **kwargs)

    loader.init_adapter = noting
    model = loader.load_model(parts["tokenizer"], model_args, finetuning_args, is_trainable=True)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template,
        model=model,
        pad_to_multiple_of=8,
        attn_implementation=model.config._attn_implementation,
        compute_dtype=model_args.compute_dtype,
        **parts,
    )
    trainer = CustomSeq2SeqTrainer(
        model=model,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        train_dataset=dataset(recorder.rows, attention_mask=True),
        **parts,
    )
    recorder.settings = f"padded, {adapter_dtype(model)} adapter, bf16 autocast, checkpointing (re-entrant)"
    return watch(trainer, recorder)


def run_finetune(task: Task, recorder: Recorder) -> Any:
    """This project, in a module of its own because of what it imports."""
    import ours

    return ours.run(task, recorder)


def run_on_gpu(task: Task, recorder: Recorder) -> Any:
    """Peers that need a GPU."""
    import gpu_peers

    return gpu_peers.RUNS[task.contender](task, recorder)


RUNS: dict[str, Callable[[Task, Recorder], Any]] = {
    "finetune": run_finetune,
    "TRL": run_trl,
    "TRL tuned": lambda task, recorder: run_trl(task, recorder, tuned=True),
    "TRL packed": run_trl_packed,
    "Trainer": run_trainer,
    "LLaMA-Factory": run_llamafactory,
    "Unsloth": run_on_gpu,
    "Axolotl": run_on_gpu,
}


def main() -> None:
    """Run the task and print what was measured."""
    logging.disable(logging.WARNING)
    task = Task.read(sys.argv[1])
    recorder = Recorder(task)
    print(json.dumps(recorder.result(RUNS[task.contender](task, recorder))))


if __name__ == "__main__":
    main()
