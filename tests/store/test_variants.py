"""Adapters of every kind that PEFT writes: accepted, and their arithmetic is PEFT's own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.store.folders import WEIGHTS
from finetune.store.spelt import spell_out
from finetune.store.weights import LoraWeights, has_effect, linear_shapes, read_weights
from tests.store.adapters import change_config, load_model, make

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BFLOAT, HALF = torch.bfloat16, torch.float16

PLAIN: dict[str, dict[str, Any]] = {
    "two layers": {},
    "every linear layer": {"target_modules": LINEARS},
    "all-linear": {"target_modules": "all-linear"},
    "rank 1": {"r": 1},
    "rank above the layer's width": {"r": 80},
    "alpha a fraction": {"lora_alpha": 0.5},
    "alpha negative": {"lora_alpha": -3},
    "rslora": {"use_rslora": True},
    "rslora with ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "ranks by name": {"rank_pattern": {"down_proj": 7}},
    "ranks by full name": {"rank_pattern": {"model.layers.0.mlp.down_proj": 3, "model.layers.1.mlp.down_proj": 5}},
    "ranks by pattern": {"rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": 6, "q_proj": 9}},
    "ranks anchored": {"rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 5}},
    "alphas by name": {"alpha_pattern": {"q_proj": 32, "down_proj": 1}},
    "alphas by pattern": {"alpha_pattern": {r".*\.1\..*_proj": 20}},
    "ranks and alphas": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "a subset of layers": {"layers_to_transform": [1]},
    "one layer by number": {"layers_to_transform": 0},
    "layers with their pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "layers with patterns": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "targets by pattern": {"target_modules": r"model\.layers\.[01]\.(self_attn\.[qv]|mlp\.up)_proj"},
    "targets by a pattern with .*": {"target_modules": r".*\.(q_proj|gate_proj)"},
    "targets by full name": {"target_modules": ["model.layers.1.self_attn.o_proj", "layers.0.mlp.up_proj"]},
    "without some": {"target_modules": LINEARS, "exclude_modules": ["layers.0.self_attn.q_proj", "up_proj"]},
    "without some by pattern": {"target_modules": LINEARS, "exclude_modules": r".*layers\.0\..*"},
    "the output head": {"target_modules": ["lm_head", "q_proj"]},
    "dropout": {"lora_dropout": 0.3},
    "started as gaussian": {"init_lora_weights": "gaussian"},
    "started orthogonal": {"init_lora_weights": "orthogonal"},
    "not started": {"init_lora_weights": False},
    "bfloat16": {"dtype": BFLOAT},
    "float16": {"dtype": HALF},
    "bfloat16 rslora": {"dtype": BFLOAT, "use_rslora": True},
    "float16, ranks": {"dtype": HALF, "rank_pattern": {"q_proj": 2}},
}
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "dora, patterns": ({"use_dora": True, "target_modules": r".*\.[qv]_proj", "rank_pattern": {"q.proj": 2}}, "DoRA"),
    "a trained head": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "trained norms": ({"modules_to_save": ["input_layernorm"]}, "modules_to_save"),
    "trained tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "branches on embeddings"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bare(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder).eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(6, 300, (2, 12), generator=torch.Generator().manual_seed(1))


@contextmanager
def applied(model: nn.Module, weights: LoraWeights) -> Iterator[None]:
    """Each branch added to its linear layer, one by one."""

    def add(branch: tuple[Tensor, Tensor, float], _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        a, b, scale = branch
        return output + scale * (inputs[0] @ a.float().T) @ b.float().T

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(add, branch))
        for name, branch in weights.modules.items()
    ]
    yield
    for hook in hooks:
        hook.remove()


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_adapter_does_what_it_does_in_peft(
    name: str, bare: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    adapted = make(copy.deepcopy(bare), tmp_path, **PLAIN[name])
    weights = read_weights(tmp_path, linear_shapes(bare))
    assert (weights.plain, weights.why) == (True, "")
    assert linear_shapes(adapted) == linear_shapes(bare)
    base, theirs = logits(bare, tokens), logits(adapted, tokens)
    with applied(bare, weights):
        ours = logits(bare, tokens)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))
    assert (theirs - base).abs().max() > 1e-2
    assert torch.equal(logits(bare, tokens), base)


@pytest.mark.parametrize("name", OTHER)
def test_another_kind_is_accepted_for_peft_and_says_what_it_is(
    name: str, bare: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    settings, kind = OTHER[name]
    adapted = make(copy.deepcopy(bare), tmp_path, **settings)
    weights = read_weights(tmp_path, linear_shapes(bare))
    assert (weights.plain, dict(weights.modules)) == (False, {})
    assert kind in weights.why
    config = spell_out(tmp_path, linear_shapes(bare))
    loaded = PeftModel.from_pretrained(copy.deepcopy(bare), str(tmp_path), config=config).eval()
    assert torch.equal(logits(loaded, tokens), logits(adapted, tokens))
    assert not torch.equal(logits(loaded, tokens), logits(bare, tokens))


@pytest.mark.parametrize(
    "name", ["ranks by pattern", "rslora with ranks", "targets by pattern", "layers with patterns"]
)
def test_a_configuration_spelt_out_means_the_same_and_holds_no_pattern(
    name: str, bare: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    adapted = make(copy.deepcopy(bare), tmp_path, **PLAIN[name])
    config = spell_out(tmp_path, linear_shapes(bare))
    assert isinstance(config, LoraConfig)
    assert set(config.target_modules or ()) == set(read_weights(tmp_path, linear_shapes(bare)).modules)
    assert "*" not in json.dumps([*(config.rank_pattern or {}), *(config.alpha_pattern or {})])
    loaded = PeftModel.from_pretrained(copy.deepcopy(bare), str(tmp_path), config=config).eval()
    assert torch.equal(logits(loaded, tokens), logits(adapted, tokens))


def test_there_are_enough_variants() -> None:
    assert (len(PLAIN) >= 33, len(OTHER) >= 6) == (True, True)


def test_the_digest_is_of_what_an_adapter_computes(bare: PreTrainedModel, tmp_path: Path) -> None:
    linears = linear_shapes(bare)
    make(copy.deepcopy(bare), tmp_path)
    first = read_weights(tmp_path, linears).digest
    same: dict[str, Any] = {
        "base_model_name_or_path": "/moved/here",
        "revision": "abc",
        "target_modules": r".*(q|down)_proj",
    }
    change_config(tmp_path, **same, lora_dropout=0.1, peft_version="9", rank_pattern={"q_proj": 4})
    assert read_weights(tmp_path, linears).digest == first
    change_config(tmp_path, lora_alpha=9)
    assert read_weights(tmp_path, linears).digest != first
    change_config(tmp_path, lora_alpha=8, use_rslora=True)
    assert read_weights(tmp_path, linears).digest != first
    change_config(tmp_path, use_rslora=False)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    assert read_weights(tmp_path, linears).digest != first


def test_what_is_read_stays_when_the_file_changes(bare: PreTrainedModel, tmp_path: Path) -> None:
    make(copy.deepcopy(bare), tmp_path)
    weights = read_weights(tmp_path, linear_shapes(bare))
    kept = {name: (a.clone(), b.clone()) for name, (a, b, _) in weights.modules.items()}
    (tmp_path / WEIGHTS).write_bytes(b"\0" * (tmp_path / WEIGHTS).stat().st_size)
    assert all(torch.equal(a, kept[n][0]) and torch.equal(b, kept[n][1]) for n, (a, b, _) in weights.modules.items())


def test_a_small_effect_is_an_effect() -> None:
    """Two hundred branches of all sizes; what is nothing but rounding is none."""
    generator = torch.Generator().manual_seed(0)
    for size in [10.0**-n for n in range(20)] * 10:
        a, b = torch.randn(4, 24, generator=generator) * size, torch.randn(16, 4, generator=generator) * size
        assert has_effect(a, b, 1.0)
    a, b = torch.randn(4, 24, generator=generator), torch.randn(16, 4, generator=generator)
    assert not has_effect(torch.cat([a, a]), torch.cat([b, -b], 1), 2.0)
    assert not has_effect(a, b, 0.0)


def test_shapes_are_the_bare_models(bare: PreTrainedModel) -> None:
    shapes: Mapping[str, tuple[int, int]] = linear_shapes(bare)
    assert len(shapes) == 2 * 7 + 1
    assert shapes["model.layers.0.self_attn.k_proj"] == (32, 64)
