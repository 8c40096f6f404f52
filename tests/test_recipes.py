"""Every shipped recipe is valid and trains; those for Hub models on a small folder of their architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune.pipeline import train
from finetune.recipe import load_recipe
from finetune.store.folders import find_adapter

RECIPES = sorted(Path("recipes").glob("*.yaml"))
HUB = ["smollm2-135m", "qwen3-0.6b", "llama-3.1-8b"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipe_is_valid_and_names_files_that_exist(path: Path) -> None:
    recipe = load_recipe(path)
    named = [recipe.data.path, recipe.data.heldout, recipe.eval.prompts, recipe.eval.general]
    assert all(Path(str(name)).is_file() for name in [*named, *(m.path for m in recipe.data.mix)])


@pytest.mark.parametrize("name", HUB)
def test_a_recipe_for_a_real_model_trains_on_its_architecture(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    _model_like(name, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    overrides = [f"base.model={folder}", f"output={tmp_path / 'adapters'}", "train.max_steps=1"]
    recipe = load_recipe(f"recipes/{name}.yaml", [*overrides, "train.batch_size=2", "data.max_length=1000"])
    adapter = train(recipe)
    stored = find_adapter(recipe.name, tmp_path / "adapters")
    assert stored.card.steps == 1
    assert adapter.card.base.quantization == "nf4"
    assert "q_norm" not in (stored.folder / "adapter_config.json").read_text()


def _model_like(name: str, vocabulary: int) -> PreTrainedModel:
    """The architecture with its particulars (grouped heads, tied embeddings, query norms), tiny."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name.startswith("qwen3"):
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, tie_word_embeddings=True))
    tied = name.startswith("smollm2")
    return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
