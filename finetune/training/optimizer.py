"""The optimizer: AdamW in 32 or 8 bits, its learning rate, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor, nn

from finetune.errors import DeviceError
from finetune.model.methods import frozen_half
from finetune.recipe import TrainSection

WARMUP = 0.03  # share of the steps in which the learning rate rises
LORA_PLUS = 16.0  # rate of the matrices B over that of A: Hayou et al. (2024, arXiv 2402.12354)
_RATIO = "rate_ratio"  # key of our own in a parameter group


def learning_rate(step: int, steps: int, section: TrainSection) -> float:
    """Rate of the step with this index: linear warm-up, then cosine, linear or constant."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factors = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return section.learning_rate * factors[section.schedule]


def make_optimizer(
    named: Mapping[str, nn.Parameter], section: TrainSection, methods: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """Make the optimizer of these parameters; with lora+ among the methods, B moves faster than A.

    Raises DeviceError where the optimizer cannot run on their device.
    """
    ratio = LORA_PLUS if "lora+" in methods else 1.0
    fast = {name for name in named if ratio != 1.0 and ".lora_B." in name}
    groups: list[dict[str, Any]] = [{"params": [p for name, p in named.items() if name not in fast], _RATIO: 1.0}]
    if fast:
        groups.append({"params": [p for name, p in named.items() if name in fast], _RATIO: ratio})
    settings: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": 0.0}
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    if section.optimizer == "adamw_8bit":
        return AdamW8bit(groups, **settings)
    if any(parameter.device.type != "cuda" for parameter in named.values()):
        what = "train.optimizer paged_adamw_8bit pages its state between a GPU and the CPU, and this run is on the CPU"
        raise DeviceError(what, fix="set train.optimizer to adamw_8bit or adamw")
    return PagedAdamW8bit(groups, **settings)


def apply_step(optimizer: torch.optim.Optimizer, rate: float, finite: Tensor) -> None:
    """Do one step at this learning rate and zero the gradients; where `finite` is false, nothing is applied."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_RATIO]
    if isinstance(optimizer, torch.optim.AdamW):
        # The fused kernel skips the update where this is 1: nobody has to wait for the device to know.
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):  # bitsandbytes waits for the device at every parameter anyway
        # Its 8-bit states round a zero up where the numbers around it are not zero.
        halves = [half for p in _parameters(optimizer) if (half := frozen_half(p)) is not None]
        before = [half.clone() for half in halves]
        optimizer.step()
        for half, old in zip(halves, before, strict=True):
            half.copy_(old)
    optimizer.zero_grad(set_to_none=False)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by INDEX.NAME, each tensor with memory of its own; whole numbers as tensors, too."""
    tensors = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{index}.{name}"] = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` returned, to the last bit."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    parameters = _parameters(optimizer)
    for index, saved in states.items():
        if isinstance(optimizer, Optimizer8bit):
            _restore_8bit(optimizer, parameters[index], saved)
        else:
            device = parameters[index].device
            optimizer.state[parameters[index]] = {key: value.to(device) for key, value in saved.items()}


def _restore_8bit(optimizer: Any, parameter: nn.Parameter, saved: Mapping[str, Tensor]) -> None:
    """Fill the buffers that bitsandbytes itself makes: a paged one lies in memory of its own kind."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    optimizer.init_state(group, parameter, 0, 0)
    state = optimizer.state[parameter]
    for key, value in saved.items():
        if isinstance(state[key], Tensor):
            state[key].copy_(value)
        else:
            state[key] = int(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
