"""Segment attention against plain attention on each segment alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.model import attention
from finetune.model.attention import hidden_states, keeps_segments_apart, packed_attention, segment_attention
from finetune.model.base import Base

SEGMENTS = ((0, 3), (3, 4), (4, 11), (11, 50))


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
@pytest.mark.parametrize(("cap", "blocks"), [(None, False), (None, True), (2.0, True)])
def test_each_segment_is_attention_on_its_own(
    kv_heads: int, window: int | None, cap: float | None, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient, with PyTorch's kernel and with the blocks that replace it in bf16 on the CPU."""
    monkeypatch.setattr(attention, "_kernel_is_slow", lambda q, longest: blocks)
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, 50, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    out, _ = segment_attention(
        nn.Identity(), *inputs, None, segments=SEGMENTS, sliding_window=window, softcap=cap, scaling=8**-0.5
    )
    assert out.shape == (1, 50, 4, 8)
    parts = [oracle(*(t[:, :, start:end] for t in inputs), window, cap) for start, end in SEGMENTS]
    expected = torch.cat(parts, dim=2).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(1, 50, 4, 8)
    got = torch.autograd.grad(out, inputs, weight)
    wanted = torch.autograd.grad(expected, inputs, weight.double())
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_without_gradient_each_segment_is_attention_on_its_own(kv_heads: int, window: int | None) -> None:
    """As in scoring: segments of like length in one call, and the same value as with gradient."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, 50, 8) for heads in (4, kv_heads, kv_heads)]
    out, _ = segment_attention(nn.Identity(), *inputs, None, segments=SEGMENTS, sliding_window=window, scaling=8**-0.5)
    parts = [oracle(*(t[:, :, start:end] for t in inputs), window, None) for start, end in SEGMENTS]
    torch.testing.assert_close(out.double(), torch.cat(parts, dim=2).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_one_input_with_a_gradient_is_enough_for_the_way_of_training(
    trained: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter on the keys or values of the first layer alone leaves its queries without one."""
    monkeypatch.delattr(attention, "_without_gradient")
    inputs = [torch.randn(1, 2, 50, 8) for _ in range(3)]
    inputs[trained].requires_grad_()
    out, _ = segment_attention(nn.Identity(), *inputs, None, segments=SEGMENTS)
    (gradient,) = torch.autograd.grad(out.sum(), inputs[trained : trained + 1], allow_unused=True)
    assert gradient is not None


def test_padding_the_row_for_the_cpu_changes_no_token(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = torch.arange(11)[None], torch.tensor([[*range(4), *range(7)]])
    with packed_attention(base.model), torch.no_grad():
        padded = hidden_states(base.model, ids, positions, [(0, 4), (4, 11)])
        monkeypatch.setattr(attention, "ALIGN", 1)
        plain = hidden_states(base.model, ids, positions, [(0, 4), (4, 11)])
    assert padded.shape == plain.shape
    torch.testing.assert_close(padded, plain, rtol=0.02, atol=0.02)


def test_the_probe_tells_models_that_keep_examples_apart_from_those_that_cannot(base: Base) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM

    assert keeps_segments_apart(base.model, 300)
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8))
    assert not keeps_segments_apart(mamba, 300)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    layers = ["conv", "full_attention"]
    short = Lfm2ForCausalLM(Lfm2Config(vocab_size=300, num_hidden_layers=2, layer_types=layers, **shape))
    assert not keeps_segments_apart(short, 300)  # fresh, its convolution of three tokens hardly shows: 0.001 in all
