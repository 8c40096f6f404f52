"""Attention for packed rows: examples in one row never see each other.

No mask is built. Each segment runs through scaled_dot_product_attention on its own, which is
exact; transformers' own packing by position ids leaks between examples when a cache or a mask is
in play, so both are off (`use_cache=False`, no attention mask).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "finetune_segments"
Segments = Sequence[tuple[int, int]]


def segment_attention(  # noqa: PLR0913 (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment. query (1, heads, T, d), key and value (1, kv_heads, T, d).

    Returns (1, T, heads, d), as transformers' AttentionInterface asks.
    """
    grouped = query.shape[1] != key.shape[1]
    lengths = [end - start for start, end in segments]
    parts = []
    # split, not slices: its backward is one concatenation instead of a full-size sum per segment.
    for q, k, v in zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True):
        length = q.shape[2]
        narrow = sliding_window is not None and length > sliding_window
        if softcap is not None:
            parts.append(_softcapped(q, k, v, scaling, softcap, sliding_window))
        else:
            mask = _window(length, sliding_window, q.device) if narrow else None
            parts.append(
                F.scaled_dot_product_attention(
                    q, k, v, mask, dropout, is_causal=not narrow, scale=scaling, enable_gqa=grouped
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _window(length: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean (length, length): True where position i may see j, i - window < j <= i."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < (window or length))


def _softcapped(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, cap: float, window: int | None) -> Tensor:
    """Gemma 2's capped scores, which scaled_dot_product_attention cannot express."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~_window(q.shape[2], window, q.device), float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run the model on packed rows inside this block; pass `segments` to its forward."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def keeps_segments_apart(model: PreTrainedModel, vocabulary: int) -> bool:
    """Probe whether the second example of a row is blind to the first.

    False for layers that carry state along the row (recurrent, linear attention): those models
    get one example per row.
    """
    ids = torch.randint(0, vocabulary, (1, 12), generator=torch.Generator().manual_seed(0)).to(model.device)
    with packed_attention(model):
        try:
            packed = hidden_states(
                model, ids, torch.tensor([[*range(5), *range(7)]], device=ids.device), [(0, 5), (5, 12)]
            )
            alone = hidden_states(model, ids[:, 5:], torch.arange(7, device=ids.device)[None], [(0, 7)])
        except (TypeError, ValueError, RuntimeError):
            return False
    difference = (packed[:, 5:] - alone).float().norm() / alone.float().norm().clamp(min=1e-6)
    return bool(difference < 0.05)  # bf16 rounding gives 0.01; one leaked token far more


def hidden_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, segments: Segments) -> Tensor:
    """Last hidden states (1, T, d) of a packed row, before the output head."""
    backbone = getattr(model, model.base_model_prefix)
    out: Tensor = backbone(
        input_ids=input_ids, position_ids=position_ids, segments=tuple(segments), use_cache=False
    ).last_hidden_state
    return out


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
