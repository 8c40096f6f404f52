"""GGUF: what llama.cpp will compute from the file is what transformers computes from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from finetune.errors import AdapterError, FinetuneError, ModelError
from finetune.export.container import planned, verify, write
from finetune.export.gguf_model import ExportOptions, export_gguf
from finetune.export.layout import context_length, layout_of, rope_factors
from finetune.export.merged import Merged
from finetune.model.base import Base
from finetune.store.folders import StoredAdapter
from finetune.store.weights import linear_shapes, read_weights
from tests.export.adapters import store_adapter

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 128,
}


def named(config: PreTrainedConfig, kind: str) -> PreTrainedConfig:
    config.architectures = [kind]
    return config


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def field(path: Path, key: str) -> Any:
    found = gguf.GGUFReader(path).get_field(key)
    return None if found is None else found.contents()


def turned_in_pairs(x: Tensor, position: int, theta: float) -> Tensor:
    """llama.cpp's rotation: numbers 2i and 2i + 1 of a head turn together; (heads, d)."""
    width = x.shape[-1]
    angle = position * theta ** -(torch.arange(0, width, 2) / width)
    even, odd = x[:, 0::2], x[:, 1::2]
    out = torch.empty_like(x)
    out[:, 0::2] = even * angle.cos() - odd * angle.sin()
    out[:, 1::2] = even * angle.sin() + odd * angle.cos()
    return out


def test_rows_of_q_and_k_are_ordered_for_llama_cpps_rotation() -> None:
    config = named(LlamaConfig(**SIZES), "LlamaForCausalLM")
    layout = layout_of(config, "test")
    torch.manual_seed(0)
    x, q, k = torch.randn(64), torch.randn(64, 64), torch.randn(32, 64)
    name = "model.layers.0.self_attn.{}_proj.weight"
    theirs_q = turned_in_pairs((layout.arrange(name.format("q"), q) @ x).view(4, 16), 7, 10000.0)
    theirs_k = turned_in_pairs((layout.arrange(name.format("k"), k) @ x).view(2, 16), 3, 10000.0)
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.tensor([[7, 3]]))
    ours_q, _ = apply_rotary_pos_emb((q @ x).view(1, 4, 1, 16), (k @ x).view(1, 2, 1, 16), cos[:, :1], sin[:, :1])
    _, ours_k = apply_rotary_pos_emb((q @ x).view(1, 4, 1, 16), (k @ x).view(1, 2, 1, 16), cos[:, 1:], sin[:, 1:])
    scores = ours_q[0, :, 0] @ ours_k[0, :, 0].T
    assert torch.allclose(theirs_q @ theirs_k.T, scores, atol=1e-4)
    assert not torch.equal(layout.arrange(name.format("q"), q), q)
    assert torch.equal(layout.arrange(name.format("v"), k), k)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_the_merged_file_holds_the_merged_weights(
    outtype: Any, stored: StoredAdapter, model_folder: Path, tmp_path: Path
) -> None:
    made = export_gguf(stored, tmp_path / "m.gguf", ExportOptions(outtype=outtype, into="original"))
    found = tensors_of(made.file)
    plain = LlamaForCausalLM.from_pretrained(model_folder)
    want = PeftModel.from_pretrained(plain, str(stored.folder)).merge_and_unload().state_dict()  # type: ignore[operator]
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }
    rounding = {"f32": 1e-6, "f16": 2**-11, "bf16": 2**-8, "q8_0": 2**-7}[outtype]
    for theirs, ours in pairs.items():
        assert np.allclose(found[theirs], want[ours].numpy(), atol=rounding * float(want[ours].abs().max()))
    assert len(found) == made.tensors == len(want)
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(made.file).tensors}
    assert kinds["blk.0.attn_q.weight"] == outtype
    assert kinds["blk.0.attn_norm.weight"] == "f32"


def test_the_settings_are_the_models(stored: StoredAdapter, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    made = export_gguf(stored, tmp_path / "m.gguf", ExportOptions(outtype="f32"))
    expected = {
        "general.type": "model",
        "general.architecture": "llama",
        "general.name": "plain",
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
        "tokenizer.ggml.tokens": tokenizer.convert_ids_to_tokens(range(len(tokenizer))),
    }
    assert {key: field(made.file, key) for key in expected} == expected
    assert field(made.file, "llama.rope.freq_base") == pytest.approx(10000.0)
    types = field(made.file, "tokenizer.ggml.token_type")
    assert types[:7] == [gguf.TokenType.CONTROL] * 6 + [gguf.TokenType.NORMAL]
    assert 'SYSTEM """Be short."""' in made.modelfile.read_text()


@pytest.mark.parametrize("kind", ["plain", "rslora and patterns"])
def test_the_adapters_file_adds_what_the_adapter_adds(kind: str, model_folder: Path, tmp_path: Path) -> None:
    patterns = {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 3}}
    stored = store_adapter(tmp_path / "a", model_folder, **(patterns if kind != "plain" else {}))
    made = export_gguf(stored, tmp_path / "a.gguf", ExportOptions(part="adapter", outtype="f32"))
    assert field(made.file, "general.type") == "adapter"
    assert field(made.file, "adapter.type") == "lora"
    alpha, found = field(made.file, "adapter.lora.alpha"), tensors_of(made.file)
    model = LlamaForCausalLM.from_pretrained(model_folder)
    layout = layout_of(model.config, "test")
    modules = read_weights(stored.folder, linear_shapes(model)).modules
    assert len(found) == 2 * len(modules)
    for name, (a, b, scale) in modules.items():
        target = layout.target(f"{name}.weight")
        low, high = found[f"{target}.lora_a"], found[f"{target}.lora_b"]
        added = alpha / len(low) * high @ low  # as llama.cpp has it
        assert np.allclose(added, layout.arrange(f"{name}.weight", scale * b @ a).numpy(), atol=1e-6)
    text = made.modelfile.read_text()
    assert "FROM ./base.gguf\nADAPTER ./a.gguf" in text


def test_the_base_alone_is_the_base(stored: StoredAdapter, base: Base, tmp_path: Path) -> None:
    made = export_gguf(stored, tmp_path / "base.gguf", ExportOptions(part="base", outtype="f32", into="original"))
    found = tensors_of(made.file)
    model = LlamaForCausalLM.from_pretrained(base.name)
    assert np.array_equal(found["blk.0.ffn_up.weight"], model.model.layers[0].mlp.up_proj.weight.detach().numpy())
    assert "SYSTEM" not in made.modelfile.read_text()


@pytest.mark.parametrize("maker", [(Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)])
def test_every_tensor_of_qwen_has_a_place_and_keeps_its_rows(maker: Any) -> None:
    config = named(maker[0](**SIZES, head_dim=16), maker[1].__name__)
    layout = layout_of(config, "test")
    entries = Merged(config, None).entries
    targets = {layout.target(entry.name) for entry in entries}
    assert len(targets) == len(entries)
    assert "blk.0.attn_q.weight" in targets
    rows = torch.randn(64, 64)
    assert torch.equal(layout.arrange("model.layers.0.self_attn.q_proj.weight", rows), rows)


def test_llama_3s_scaling_becomes_factors() -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(**SIZES, rope_parameters=scaling)
    factors = rope_factors(config)
    assert factors is not None
    scaled = LlamaRotaryEmbedding(config).inv_freq
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(plain / factors, scaled, rtol=1e-5)
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (named(GemmaConfig(), "GemmaForCausalLM"), "GemmaForCausalLM cannot be exported"),
        (
            named(
                LlamaConfig(
                    rope_parameters={
                        "rope_type": "yarn",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 64,
                    }
                ),
                "LlamaForCausalLM",
            ),
            "rope scaling 'yarn'",
        ),
        (named(LlamaConfig(hidden_act="gelu"), "LlamaForCausalLM"), "activation 'gelu'"),
        (named(LlamaConfig(mlp_bias=True), "LlamaForCausalLM"), "biases in its feed-forward"),
    ],
    ids=["architecture", "rope", "activation", "bias"],
)
def test_what_llama_cpp_would_compute_differently_is_refused(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        layout_of(config, "test")


def test_biases_that_llama_cpp_does_not_read_are_refused() -> None:
    layout = layout_of(named(Qwen3Config(**SIZES, attention_bias=True), "Qwen3ForCausalLM"), "test")
    with pytest.raises(ModelError, match="no place for"):
        layout.target("model.layers.0.self_attn.q_proj.bias")


def test_a_sliding_window_bounds_the_context() -> None:
    assert context_length(MistralConfig(**SIZES, sliding_window=32)) == 32
    assert context_length(MistralConfig(**SIZES, sliding_window=None)) == 128


def test_a_file_that_came_out_wrong_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    tensors = [torch.randn(4, 64), torch.randn(64)]
    plan = [planned("a.weight", (4, 64), "q8_0"), planned("b.weight", (64,), "q8_0")]
    write(gguf.GGUFWriter(None, "llama"), path, plan, tensors)
    assert 0 < verify(path, plan, tensors) < 0.05
    with pytest.raises(FinetuneError, match=r"a\.weight is not what was written"):
        verify(path, plan, [tensors[0] * 1.1, tensors[1]])
    with pytest.raises(FinetuneError, match=r"b\.weight is not what was written"):
        verify(path, plan, [tensors[0], tensors[1] + 1e-6])
    with pytest.raises(FinetuneError, match="came out wrong: tensors"):
        verify(path, plan[:1], tensors[:1])


def test_numbers_beyond_f16_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    plan = [planned("a.weight", (1, 2), "f16")]
    with pytest.raises(ModelError, match="--outtype bf16"):
        write(gguf.GGUFWriter(None, "llama"), tmp_path / "x.gguf", plan, [torch.tensor([[1.0, 7e4]])])


def test_refusals_leave_nothing(stored: StoredAdapter, other_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dora = store_adapter(tmp_path / "dora", model_folder, use_dora=True)
    wrong: list[tuple[StoredAdapter, str, ExportOptions, type[FinetuneError], str]] = [
        (stored, "x.bin", ExportOptions(), FinetuneError, "should end in .gguf"),
        (stored, "x.gguf", ExportOptions(into="4bit"), FinetuneError, "--outtype q8_0"),
        (stored, "x.gguf", ExportOptions(base=str(other_folder)), AdapterError, "was trained on base"),
        (dora, "x.gguf", ExportOptions(part="adapter"), AdapterError, "DoRA, which GGUF has no form for"),
    ]
    for adapter, name, options, error, reason in wrong:
        with pytest.raises(error, match=reason):
            export_gguf(adapter, out / name, options)
    assert not out.exists()
    assert export_gguf(dora, out / "x.gguf").file.exists()  # merged it can be said
