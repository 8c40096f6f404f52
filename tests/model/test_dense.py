"""Kept dequantised weights change the time of a forward pass and none of its bits, and leave nothing behind."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.data.messages import Message
from finetune.model.base import Base, assert_trainable_through, linear4bit_layers, load_base, weights_sha256
from finetune.model.dense import dense_kept, drop_dense, keep_dense
from finetune.recipe import BaseSection, GenerationSection
from finetune.serving.assistant import Assistant
from finetune.serving.forward import evaluating

ALL = 1 << 40


def kept(base: Base) -> list[Tensor]:
    return [layer.finetune_dense for layer in linear4bit_layers(base.model) if hasattr(layer, "finetune_dense")]


def logits(base: Base, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = base.model(ids).logits
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (3, 17)])
def test_the_same_bits_with_and_without_copies(model_folder: Path, dtype: Any, shape: tuple[int, int]) -> None:
    base = load_base(BaseSection(model=str(model_folder), dtype=dtype), torch.device("cpu"))
    ids = torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(0))
    plain = logits(base, ids)
    whole = keep_dense(base.model, ALL)
    assert torch.equal(logits(base, ids), plain)
    assert 0 < keep_dense(base.model, whole // 2) <= whole // 2 and kept(base)
    assert torch.equal(logits(base, ids), plain)
    drop_dense(base.model)
    assert torch.equal(logits(base, ids), plain)


def test_copies_are_what_is_multiplied_by_unless_a_gradient_is_wanted(base: Base) -> None:
    ids = torch.arange(3, 20)[None]
    plain = logits(base, ids)
    keep_dense(base.model, ALL)
    for weight in kept(base):
        weight.zero_()
    assert not torch.equal(logits(base, ids), plain)
    with torch.enable_grad():
        assert torch.equal(base.model(ids).logits, plain)


def test_the_last_to_leave_drops_the_copies_and_those_of_others_stay(base: Base) -> None:
    layers = len(list(linear4bit_layers(base.model)))
    first, second = ExitStack(), ExitStack()
    first.enter_context(dense_kept(base.model, lambda device: ALL))
    second.enter_context(dense_kept(base.model, lambda device: 0))  # they are there already
    first.close()
    assert len(kept(base)) == layers
    second.close()
    assert not kept(base)
    keep_dense(base.model, ALL)  # as training does
    with dense_kept(base.model, lambda device: ALL):
        pass
    assert len(kept(base)) == layers


def test_answering_and_scoring_keep_copies_meanwhile_and_leave_the_base_as_it_was(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bot, short = weights_sha256(base.model), Assistant(base), GenerationSection(max_new_tokens=3)
    asked, seen = [Message("user", "one cola")], list[int]()
    base.model.register_forward_pre_hook(lambda *call: seen.append(len(kept(base))))
    pieces = list(bot.stream(asked, settings=short))
    assert set(seen) == {len(list(linear4bit_layers(base.model)))}
    assert not kept(base)
    with bot.adapted(None):
        assert kept(base)
    assert not kept(base)
    monkeypatch.setattr("finetune.serving.forward.free_bytes", lambda device: 0)  # a full machine
    with evaluating(base.model):
        assert not kept(base)
    assert bot.answer([asked], settings=short)[0].text == "".join(pieces)
    assert_trainable_through(base.model)
    assert weights_sha256(base.model) == before
