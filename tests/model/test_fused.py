"""The fused LoRA linear against PEFT's own layer and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.model.base import Base
from finetune.model.fused import FusedLinear4bit, Route, _LoraMatmul
from finetune.model.lora import attach
from finetune.recipe import AdapterSection


@pytest.mark.parametrize("routes", [[Route("a")], [Route("a", 0, 2), Route("b", 2, 5)]])
def test_gradients_are_those_of_finite_differences(routes: list[Route]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    parts = []
    for rank in range(2, 2 + len(routes)):
        parts += [torch.randn(rank, 5, dtype=torch.float64), torch.randn(4, rank, dtype=torch.float64)]
    frozen = nn.Linear(5, 4, dtype=torch.float64).requires_grad_(False)

    def layer(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return _LoraMatmul.apply(x, frozen, routes, [1.7, 0.3][: len(routes)], *parts)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(layer, (x, *(part.requires_grad_() for part in parts)))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("quantised", [True, False])
def test_output_and_gradients_equal_pefts(base: Base, plain_base: Base, method: str, quantised: bool) -> None:
    from peft.tuners.lora.bnb import Linear4bit
    from peft.tuners.lora.layer import Linear

    model = attach(base if quantised else plain_base, AdapterSection(method=method, r=4, alpha=8.0), seed=0)  # type: ignore[arg-type]
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    assert isinstance(layer, nn.Module)
    if quantised:
        assert isinstance(layer, FusedLinear4bit)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1)  # type: ignore[index,union-attr,arg-type]
    x = torch.randn(1, 6, 128)
    ours = _run(layer, x)
    layer.__class__ = Linear4bit if quantised else Linear
    for one, other in zip(ours, _run(layer, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _run(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    out = layer(x)
    out.pow(2).sum().backward()
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert x.grad is not None
    return [out.detach(), x.grad, *(g.clone() for g in grads)]


def test_dropout_in_training_takes_pefts_path_and_is_random(base: Base) -> None:
    model = attach(base, AdapterSection(r=4, alpha=8.0, dropout=0.5), seed=0).train()
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    nn.init.normal_(layer.lora_B["default"].weight)  # type: ignore[index,union-attr,arg-type]
    x = torch.randn(1, 6, 128)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
