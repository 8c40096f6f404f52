"""Blends as adapters of their own: a weighted sum of adapters, written into the store.

cat     the branches side by side: exact, and as large as the parts together
svd     the best approximation of rank r to the exact sum
ties    TIES: small changes trimmed, signs voted on (Yadav et al. 2023, arXiv 2306.01708), then cut to rank r
dare    DARE: changes dropped at random, the rest scaled up (Yu et al. 2023, arXiv 2311.03099), then cut to rank r
linear  A and B summed apart, which is not the sum of the changes: it adds cross terms

PEFT's own weighted sum goes wrong where ranks differ by layer or rank-stabilised scales are used, and decomposes every
layer's whole matrix. Of PEFT are the rules of ties and dare alone, which need such a matrix; svd and linear need none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from peft.utils.merge_utils import dare_linear, ties
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

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
DENSITY = 0.5  # share of the changes that ties and dare keep
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# Beyond the rank that is kept, and how often the matrix is multiplied: what is lost over a whole decomposition is less
# than 1e-4 of the change's energy, also for what DARE leaves, whose singular values hardly fall.
_OVERSAMPLING, _POWER_ITERATIONS = 64, 6


class Factors(NamedTuple):
    """One layer's change B A, scale 1, in fp32."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)


Layers = dict[str, Factors]  # by the name of the linear


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
    layers = [_read(stored) for stored in found]
    weights = [weight for _, weight in parts]
    exact = _side_by_side(layers, weights)
    made, r = _one_rank(exact if method == "cat" else _approximated(layers, weights, method, rank, density, seed))
    for matrix in chain.from_iterable(made.values()):
        _finite(matrix)
    error = 0.0 if method == "cat" else _distance(made, exact)
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


def _read(stored: StoredAdapter) -> Layers:
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
    return {name: Factors(a.float(), b.float() * scale) for name, (a, b, scale) in weights.modules.items()}


def _side_by_side(parts: Sequence[Layers], weights: Sequence[float]) -> Layers:
    """The exact sum; ranks add up."""
    found: Layers = {}
    for layers, weight in zip(parts, weights, strict=True):
        for name, (a, b) in layers.items():
            before = found.get(name, Factors(a[:0], b[:, :0]))
            if before.a.shape[1] != a.shape[1] or len(before.b) != len(b):
                raise AdapterError(f"layer {name} has another size in one of the parts", fix="blend those of one base")
            found[name] = _beside((before, Factors(a, b)), (1.0, weight))
    return found


def _beside(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    a = torch.cat([each.a for each in factors])
    return Factors(a, torch.cat([each.b * weight for each, weight in zip(factors, weights, strict=True)], dim=1))


def _approximated(
    parts: Sequence[Layers], weights: Sequence[float], method: str, rank: int | None, density: float, seed: int
) -> Layers:
    """Every layer by itself, from the parts that have it."""
    r = rank or max(len(factors.a) for layers in parts for factors in layers.values())
    found: Layers = {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for name in sorted({name for layers in parts for name in layers}):
            here = [(layers[name], weight) for layers, weight in zip(parts, weights, strict=True) if name in layers]
            found[name] = _layer(here, method, r, density)
    return found


def _layer(here: Sequence[tuple[Factors, float]], method: str, r: int, density: float) -> Factors:
    """One layer's sum by a method other than cat."""
    factors, weights = zip(*here, strict=True)
    if method == "linear":
        return _added_apart(factors, weights)
    if method == "svd":
        return nearest(_beside(factors, weights), r)
    rule = ties if method == "ties" else dare_linear
    return cut(rule([b @ a for a, b in factors], torch.tensor(weights), density), r)


def nearest(factors: Factors, r: int) -> Factors:
    """The best approximation of rank r; exact through the thin factors, no (out, in) matrix is made."""
    left, b = torch.linalg.qr(factors.b)
    right, a = torch.linalg.qr(factors.a.T)
    u, s, vh = torch.linalg.svd(_finite(b @ a.T), full_matrices=False)
    return Factors(vh[:r] @ right.T, left @ (u[:, :r] * s[:r]))


def cut(change: Tensor, r: int) -> Factors:
    """An approximation of rank r to a whole change (out, in), as good as the best up to 1e-4 of its energy."""
    u, s, v = torch.svd_lowrank(_finite(change), q=min(*change.shape, r + _OVERSAMPLING), niter=_POWER_ITERATIONS)
    return Factors(v[:, :r].T, u[:, :r] * s[:r])


def _finite(matrix: Tensor) -> Tensor:
    if not bool(matrix.isfinite().all()):
        raise AdapterError("the sum is larger than fp32 holds", fix="give smaller weights")
    return matrix


def _added_apart(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Half of a weight goes to A and half to B, its sign to A."""
    r, halves = max(len(each.a) for each in factors), [abs(weight) ** 0.5 for weight in weights]
    padded = [_padded(each, r) for each in factors]
    a = sum(math.copysign(half, weight) * each.a for each, half, weight in zip(padded, halves, weights, strict=True))
    b = sum(half * each.b for each, half in zip(padded, halves, strict=True))
    return Factors(torch.as_tensor(a), torch.as_tensor(b))


def _one_rank(layers: Layers) -> tuple[Layers, int]:
    """Pad with zeros to one rank: some servers know no other adapters."""
    r = max(len(factors.a) for factors in layers.values())
    return {name: _padded(factors, r) for name, factors in sorted(layers.items())}, r


def _padded(factors: Factors, r: int) -> Factors:
    missing = r - len(factors.a)
    return Factors(pad(factors.a, (0, 0, 0, missing)), pad(factors.b, (0, missing)))


def _distance(made: Layers, exact: Layers) -> float:
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


def _card(name: str, voice: str, method: str, parts: Sequence[StoredAdapter], made: Layers, r: int) -> Card:
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


def _write(folder: Path, layers: Layers, r: int, card: Card) -> None:
    tensors = {}
    for name, pair in layers.items():
        for letter, tensor in zip("AB", pair, strict=True):
            tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(layers),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=card.base.model,
        revision=card.base.revision,
    )
    config.save_pretrained(str(folder))
    card = card.model_copy(update={"files": steady_files(folder)})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")
