"""The distance of two adapters is that of the matrices they add."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from finetune.errors import AdapterError
from finetune.store.difference import diff_adapters, own_shapes, weight_distances
from finetune.store.weights import LoraWeights, read_weights
from tests.store.adapters import change_config, set_tensor


def a_set(seed: int, *names: str, size: int = 24) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: (
            torch.randn(3 + seed, size, generator=generator),
            torch.randn(16, 3 + seed, generator=generator),
            0.5 + seed,
        )
        for name in names
    }
    return LoraWeights("", modules, True, "")


def product(weights: LoraWeights, name: str) -> torch.Tensor:
    if name not in weights.modules:
        return torch.zeros(16, 24, dtype=torch.float64)
    a, b, scale = weights.modules[name]
    return scale * b.double() @ a.double()


def test_the_thin_factors_give_the_distance_of_the_whole_matrices() -> None:
    one, two = a_set(0, "q", "v", "only-one"), a_set(1, "q", "v", "only-two")
    modules, whole = weight_distances(one, two)
    assert list(modules) == ["q", "v", "only-one", "only-two"]
    names = list(modules)
    left = torch.cat([product(one, name).flatten() for name in names])
    right = torch.cat([product(two, name).flatten() for name in names])
    assert whole.relative == pytest.approx(float((left - right).norm() / left.norm()), rel=1e-12)
    assert whole.cosine == pytest.approx(float(left @ right / left.norm() / right.norm()), rel=1e-10)
    for name in ("q", "v"):
        a, b = product(one, name), product(two, name)
        assert modules[name].relative == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
        assert modules[name].cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-10)
    assert (modules["only-one"].relative, modules["only-one"].cosine) == (1.0, None)
    assert (modules["only-two"].relative, modules["only-two"].cosine) == (math.inf, None)


def test_other_factors_of_the_same_matrix_are_no_distance_apart() -> None:
    one = a_set(0, "q")
    a, b, scale = one.modules["q"]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
    two = LoraWeights("", {"q": (turn @ a * 2, b @ turn.T / 2, scale)}, True, "")
    modules, whole = weight_distances(one, two)
    assert whole.relative < 1e-6
    assert modules["q"].cosine == pytest.approx(1.0, abs=1e-9)


def test_adapters_of_other_bases_are_not_compared() -> None:
    with pytest.raises(AdapterError, match="q has other sizes"):
        weight_distances(a_set(0, "q"), a_set(1, "q", size=32))


def test_what_differs_is_named(store: Path) -> None:
    same = diff_adapters("shop", "shop", store)
    assert (same.base, same.recipe, same.data) == ({}, {}, {})
    assert same.weights is not None
    assert same.weights.relative == 0
    shutil.copytree(store / "shop", store / "other")
    recipe = (store / "other/recipe.yaml").read_text()
    (store / "other/recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 7"))
    name = next(iter(read_weights(store / "other", own_shapes(store / "other")).modules))
    set_tensor(f"base_model.model.{name}.lora_B.weight", lambda t: t * 2)(store / "other")
    found = diff_adapters("shop", "other", store)
    assert found.recipe == {"seed": ("0", "7")}
    assert found.modules[name].relative == pytest.approx(1.0, rel=1e-6)
    assert sum(distance.relative > 0 for distance in found.modules.values()) == 1
    change_config(store / "other", use_dora=True)
    assert diff_adapters("shop", "other", store).note == "other is DoRA"
