"""Rows get the adapter they are given, whatever shares their forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.data.encoding import Encoded
from finetune.errors import ModelError
from finetune.model.base import Base, load_base, weights_sha256
from finetune.model.lora import load_adapter
from finetune.recipe import BaseSection
from finetune.serving.bank import AdapterBank
from finetune.serving.voices import parse_voice
from finetune.training.scoring import score_rows
from tests.conftest import MakeBase
from tests.serving.making import IDS, Oracle, logits

TIGHT = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_one_adapter_for_all_rows_is_what_peft_computes(bank: AdapterBank, oracle: Oracle, name: str) -> None:
    found = logits(bank, [name])
    torch.testing.assert_close(found, oracle.asked(((name, 1.0),)), **TIGHT)
    assert (found - oracle.asked(())).abs().max() > 0.05


@pytest.mark.parametrize(
    "voices",
    [
        ["a", "b", "c", "d", "a", None],
        ["d", "c", "b", "a", "b", "c"],
        ["a", "a", "a", "a", "a", "b"],
        [None, None, None, None, None, "d"],
        ["a+0.5*b", "c", "-2*d+a", "b", None, "a+0.5*b"],
    ],
)
@pytest.mark.parametrize("tokens", [1, 9])
def test_rows_with_different_adapters_are_what_each_is_alone(
    bank: AdapterBank, oracle: Oracle, voices: list[str | None], tokens: int
) -> None:
    found = logits(bank, voices, IDS[:, :tokens])
    for row, voice in enumerate(voices):
        parts = bank.lease(voice).voice
        wanted = oracle.asked(_parts(parts))[row, :tokens]
        torch.testing.assert_close(found[row], wanted, **TIGHT)


def _parts(voice: str | None) -> tuple[tuple[str, float], ...]:
    return parse_voice(voice).parts


def test_the_base_is_the_base_bit_for_bit_beside_others_and_never_changes(base: Base, store: Path) -> None:
    with torch.no_grad():
        before, digest = base.model(input_ids=IDS, use_cache=False).logits, weights_sha256(base.model)
    bank = AdapterBank(base, store=store)
    bank.load("a")
    logits(bank, ["a"] + [None] * 5)
    assert torch.equal(logits(bank, [None]), before)
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=IDS, use_cache=False).logits, before)
    assert weights_sha256(base.model) == digest


def test_packed_rows_are_scored_with_the_adapter(bank: AdapterBank, make_base: MakeBase, store: Path) -> None:
    """They go through forwards that never call the linears."""
    rows = [Encoded(row.tolist(), [0, *[1] * 8], "", 8) for row in IDS]
    for name in ("a", "b", "c", "d"):
        with bank.lease(name) as lease, bank.routed([lease.slot]):
            found = score_rows(bank.base.model, rows, 64, isolate=True)
        alone = load_adapter(make_base(), store / name).eval()
        wanted = score_rows(alone.get_base_model(), rows, 64, isolate=True)  # type: ignore[operator]
        assert [score.nll for score in found] == pytest.approx([score.nll for score in wanted], rel=1e-5)


def test_a_packed_row_cannot_have_two_adapters(bank: AdapterBank) -> None:
    rows = [Encoded(IDS[0].tolist(), [0, *[1] * 8], "", 8)]
    one, two = bank.lease("a"), bank.lease("b")
    with pytest.raises(ModelError, match="give it one slot"), bank.routed([one.slot, two.slot]):
        score_rows(bank.base.model, rows, 64, isolate=True)


def test_a_batch_of_another_size_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(ModelError, match="does not keep rows apart"):
        logits(bank, ["a", "b"])


def test_bfloat16_bases_work_too(model_folder: Path, store: Path) -> None:
    section = BaseSection(model=str(model_folder), quantization="none")
    bank, alone = (AdapterBank(load_base(section, torch.device("cpu")), store=store) for _ in range(2))
    for name in ("a", "b", "c"):
        bank.load(name)
    mixed = logits(bank, ["a", "b", "c", "a", None, "b"]).float()
    alone.load("b")
    wanted = logits(alone, ["b"]).float()
    assert mixed.dtype == torch.float32
    assert (mixed[1] - wanted[1]).norm() < 0.02 * wanted[1].norm()
    assert (mixed[0] - wanted[0]).norm() > 0.02 * wanted[0].norm()
