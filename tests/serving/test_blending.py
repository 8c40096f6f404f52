"""Blends as adapters: cat is exact, the others are what their names say, and parts must belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finetune.cli.app import app
from finetune.errors import AdapterError
from finetune.model.base import Base
from finetune.serving.bank import AdapterBank
from finetune.serving.blending import METHODS, save_blend
from finetune.store.folders import CARD, find_adapter
from tests.serving.making import logits, write_adapter

VOICE = "a+0.5*b"


@pytest.fixture
def store(tmp_path: Path, base: Base) -> Path:
    """Ranks, scales and layers that differ: where PEFT's own sums go wrong."""
    write_adapter(tmp_path / "a", base, 1, use_rslora=True)
    write_adapter(tmp_path / "b", base, 2, r=6, rank_pattern={"q_proj": 3})
    write_adapter(tmp_path / "c", base, 3, targets=("o_proj",))
    return tmp_path


@pytest.mark.parametrize("voice", [VOICE, "a+-2*b+0.25*c", "0.5*c"])
def test_cat_is_the_blend_itself_and_says_where_it_comes_from(base: Base, store: Path, voice: str) -> None:
    made = save_blend(voice, "both", store)
    assert made.error == 0.0
    assert made.adapter.card.source is not None
    assert made.adapter.card.source.place == voice
    assert made.adapter.card.base.fingerprint == base.fingerprint
    bank = AdapterBank(base, store=store)
    for name in ("a", "b", "c", "both"):
        bank.load(name)
    torch.testing.assert_close(logits(bank, ["both"]), logits(bank, [voice]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_an_adapter_that_loads(base: Base, store: Path, method: str) -> None:
    made = save_blend(VOICE, method, store, method=method)
    bank = AdapterBank(base, store=store)
    bank.load(method)
    assert (logits(bank, [method]) - logits(bank, [None])).abs().max() > 0.01
    assert made.adapter.card.method == f"blend ({method})"
    assert made.rank == (10 if method == "cat" else 6)


def test_errors_are_told_and_a_full_rank_leaves_none(store: Path) -> None:
    errors = {method: save_blend(VOICE, method, store, method=method).error for method in METHODS}
    assert errors["cat"] == 0.0
    assert 0.0 < errors["svd"] < errors["linear"]  # no cross terms, but less rank
    assert save_blend(VOICE, "whole", store, method="svd", rank=10).error < 1e-5


def test_what_dare_drops_is_a_matter_of_the_seed(base: Base, store: Path) -> None:
    bank = AdapterBank(base, store=store)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        save_blend(VOICE, name, store, method="dare", seed=seed)
        bank.load(name)
    assert torch.equal(logits(bank, ["one"]), logits(bank, ["same"]))
    assert not torch.equal(logits(bank, ["one"]), logits(bank, ["other"]))


def test_what_does_not_belong_together_is_refused(base: Base, store: Path) -> None:
    write_adapter(store / "dora", base, 5, use_dora=True)
    card = find_adapter("c", store).card
    moved = card.model_copy(update={"base": card.base.model_copy(update={"fingerprint": {"weights": "0" * 64}})})
    (store / "c" / CARD).write_text(moved.model_dump_json())
    for voice, options, message in (
        ("a+c", {}, "they differ in"),
        ("a+dora", {}, "dora cannot be blended: DoRA"),
        ("a+nothing", {}, "no adapter 'nothing'"),
        (VOICE, {"method": "soup"}, "there are cat, svd"),
        (VOICE, {"rank": 3}, "not for method cat"),
        (VOICE, {"method": "ties", "density": 1.0}, "density 1.0"),
    ):
        with pytest.raises(AdapterError, match=message):
            save_blend(voice, "new", store, **options)  # type: ignore[arg-type]
        assert not (store / "new").exists()
    with pytest.raises(AdapterError, match="there is an adapter 'a' already"):
        save_blend(VOICE, "a", store)


def test_the_command_says_what_it_wrote(store: Path) -> None:
    found = CliRunner().invoke(app, ["blend", VOICE, "both", "--store", str(store), "--method", "svd"])
    assert found.exit_code == 0, found.output
    assert f"{store / 'both'}: a+0.5*b by svd, rank 6" in found.output
    assert "differs from the exact sum by" in found.output
