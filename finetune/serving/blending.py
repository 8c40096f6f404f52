"""Blends as adapters of their own: a weighted sum of adapters, written into the store.

cat     the branches side by side: exact, and as large as the parts together
svd     the best approximation of rank r to the exact sum
ties    TIES: small changes trimmed, signs voted on (Yadav et al. 2023, arXiv 2306.01708), then as svd
dare    DARE: changes dropped at random, the rest scaled up (Yu et al. 2023, arXiv 2311.03099), then as svd
linear  A and B summed apart, which is not the sum of the changes: it adds cross terms

All but cat are computed by PEFT. Its sums go wrong where ranks differ by layer or rank-stabilised scales are used,
so it gets every part with one rank and scale 1, and is asked for factors only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.errors import AdapterError
from finetune.provenance import now, versions
from finetune.serving.voices import parse_voice
from finetune.store.cards import steady_files
from finetune.store.folders import CARD, WEIGHTS, Card, Source, StoredAdapter, find_adapter, find_in_store, save_folder
from finetune.store.places import place_in_store
from finetune.store.readme import render_readme
from finetune.store.tensors import tensor_file
from finetune.store.weights import PREFIX, read_weights

METHODS = ("cat", "svd", "ties", "dare", "linear")
_PEFT = {"svd": "svd", "ties": "ties_svd", "dare": "dare_linear_svd", "linear": "linear"}
DENSITY = 0.5  # share of the changes that ties and dare keep
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

Factors = dict[str, tuple[Tensor, Tensor]]  # linear -> A (r, in), B (out, r), scale 1, in fp32


@dataclass(frozen=True)
class Blended:
    """A saved blend, and how far it is from the sum that was asked for."""

    adapter: StoredAdapter
    rank: int
    error: float  # ||saved - exact|| / ||exact||, Frobenius norms over all layers


def save_blend(  # noqa: PLR0913 (each is an option of finetune blend)
    voice: str,
    name: str,
    store: str | Path = "adapters",
    *,
    method: str = "cat",
    rank: int | None = None,
    density: float = DENSITY,
    seed: int = 0,
) -> Blended:
    """Write a blend such as pizza+0.5*cheerful into the store as an adapter of its own.

    rank: of svd, ties and dare; default: the largest of the parts'. density: share of the changes that ties and dare
    keep. seed: of what dare drops. Raises AdapterError if the parts do not belong together or the name is taken.
    """
    _check_options(method, rank, density)
    parts = parse_voice(voice).parts
    if not parts:
        raise AdapterError("a blend needs adapters", fix="write one such as pizza+0.5*cheerful")
    target = place_in_store(name, store)
    if target.exists():
        raise AdapterError(f"there is an adapter {name!r} already", where=str(target), fix="give another name")
    found = [find_in_store(part, store) for part, _ in parts]
    _refuse_other_bases(found)
    factors = [_read(stored) for stored in found]
    weights = [weight for _, weight in parts]
    exact = _side_by_side(factors, weights)
    made = exact if method == "cat" else _by_peft(factors, weights, _PEFT[method], rank, density, seed)
    made, r = _one_rank(made)
    error = 0.0 if method == "cat" else _distance(made, exact)
    if not error < float("inf"):
        raise AdapterError(f"blend {voice!r} by {method} holds NaN or infinity", fix="take another method")
    card = _card(name, str(parse_voice(voice)), method, found, made, r)
    save_folder(target, lambda folder: _write(folder, made, r, card))
    return Blended(find_adapter(str(target)), r, error)


def _check_options(method: str, rank: int | None, density: float) -> None:
    if method not in METHODS:
        raise AdapterError(f"blending has no method {method!r}", fix=f"there are {', '.join(METHODS)}")
    if rank is not None and (method in ("cat", "linear") or rank < 1):
        raise AdapterError(f"rank {rank} is not for method {method}", fix="give 1 or more, to svd, ties or dare")
    if not 0 < density < 1:
        raise AdapterError(f"density {density} is no share between 0 and 1", fix="give one such as 0.5")


def _refuse_other_bases(found: Sequence[StoredAdapter]) -> None:
    first = found[0]
    for other in found[1:]:
        ours, theirs = first.card.base, other.card.base
        differing = [key for key, value in ours.fingerprint.items() if theirs.fingerprint.get(key) != value]
        if differing:
            what = f"{first.name} is for base {ours.model}, {other.name} for {theirs.model}; they differ in"
            raise AdapterError(f"{what} {', '.join(differing)}", fix="blend adapters of one base")


def _read(stored: StoredAdapter) -> Factors:
    """The branches of a part with its scale put into B; the shapes of the layers are those its own tensors have."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    with tensor_file(stored.folder, WEIGHTS) as file:
        for key, entry in file.entries.items():
            if named := _NAME.fullmatch(key):
                shapes.setdefault(named[1], {})[named[2]] = entry.shape
    linears = {n: (s["B"][0], s["A"][1]) for n, s in shapes.items() if len(s) == 2 and all(map(len, s.values()))}
    weights = read_weights(stored.folder, linears)
    if not weights.plain:
        raise AdapterError(f"{stored.name} cannot be blended: {weights.why}", where=str(stored.folder))
    return {name: (a.float(), b.float() * scale) for name, (a, b, scale) in weights.modules.items()}


def _side_by_side(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The exact sum; ranks add up."""
    found: Factors = {}
    for factors, weight in zip(parts, weights, strict=True):
        for name, (a, b) in factors.items():
            before = found.get(name, (a[:0], b[:, :0]))
            if before[0].shape[1] != a.shape[1] or len(before[1]) != len(b):
                raise AdapterError(f"layer {name} has another size in one of the parts", fix="blend those of one base")
            found[name] = torch.cat([before[0], a]), torch.cat([before[1], b * weight], dim=1)
    return found


@torch.no_grad()
def _by_peft(
    parts: Sequence[Factors], weights: Sequence[float], method: str, rank: int | None, density: float, seed: int
) -> Factors:
    """PEFT's weighted adapter over a skeleton of the base, which has no weights."""
    largest = max(len(a) for factors in parts for a, _ in factors.values())
    shapes = {name: (len(b), a.shape[1]) for factors in parts for name, (a, b) in factors.items()}
    skeleton, names = _skeleton(shapes), [f"part{number}" for number in range(len(parts))]
    model: Any = None
    for name, factors in zip(names, parts, strict=True):
        config = LoraConfig(r=largest, lora_alpha=largest, target_modules=sorted(factors))
        if model is None:
            model = LoraModel(skeleton, config, name)
        else:
            model.peft_config[name] = config
            model.inject_adapter(skeleton, name)
        for layer, (a, b) in factors.items():
            target = skeleton.get_submodule(layer)
            _pad_into(target.lora_A[name].weight, a)  # type: ignore[index, union-attr]
            _pad_into(target.lora_B[name].weight, b)  # type: ignore[index, union-attr]
    options: dict[str, Any] = {} if method in ("svd", "linear") else {"density": density}
    if method != "linear":
        options |= {"svd_rank": rank or largest, "svd_full_matrices": False}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model.add_weighted_adapter(names, list(weights), "sum", combination_type=method, **options)
    layers: dict[str, Any] = {layer: skeleton.get_submodule(layer) for layer in sorted(shapes)}
    return {
        name: (layer.lora_A["sum"].weight.float(), layer.lora_B["sum"].weight.float() * layer.scaling["sum"])
        for name, layer in layers.items()
    }


def _skeleton(shapes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Modules with the base's names and sizes; one number stands for all weights of a layer."""
    root = nn.Module()
    for name, (rows, columns) in shapes.items():
        parent = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1, 1).expand(rows, columns), requires_grad=False)
        parent.add_module(last, linear)
    return root


def _pad_into(target: Tensor, source: Tensor) -> None:
    target.zero_()
    target[: source.shape[0], : source.shape[1]].copy_(source)


def _one_rank(factors: Factors) -> tuple[Factors, int]:
    """Pad with zeros to one rank: some servers know no other adapters."""
    r = max(len(a) for a, _ in factors.values())
    found: Factors = {}
    for name, (a, b) in sorted(factors.items()):
        found[name] = a.new_zeros(r, a.shape[1]), b.new_zeros(len(b), r)
        for target, source in zip(found[name], (a, b), strict=True):
            _pad_into(target, source)
    return found, r


def _distance(made: Factors, exact: Factors) -> float:
    """||made - exact|| / ||exact|| through the thin factors."""
    difference = total = 0.0
    for name, (a, b) in exact.items():
        a_made, b_made = made[name]
        difference += _square(torch.cat([a_made, a]), torch.cat([b_made, -b], dim=1))
        total += _square(a, b)
    return (difference / total) ** 0.5 if total else float(difference > 0)


def _square(a: Tensor, b: Tensor) -> float:
    """||B A||^2."""
    a, b = a.double(), b.double()
    return max(0.0, float(((a @ a.T) * (b.T @ b)).sum()))


def _card(name: str, voice: str, method: str, parts: Sequence[StoredAdapter], made: Factors, r: int) -> Card:
    trained = sum(a.numel() + b.numel() for a, b in made.values())
    total = max((stored.card.parameters.get("total", 0) for stored in parts), default=0)
    return Card(
        name=name,
        base=parts[0].card.base,
        system=next((stored.card.system for stored in parts if stored.card.system is not None), None),
        method=f"blend ({method})",
        r=r,
        alpha=float(r),
        parameters={"trained": trained} | ({"total": total} if total else {}),
        versions=versions(),
        created=now(),
        source=Source(kind="blend", place=voice),
    )


def _write(folder: Path, factors: Factors, r: int, card: Card) -> None:
    tensors = {}
    for name, pair in factors.items():
        for letter, tensor in zip("AB", pair, strict=True):
            tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(factors),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=card.base.model,
        revision=card.base.revision,
    )
    config.save_pretrained(str(folder))
    card = card.model_copy(update={"files": steady_files(folder)})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")
