"""How llama.cpp names and lays out the weights of Llama-like models, and the settings it computes with.

llama.cpp turns neighbouring numbers of a head together, transformers the first with the second half, so for its
`llama` architecture the rows of q and k are put in another order: row 2i + h of a head is row h d/2 + i here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from finetune.errors import ModelError

# transformers' class -> llama.cpp's architecture; biases that it knows there.
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_KNOWN: dict[str, tuple[gguf.MODEL_ARCH, tuple[str, ...]]] = {
    "LlamaForCausalLM": (gguf.MODEL_ARCH.LLAMA, _ATTENTION),
    "MistralForCausalLM": (gguf.MODEL_ARCH.LLAMA, _ATTENTION),
    "Qwen2ForCausalLM": (gguf.MODEL_ARCH.QWEN2, _ATTENTION[:3]),
    "Qwen3ForCausalLM": (gguf.MODEL_ARCH.QWEN3, ()),
}
_ROPES = ("default", "linear", "llama3")
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Layout:
    """One model's way into a GGUF file."""

    arch: gguf.MODEL_ARCH
    config: Any
    names: gguf.TensorNameMap
    biases: tuple[str, ...]

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.arch]

    def target(self, name: str) -> str:
        """llama.cpp's name of a tensor. Raises ModelError if it has none."""
        found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        module, _, leaf = name.rpartition(".")
        if found is None or (leaf == "bias" and module.rpartition(".")[2] not in self.biases):
            raise ModelError(f"llama.cpp's architecture {self.name!r} has no place for {name}")
        return found

    def arrange(self, name: str, rows: Tensor) -> Tensor:
        """Put the rows of q and k (of W, of a bias, or of a LoRA's B) into llama.cpp's order; others stay."""
        heads = self._heads(name)
        if heads is None:
            return rows
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def _heads(self, name: str) -> int | None:
        part = name.rpartition(".")[0].rpartition(".")[2]
        if self.arch != gguf.MODEL_ARCH.LLAMA or part not in ("q_proj", "k_proj"):
            return None
        return int(self.config.num_attention_heads if part == "q_proj" else self.config.num_key_value_heads)


def layout_of(config: PreTrainedConfig, where: str) -> Layout:
    """Find llama.cpp's architecture for a model. Raises ModelError naming what it would compute differently."""
    named = (config.architectures or ["unknown"])[0]
    if named not in _KNOWN:
        raise ModelError(
            f"{named} cannot be exported as GGUF; known are {', '.join(_KNOWN)}",
            where=where,
            fix="merge it, and use llama.cpp's own convert_hf_to_gguf.py on the merged folder",
        )
    if reason := _differs(config, named):
        raise ModelError(f"cannot be exported as GGUF: {reason}", where=where)
    arch, biases = _KNOWN[named]
    return Layout(arch, config, gguf.get_tensor_name_map(arch, config.num_hidden_layers), biases)


def write_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes and constants that llama.cpp computes with."""
    width = head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides each frequency by, (head size / 2,), for Llama 3's scaling; None for others."""
    if config.rope_parameters.get("rope_type", "default") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = head_size(config)
    plain = float(config.rope_parameters["rope_theta"]) ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.div(plain, scaled.double()).float()


def context_length(config: Any) -> int:
    """Positions of the model; with a sliding window as many as that, up to where it makes no difference."""
    window = getattr(config, "sliding_window", None)
    return min(config.max_position_embeddings, window) if window else int(config.max_position_embeddings)


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _differs(config: Any, named: str) -> str:
    """What transformers computes and llama.cpp would not."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind, activation = rope.get("rope_type", "default"), getattr(config, "hidden_act", "silu")
    width = head_size(config) * config.num_attention_heads
    reasons = {
        "its rope parameters differ from layer to layer, or have no base": "rope_theta" not in rope,
        f"rope scaling {kind!r}; known are {', '.join(_ROPES)}": kind not in _ROPES,
        "only part of each head is rotated": rope.get("partial_rotary_factor", 1.0) != 1.0,
        f"activation {activation!r}, where llama.cpp computes silu": activation != "silu",
        "biases in its feed-forward layers": getattr(config, "mlp_bias", False),
        "its heads together are not as wide as the model": named.startswith("Qwen2") and width != config.hidden_size,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
