"""Rows and models for the benchmarks of scoring and training: mixes as instruction data is, the same every time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel

    from finetune.data.encoding import Encoded
    from finetune.data.template import ChatTemplate
    from finetune.recipe import BaseSection

DATA = Path(__file__).parent.parent / "data"
LONGEST = 1000  # tokens of a row: what the built-in base has positions for, and a little less
SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN3_06B = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
SHAPES = ("tiny", "smollm2-135m-shape")
LARGE = "qwen3-0.6b-shape"
Turns = list[tuple[str, str]]  # role and text


def pairs(pick: random.Random) -> Iterator[Turns]:
    """A short instruction and its answer, one example as it stands in data/pizza."""
    rows = _read("pizza")
    while True:
        row = pick.choice(rows)
        yield [("user", row["instruction"]), ("assistant", row["output"])]


def long_prompts(pick: random.Random) -> Iterator[Turns]:
    """A long text with a question at its end, and a short answer: retrieval, extraction, classification."""
    rows = _read("pizza")
    while True:
        log = pick.choices(rows, k=pick.randint(10, 24))
        lines = [f"{number}. {row['instruction']} - {row['output']}" for number, row in enumerate(log, 1)]
        wanted = pick.choice(log)
        question = f"Here is today's log.\n{chr(10).join(lines)}\nWhat was answered to: {wanted['instruction']}"
        yield [("user", question), ("assistant", wanted["output"])]


def chats(pick: random.Random) -> Iterator[Turns]:
    """Long conversations in which every answer is trained: several of data/general, one behind the other."""
    rows = _read("general")
    while True:
        found = pick.choices(rows, k=pick.randint(3, 13))
        yield [(turn["role"], turn["content"]) for row in found for turn in row["messages"] if turn["role"] != "system"]


MIXES: dict[str, Callable[[random.Random], Iterator[Turns]]] = {
    "pairs": pairs,
    "long-prompts": long_prompts,
    "chats": chats,
}


def encoded(mix: str, count: int, template: ChatTemplate) -> list[Encoded]:
    """The first `count` rows of a mix; those longer than LONGEST are left out."""
    from finetune.data.encoding import encode
    from finetune.data.examples import Example
    from finetune.data.messages import Message

    every = MIXES[mix](random.Random(mix))
    rows = (encode(Example(tuple(Message(*turn) for turn in turns), mix), template) for turns in every)
    return list(islice((row for row in rows if len(row.ids) <= LONGEST), count))


def model_folder(shape: str, folder: Path) -> str:
    """Return what `base.model` has to be: the built-in base, or random weights with its tokenizer, written anew."""
    if shape == "tiny":
        return shape
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from finetune.model.tokenizer import load_tokenizer
    from finetune.recipe import BaseSection

    where = folder / shape
    if not where.exists():
        torch.manual_seed(0)
        same = {"tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if shape == LARGE:
            model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_06B, **same))
        else:
            model = LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M, **same))
        model.to(torch.bfloat16).save_pretrained(where)
        load_tokenizer(BaseSection(model="tiny")).save_pretrained(where)
    return str(where)


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def stock_model(section: BaseSection) -> PeftModel:
    """The same model as transformers and PEFT load it by themselves: the usual way to a Trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from finetune.model.hub import local_path
    from finetune.recipe import AdapterSection

    dtype, adapter = torch.bfloat16 if section.dtype == "bfloat16" else torch.float32, AdapterSection()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantized = {"quantization_config": four_bits} if section.quantization == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(local_path(section), dtype=dtype, device_map={"": "cpu"}, **quantized)
    torch.manual_seed(0)
    config = LoraConfig(r=adapter.r, lora_alpha=int(adapter.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    return changed(get_peft_model(model, config))


def changed(model: PeftModel) -> PeftModel:
    """Make the fresh adapter change what the model says, the same for everybody."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.01)
    return model
