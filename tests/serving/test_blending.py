"""Blends as adapters: cat is exact, the others are what their names say, and parts must belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor
from typer.testing import CliRunner

from finetune.cli.app import app
from finetune.errors import AdapterError
from finetune.model.base import Base
from finetune.serving.bank import AdapterBank
from finetune.serving.blending import METHODS, Factors, cut, nearest, save_blend
from finetune.store.folders import CARD, find_adapter
from tests.conftest import MakeBase
from tests.serving.making import IDS, logits, write_adapter

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


def make_parts(rows: int, columns: int, r: int) -> list[Factors]:
    """Changes whose singular values fall as those of trained adapters do."""
    generator = torch.Generator().manual_seed(0)
    fall = torch.linspace(0, -3, r).exp()
    shapes = ((r, columns), (rows, r))
    made = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]
    return [Factors(a, b * fall) for a, b in made]


def lost(change: Tensor, factors: Factors) -> float:
    """Energy beyond the least that an approximation of that rank loses, as a share of the change's."""
    values = torch.linalg.svdvals(change.double()) ** 2
    left = (change.double() - factors.b.double() @ factors.a.double()).square().sum()
    return float((left - values[len(factors.a) :].sum()) / values.sum())


@pytest.mark.parametrize("r", [1, 8, 24, 200])
def test_svd_is_the_best_approximation_without_the_whole_matrix(r: int) -> None:
    for rows, columns in ((96, 160), (160, 20)):  # the rank of the sum is 24, or more than the matrix has columns
        first, second = make_parts(rows, columns, 12)
        both = Factors(torch.cat([first.a, second.a]), torch.cat([first.b, second.b], dim=1))
        made = nearest(both, r)
        assert len(made.a) == min(r, 24, columns)
        assert abs(lost(both.b @ both.a, made)) < 1e-6


@pytest.mark.parametrize("rule", [ties, dare_linear])
@pytest.mark.parametrize("r", [8, 64])
def test_a_whole_change_is_cut_nearly_as_well_as_can_be(rule: Callable[..., Tensor], r: int) -> None:
    parts = make_parts(320, 512, r)
    torch.manual_seed(0)
    change = rule([b @ a for a, b in parts], torch.tensor([1.0, 0.5]), 0.5)
    found = lost(change, cut(change, r))
    assert abs(found) < 1e-4


@pytest.mark.parametrize("method", ["svd", "ties", "linear"])
def test_methods_are_those_of_peft(base: Base, make_base: MakeBase, tmp_path: Path, method: str) -> None:
    """Where PEFT's own sum is right: one rank, one scale."""
    for seed, name in enumerate("ab", 1):
        write_adapter(tmp_path / name, base, seed)
    full = None if method == "linear" else 32  # what the smallest layers have
    save_blend("a+-0.5*b", method, tmp_path, method=method, rank=full, density=0.4)
    bank = AdapterBank(base, store=tmp_path)
    bank.load(method)
    model = PeftModel.from_pretrained(make_base().model, str(tmp_path / "a"), adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    combination = method if method == "linear" else f"{method}_svd".removeprefix("svd_")
    options = {} if method == "linear" else {"svd_rank": full}
    model.add_weighted_adapter(["a", "b"], [1.0, -0.5], "sum", combination_type=combination, density=0.4, **options)
    model.set_adapter("sum")
    with torch.no_grad():
        wanted = model.eval()(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(logits(bank, [method]), wanted, rtol=1e-3, atol=1e-3)


def test_what_fp32_cannot_hold_is_refused(base: Base, tmp_path: Path) -> None:
    write_adapter(tmp_path / "huge", base, 1, size=1e37)
    for method in METHODS:
        with pytest.raises(AdapterError, match="larger than fp32 holds"):
            save_blend("100*huge", "new", tmp_path, method=method)


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
