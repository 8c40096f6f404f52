"""Decoder layers with their own backward compute what transformers' and PEFT's do, gradients included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from finetune.model.attention import hidden_states, packed_attention
from finetune.model.dense import keep_dense
from finetune.model.fitting import make_lean_layers
from finetune.model.fused import register_fused

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "wide heads": LlamaConfig(**{**SMALL, "head_dim": 24, "num_key_value_heads": 4}),
    "mistral with a window": MistralConfig(**SMALL, sliding_window=6),
    "qwen2 with biases": Qwen2Config(**SMALL),
    "qwen3 with norms of heads": Qwen3Config(**SMALL, head_dim=16),
}
SEGMENTS = ((0, 9), (9, 30), (30, 33))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made(config: PretrainedConfig, dtype: torch.dtype, targets: list[str] | None) -> Any:
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.requires_grad_(False)
    model.fitting = make_lean_layers(model)
    if targets:
        wrapped = get_peft_model(model, register_fused(LoraConfig(r=4, lora_alpha=8, target_modules=targets)))
        torch.manual_seed(4)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    return model


def run(model: Any, seed: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of one packed row, and the gradients of a weighted sum of them."""
    ids = torch.randint(0, 80, (1, 33), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(end - start) for start, end in SEGMENTS])[None]
    with packed_attention(model):
        out = hidden_states(model, ids, positions, SEGMENTS).float()
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 100))
    if out.requires_grad:
        (out * weight).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out.detach(), found


def plain(model: Any) -> Any:
    """The same model with the layers' own forward."""
    for layer in model.model.layers:
        layer.__dict__.pop("forward", None)
    return model


def distance(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    assert mine.keys() == reference.keys()
    return max(float((mine[n].float() - reference[n].float()).norm() / reference[n].float().norm()) for n in mine)


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "down_proj"], ["up_proj"], []], ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_are_those_of_the_layers_own_forward(kind: str, targets: list[str]) -> None:
    model = made(KINDS[kind], torch.float32, targets)
    assert model.fitting == 3
    out, gradients = run(model)
    own, expected = run(plain(model))
    assert torch.allclose(out, own, rtol=1e-4, atol=1e-5)
    assert len(gradients) == 2 * 3 * len(targets)
    assert not targets or distance(gradients, expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_they_are_no_further_from_fp32_than_the_plain_path(kind: str) -> None:
    ours, theirs = list[float](), list[float]()
    for seed in range(4):  # rounding is luck: one draw alone may go either way
        _, exact = run(plain(made(KINDS[kind], torch.float32, ALL)), seed)
        fast = made(KINDS[kind], torch.bfloat16, ALL)
        assert fast.fitting == 3
        ours.append(distance(run(fast, seed)[1], exact))
        theirs.append(distance(run(plain(fast), seed)[1], exact))
    assert sum(ours) < 1.3 * sum(theirs)


def test_kept_dequantised_weights_change_nothing(quantized: Any) -> None:
    model = quantized()
    out, gradients = run(model)
    taken = keep_dense(model, 1 << 30)
    assert taken == 4 * sum(
        p.numel() for n, p in made(KINDS["llama"], torch.float32, None).named_parameters() if "proj" in n
    )
    kept, same = run(model)
    assert torch.equal(out, kept)
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert 0 < keep_dense(model, taken // 2) <= taken // 2
    assert torch.equal(run(model)[0], out)
    assert keep_dense(model, 0) == 0


@pytest.fixture
def quantized(tmp_path: Any) -> Iterator[Any]:
    from transformers import BitsAndBytesConfig

    from finetune.model.base import keep_trainable_through

    def make() -> Any:
        made(KINDS["llama"], torch.float32, None).save_pretrained(tmp_path)
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, dtype=torch.float32)
        model.requires_grad_(False)
        keep_trainable_through(model)
        assert make_lean_layers(model) == 3
        get_peft_model(model, register_fused(LoraConfig(r=4, target_modules=ALL)))
        return model

    yield make


def test_other_architectures_keep_their_own_forward() -> None:
    for config in (Gemma3TextConfig(**SMALL, head_dim=16), LlamaConfig(**SMALL, hidden_act="gelu")):
        model = made(config, torch.float32, None)
        assert model.fitting == 0
        assert all("forward" not in layer.__dict__ for layer in model.model.layers)


def test_what_the_layer_cannot_do_itself_runs_the_usual_way() -> None:
    """Dropout on the adapter: PEFT's own forward, in every layer that has it."""
    model = made(KINDS["llama"], torch.float32, None)
    wrapped = get_peft_model(model, register_fused(LoraConfig(r=4, lora_dropout=0.5, target_modules=ALL))).train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    torch.manual_seed(0)
    _, first = run(model)
    torch.manual_seed(1)
    assert distance(run(model)[1], first) > 1e-2
    model.eval()
    out, gradients = run(model)
    own, expected = run(plain(model))
    assert torch.allclose(out, own, rtol=1e-4, atol=1e-5)
    assert distance(gradients, expected) < 1e-4
