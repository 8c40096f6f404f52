"""Two adapters held against each other: settings, data, metrics, and how far apart their weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor

from finetune.errors import AdapterError
from finetune.store.cards import read_recipe_text
from finetune.store.folders import WEIGHTS, StoredAdapter, find_adapter
from finetune.store.tensors import tensor_file
from finetune.store.weights import LoraWeights, read_weights, split_name

Branch = tuple[Tensor, Tensor, float]
Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class Distance:
    """How far apart two updates scale * B A are, by Frobenius norms."""

    relative: float  # |first - second| / |first|; infinite where the first has nothing
    cosine: float | None  # of the angle between them; None where one has nothing


@dataclass(frozen=True)
class Difference:
    first: StoredAdapter
    second: StoredAdapter
    base: dict[str, Pair]  # parts that differ, model and revision included
    recipe: dict[str, Pair]  # dotted keys that differ
    data: dict[str, Pair]  # files whose hashes differ
    metrics: dict[str, tuple[Mapping[str, float] | None, Mapping[str, float] | None]]  # all that one of them has
    modules: dict[str, Distance]
    weights: Distance | None  # of all together; None if one is not plain
    note: str  # why there is no distance


def diff_adapters(first: str, second: str, store: str | Path = "adapters") -> Difference:
    """Compare two adapters by name or folder; no base is loaded. Raises AdapterError."""
    one, two = find_adapter(first, store), find_adapter(second, store)
    left, right = (read_weights(adapter.folder, own_shapes(adapter.folder)) for adapter in (one, two))
    whys = [f"{adapter.name} is {w.why}" for adapter, w in ((one, left), (two, right)) if not w.plain]
    modules, whole = ({}, None) if whys else weight_distances(left, right)
    return Difference(
        one,
        two,
        _differing(_base(one), _base(two)),
        _differing(_settings(one), _settings(two)),
        _differing(one.card.data, two.card.data),
        {
            name: (one.card.metrics.get(name), two.card.metrics.get(name))
            for name in dict.fromkeys([*one.card.metrics, *two.card.metrics])
        },
        modules,
        whole,
        ", ".join(whys),
    )


def own_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers an adapter's file has branches for, by the file alone. Raises AdapterError."""
    sizes: dict[str, dict[str, tuple[int, ...]]] = {}
    with tensor_file(folder, WEIGHTS) as file:
        for name, entry in file.entries.items():
            module, kind = split_name(name)
            if module:
                sizes.setdefault(module, {})["AB"["B" in kind]] = entry.shape
    whole = {name: found for name, found in sizes.items() if len(found) == 2 and all(map(_is_matrix, found.values()))}
    return {name: (found["B"][0], found["A"][1]) for name, found in whole.items()}


def weight_distances(first: LoraWeights, second: LoraWeights) -> tuple[dict[str, Distance], Distance]:
    """The distance per module, and of all modules together, through the thin factors in float64.

    Raises AdapterError for two plain adapters whose layers have other sizes: they are for other bases.
    """
    found, sums = {}, torch.zeros(3, dtype=torch.float64)
    for name in dict.fromkeys([*first.modules, *second.modules]):
        one, two = first.modules.get(name), second.modules.get(name)
        if one and two and (one[0].shape[1] != two[0].shape[1] or one[1].shape[0] != two[1].shape[0]):
            raise AdapterError(f"{name} has other sizes in the two adapters", fix="they are for different bases")
        products = torch.tensor([_inner(one, one), _inner(two, two), _inner(one, two)], dtype=torch.float64)
        found[name] = _distance(products)
        sums += products
    return found, _distance(sums)


def _inner(one: Branch | None, two: Branch | None) -> float:
    """The Frobenius inner product of two updates: tr((B2' B1) (A1 A2'))."""
    if one is None or two is None:
        return 0.0
    (a, b, scale), (a2, b2, scale2) = one, two
    return float(scale * scale2 * ((b2.double().T @ b.double()) * (a2.double() @ a.double().T)).sum())


def _distance(products: Tensor) -> Distance:
    one, two, both = products.tolist()
    apart = math.sqrt(max(one + two - 2 * both, 0.0))
    relative = apart / math.sqrt(one) if one > 0 else math.inf if two > 0 else 0.0
    return Distance(relative, both / math.sqrt(one * two) if one > 0 and two > 0 else None)


def _base(adapter: StoredAdapter) -> dict[str, str]:
    base = adapter.card.base
    named = {"model": base.model, "revision": base.revision or "none", "quantization": base.quantization}
    return {**named, **base.fingerprint}


def _settings(adapter: StoredAdapter) -> dict[str, str]:
    text = read_recipe_text(adapter)
    if text is None:
        return {}
    try:
        return dict(_flat(YAML(typ="safe", pure=True).load(StringIO(text))))
    except (YAMLError, RecursionError) as error:
        raise AdapterError(f"cannot be read ({str(error)[:200]})", where=str(adapter.folder / "recipe.yaml")) from None


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [item for name, inner in value.items() for item in _flat(inner, f"{key}.{name}".lstrip("."))]
    return [(key, str(value))]


def _differing(one: Mapping[str, str], two: Mapping[str, str]) -> dict[str, Pair]:
    keys = dict.fromkeys([*one, *two])
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2
