"""RMSNorm and SwiGLU with their own backward: what transformers computes, and only where it computes that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from finetune.model.base import Base
from finetune.model.lean import _RmsNorm, _SwiGlu, make_lean


def a_norm(kind: type[nn.Module] = LlamaRMSNorm, size: int = 48, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    norm = kind(size)
    nn.init.uniform_(norm.weight, 0.5, 1.5)  # type: ignore[arg-type]
    return norm.to(dtype).requires_grad_(False)


def both(norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    fast = copy.deepcopy(norm)
    assert make_lean(fast) == 1
    return norm, fast


def run(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    out = norm(leaf)
    (out.float() * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    assert leaf.grad is not None
    return out.detach(), leaf.grad


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_values_and_gradients_are_those_of_transformers(
    kind: type[nn.Module], dtype: torch.dtype, tolerance: float
) -> None:
    plain, fast = both(a_norm(kind, dtype=dtype))
    for scale in (1e-4, 1.0, 300.0):
        x = (scale * torch.randn(2, 7, 48)).to(dtype)
        (value, gradient), (own_value, own_gradient) = run(plain, x), run(fast, x)
        assert own_value.dtype == own_gradient.dtype == dtype
        torch.testing.assert_close(own_value, value, rtol=tolerance, atol=0)
        torch.testing.assert_close(own_gradient, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))


def an_mlp(act: str = "silu", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=4, hidden_act=act)
    return LlamaMLP(config).to(dtype).requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_values_and_gradients_of_the_mlp_are_those_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    plain, fast = both(an_mlp(dtype=dtype))
    x = torch.randn(2, 7, 48).to(dtype)
    (value, gradient), (own_value, own_gradient) = run(plain, x), run(fast, x)
    torch.testing.assert_close(own_value, value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(own_gradient, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(fast(x), value, rtol=tolerance, atol=tolerance)
        assert torch.equal(x, before)


def test_an_mlp_of_another_kind_keeps_its_own() -> None:
    assert make_lean(an_mlp("gelu")) == 0
    assert make_lean(an_mlp().requires_grad_(True)) == 0


def test_the_gradients_are_those_of_finite_differences() -> None:
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_SwiGlu.apply, (gate, up))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _RmsNorm.apply(x, weight, 1e-6), (x,))


def test_the_input_is_left_as_it_is() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 48).to(dtype)
        before = x.clone()
        run(both(a_norm(dtype=dtype))[1], x)
        assert torch.equal(x, before)


def test_norms_that_compute_something_else_keep_their_own() -> None:
    gemma = a_norm(GemmaRMSNorm)  # multiplies by 1 + weight
    gemma.variance_epsilon = 1e-6  # type: ignore[assignment]
    trained = a_norm().requires_grad_(True)

    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            out: Tensor = super().forward(hidden_states)
            return out * 1.01

    for norm in (gemma, trained, a_norm(OddRMSNorm), nn.LayerNorm(48).requires_grad_(False), nn.RMSNorm(48)):
        assert make_lean(norm) == 0


def test_a_loaded_base_has_them(base: Base) -> None:
    fast = [type(m).__name__ for m in base.model.modules() if "forward" in vars(m)]
    fast = [name for name in fast if name != "Linear4bit"]  # theirs: tests/model/test_dense.py
    assert sorted(fast) == ["LlamaDecoderLayer"] * 2 + ["LlamaMLP"] * 2 + ["LlamaRMSNorm"] * (2 * 2 + 1)
    assert all(m.forward.__self__ is m for m in copy.deepcopy(base.model).modules() if "forward" in vars(m))
