"""Fifty steps of everything that makes training fast, against fifty steps of the plain path that it must not move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.data.batches import TrainingRows
from finetune.data.encoding import Encoded
from finetune.data.examples import Example
from finetune.model.base import Base, linear4bit_layers, load_base
from finetune.recipe import BaseSection, TrainSection
from finetune.training.optimizer import learning_rate
from finetune.training.run import MAX_GRAD_NORM
from tests.training.helpers import encoded, make_job, run, weights

STEPS, BATCH = 50, 3
SECTION = TrainSection(epochs=100.0, max_steps=STEPS, batch_size=BATCH, learning_rate=2e-3)


class Trained(NamedTuple):
    losses: Tensor  # (STEPS,)
    norms: Tensor  # (STEPS,), of the gradient
    adapter: Tensor  # every number of it, in one row


def fast(base: Base, rows: Sequence[Encoded], folder: Path) -> tuple[Trained, dict[str, Tensor]]:
    """Our loop: packed rows, lean layers, fused LoRA, head on trained rows; and the adapter that it began with."""
    job = make_job(base, rows, folder, SECTION)
    start = weights(job.model)
    log = run(job).log
    losses, norms = (torch.tensor([entry[key] for entry in log if "loss" in entry]) for key in ("loss", "grad_norm"))
    return Trained(losses, norms, flat(weights(job.model))), start


def flat(adapter: dict[str, Tensor]) -> Tensor:
    return torch.cat([adapter[name].flatten().double() for name in sorted(adapter)])


def plain(base: Base, folder: Path, rows: Sequence[Encoded], start: dict[str, Tensor], dtype: torch.dtype) -> Trained:
    """transformers and PEFT as they are: one example at a time, all logits, PyTorch's own loss and AdamW.

    In bf16 under autocast, as the usual trainers run it.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dense = {id(layer): layer for layer in linear4bit_layers(base.model)}
    names = {name.replace(".base_layer", ""): m for name, m in base.model.named_modules() if id(m) in dense}
    with torch.no_grad():
        for name, layer in names.items():
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[operator,union-attr,arg-type]
            model.get_submodule(name.removeprefix("base_model.model.")).weight.copy_(weight)
    model.to(dtype).requires_grad_(False)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    named = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.data = start[name].clone()
    optimizer = torch.optim.AdamW(named.values(), weight_decay=0.0)
    order, losses, norms = TrainingRows(rows), [], []
    per_epoch = -(-len(rows) // BATCH)
    for step in range(STEPS):
        epoch, place = divmod(step, per_epoch)
        batch = order.take(order.epoch(epoch, 0)[place * BATCH : (place + 1) * BATCH])
        optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, SECTION)
        count = sum(sum(row.loss_mask[1:]) for row in batch)
        total = 0.0
        for row in batch:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = adapted(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1].float()
            trained = torch.tensor(row.loss_mask[1:], dtype=torch.bool)
            loss = F.cross_entropy(logits[trained], torch.tensor(row.ids[1:])[trained], reduction="sum") / count
            loss.backward()
            total += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), MAX_GRAD_NORM)))
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    adapter = flat({name: parameter.detach() for name, parameter in named.items()})
    return Trained(torch.tensor(losses), torch.tensor(norms), adapter)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """The random Llama in numbers that bf16 holds: quantised from there, both dtypes start at the same weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def base_of(folder: Path) -> Any:
    def load(dtype: str) -> Base:
        section = BaseSection.model_validate({"model": str(folder), "dtype": dtype})
        return load_base(section, torch.device("cpu"))

    return load


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def test_fifty_steps_are_those_of_the_plain_path(
    base_of: Any, folder: Path, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    """In fp32 to its rounding; in bf16 no further from fp32 than the plain path in bf16 is."""
    base = base_of("float32")
    rows = encoded(base, examples)[:12]
    found, start = fast(base, rows, tmp_path / "32")
    exact = plain(base, folder, rows, start, torch.float32)
    assert exact.losses[-3:].mean() < 0.5 * exact.losses[:3].mean()  # it learns, so that errors could add up
    assert [apart(one, other) for one, other in zip(found, exact, strict=True)] == pytest.approx([0, 0, 0], abs=1e-3)
    rough, _ = fast(base_of("bfloat16"), rows, tmp_path / "16")
    usual = plain(base, folder, rows, start, torch.bfloat16)
    for name in Trained._fields:
        ours, theirs = (apart(getattr(run, name), getattr(exact, name)) for run in (rough, usual))
        assert ours < 1.5 * theirs, f"{name}: {ours:.2g} from fp32, the plain path in bf16 is {theirs:.2g} from it"
