"""The loss against PyTorch's cross-entropy on full logits: value, gradient, caps and scales."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finetune.training.loss import CHUNK, Head, _FrozenHeadLoss, row_nll


@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK, CHUNK + 5])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 3.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_value_and_gradient_are_cross_entropys(rows: int, scale: float, softcap: float | None, biased: bool) -> None:
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 16, requires_grad=True)
    targets = torch.randint(0, 50, (rows,))
    head = Head(torch.randn(50, 16), torch.randn(50) if biased else None, scale, softcap)
    loss = _FrozenHeadLoss.apply(hidden, targets, head, 13.0)
    loss.backward()
    gradient, hidden.grad = hidden.grad, None
    logits = scale * F.linear(hidden, head.weight, head.bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, reduction="sum") / 13.0
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(row_nll(head, hidden.detach(), targets).sum() / 13, expected.detach())


def test_bf16_weights_still_give_an_fp32_loss() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(9, 16, dtype=torch.bfloat16, requires_grad=True)
    head = Head(torch.randn(50, 16, dtype=torch.bfloat16), None, 1.0, None)
    loss = _FrozenHeadLoss.apply(hidden, torch.arange(9), head, 9.0)
    loss.backward()
    assert loss.dtype == torch.float32
    exact = F.cross_entropy((hidden.double() @ head.weight.double().t()), torch.arange(9))
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
