"""Segment attention against plain attention on each segment alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.model.attention import keeps_segments_apart, segment_attention
from finetune.model.base import Base

SEGMENTS = [(0, 3), (3, 4), (4, 11)]


def oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, cap: float | None) -> torch.Tensor:
    """Attention written out for one segment, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])[None, :]
    seen = (distance >= 0) & (distance < (window or 10_000))
    return F.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_each_segment_is_attention_on_its_own(kv_heads: int, window: int | None, cap: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 11, 8), torch.randn(1, kv_heads, 11, 8), torch.randn(1, kv_heads, 11, 8)
    out, _ = segment_attention(
        nn.Identity(), q, k, v, None, segments=SEGMENTS, sliding_window=window, softcap=cap, scaling=8**-0.5
    )
    assert out.shape == (1, 11, 4, 8)
    for start, end in SEGMENTS:
        expected = oracle(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], window, cap)
        torch.testing.assert_close(out[:, start:end].transpose(1, 2).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_probe_tells_models_that_keep_examples_apart_from_those_that_cannot(base: Base) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    assert keeps_segments_apart(base.model, 300)
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8))
    assert not keeps_segments_apart(mamba, 300)
