"""Which decoder layers compute what decoder.py does: tried out when a base is loaded, never taken from a name."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from finetune.model.attention import segment_attention
from finetune.model.decoder import DOWN, GATE_UP, NORMS, O_PROJ, PLAN, QKV, Plan, layer_forward
from finetune.model.dense import group_dense

_PROBE = "finetune_probe"
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}  # rounding gives a quarter of it or less


def make_lean_layers(model: PreTrainedModel) -> int:
    """Give decoder layers of the usual kind this forward; return how many."""
    backbone = getattr(model, model.base_model_prefix, None)
    rotary = getattr(backbone, "rotary_emb", None)
    if rotary is None:
        return 0
    found, tried = (
        0,
        dict[tuple[Any, ...], Plan | None](),
    )  # one layer of each kind is tried: a large one takes a while
    for layer in getattr(backbone, "layers", ()):
        if not _fits(layer):
            continue
        attention = layer.self_attn
        kind = (type(layer), *(getattr(attention, key, None) for key in ("sliding_window", "layer_type", "is_sliding")))
        if kind not in tried:
            tried[kind] = _try(model, layer, rotary)
        if (plan := tried[kind]) is not None:
            layer.__dict__[PLAN] = plan
            layer.forward = MethodType(layer_forward, layer)
            for parent, names in ((attention, QKV), (layer.mlp, GATE_UP)):
                group_dense([getattr(parent, name) for name in names])
            found += 1
    return found


def _fits(layer: Any) -> bool:
    """Whether a layer has just the parts that the forward uses, all frozen."""
    if {name for name, _ in layer.named_children()} != {"self_attn", "mlp", *NORMS}:
        return False
    children = [{name for name, _ in part.named_children()} for part in (layer.self_attn, layer.mlp)]
    if not {*QKV, *O_PROJ} <= children[0] <= {*QKV, *O_PROJ, "q_norm", "k_norm", "rotary_emb"}:
        return False
    if children[1] - {"act_fn"} != {*GATE_UP, *DOWN} or any(p.requires_grad for p in layer.parameters()):
        return False
    norms = [getattr(layer, name) for name in NORMS]
    norms += [getattr(layer.self_attn, name) for name in ("q_norm", "k_norm") if hasattr(layer.self_attn, name)]
    usual = all(isinstance(getattr(norm, "variance_epsilon", None), float) for norm in norms)
    return usual and all(bool(norm.weight.all()) for norm in norms)  # none is 0: their backward divides by it


@torch.no_grad()
def _try(model: PreTrainedModel, layer: Any, rotary: Any) -> Plan | None:
    """Run a layer on two short segments and on this module's code; a plan if both agree."""
    device, dtype = layer.input_layernorm.weight.device, layer.input_layernorm.weight.dtype
    x = torch.randn(1, 12, layer.input_layernorm.weight.shape[0], generator=torch.Generator().manual_seed(0))
    x, segments = x.mul_(0.05).to(device, dtype), ((0, 5), (5, 12))  # small, or rounding the sum hides the change
    embeddings = rotary(x, torch.tensor([[*range(5), *range(7)]], device=device))
    seen: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return segment_attention(*args, **kwargs)

    AttentionInterface.register(_PROBE, record)
    before = model.config._attn_implementation
    model.set_attn_implementation(_PROBE)
    try:
        own = type(layer).forward(layer, x, position_embeddings=embeddings, segments=segments)
        width = embeddings[0].shape[-1]
        heads, kv_heads = (getattr(layer.self_attn, name).out_features // width for name in ("q_proj", "k_proj"))
        names: tuple[str, ...] = ("scaling", "sliding_window", "softcap")
        used = {name: seen[name] for name in names if name in seen}
        layer.__dict__[PLAN] = plan = Plan(heads, kv_heads, used)
        ours = layer_forward(layer, x, position_embeddings=embeddings, segments=segments)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    finally:
        model.set_attn_implementation(before)
    change = (own - x).float()
    return plan if float((ours - own).float().norm() / change.norm().clamp(min=1e-9)) < _TOLERANCE[dtype] else None
