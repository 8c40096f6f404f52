"""Adapter folders for a small base, made in a millisecond, and what PEFT alone makes of them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from finetune.files import replace_folder
from finetune.model.base import Base
from finetune.serving.bank import AdapterBank
from finetune.store.folders import CARD, WEIGHTS, BaseCard, Card
from finetune.store.weights import PREFIX, linear_shapes

IDS = torch.randint(6, 380, (6, 9), generator=torch.Generator().manual_seed(0))
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    base: Base,
    seed: int,
    r: int = 4,
    targets: Sequence[str] = EVERY,
    size: float = 0.05,
    **config: object,
) -> Path:
    """An adapter folder with random weights, as PEFT writes it; in place of what is there."""
    generator = torch.Generator().manual_seed(seed)
    ranks: Mapping[str, int] = config.get("rank_pattern") or {}  # type: ignore[assignment]
    tensors = {}
    for name, (rows, columns) in linear_shapes(base.model).items():
        kind = name.rpartition(".")[2]
        if kind in targets:
            rank = ranks.get(kind, r)
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * size
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * size
            if config.get("use_dora"):
                strength = torch.rand(rows, generator=generator) + 1
                tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = strength
    with replace_folder(folder) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        LoraConfig(
            r=r, lora_alpha=4 * r, target_modules=list(targets), task_type="CAUSAL_LM", inference_mode=True, **config
        ).save_pretrained(str(fresh))
        (fresh / CARD).write_text(card(folder.name, base).model_dump_json())
    return folder


def card(name: str, base: Base, system: str | None = None) -> Card:
    return Card(
        name=name,
        base=BaseCard(model=base.name, quantization=base.quantization, fingerprint=base.fingerprint),
        system=system,
        method="lora",
        r=4,
        alpha=16.0,
        created="2026-01-01T00:00:00Z",
    )


class Oracle:
    """Logits of a fresh copy of the base with PEFT's own layers, kept by what was asked for."""

    def __init__(self, make_base: Callable[[], Base], ids: Tensor, folder: Path) -> None:
        self.make_base, self.ids, self.folder = make_base, ids, folder
        self.asked = functools.lru_cache(maxsize=None)(self._ask)

    def keep(self, folder: Path, content: str) -> None:
        """Remember an adapter's content under a name of its own, before its folder changes."""
        if not (self.folder / content).exists():
            shutil.copytree(folder, self.folder / content)

    def _ask(self, parts: tuple[tuple[str, float], ...]) -> Tensor:
        """(B, T, V) for a weighted sum of contents; none: the base."""
        model = self.make_base().model
        if parts:
            first, *rest = (content for content, _ in parts)
            peft = PeftModel.from_pretrained(model, str(self.folder / first), adapter_name="part0")
            for number, content in enumerate(rest, 1):
                peft.load_adapter(str(self.folder / content), adapter_name=f"part{number}")
            peft.base_model.set_adapter([f"part{number}" for number in range(len(parts))])
            for layer in (module for module in peft.modules() if isinstance(module, LoraLayer)):
                for number, (_, weight) in enumerate(parts):
                    if f"part{number}" in layer.scaling:
                        layer.scaling[f"part{number}"] *= weight
        with torch.no_grad():
            return model.eval()(input_ids=self.ids, use_cache=False).logits


def logits(bank: AdapterBank, voices: list[str | None], ids: Tensor = IDS) -> Tensor:
    """Rows of one forward pass, each with its voice; one voice stands for all."""
    leases = [bank.lease(voice) for voice in voices]
    try:
        with torch.no_grad(), bank.routed([lease.slot for lease in leases]):
            return bank.base.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    finally:
        for lease in leases:
            lease.release()
