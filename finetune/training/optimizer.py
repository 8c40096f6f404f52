"""The optimizer: AdamW in 32 or 8 bits, its learning rate, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
_ALIGN = 64  # numbers


def learning_rate(step: int, steps: int, section: TrainSection) -> float:
    """Rate of the step with this index: linear warm-up, then cosine, linear or constant."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factors = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return section.learning_rate * factors[section.schedule]


class Optimizer:
    """AdamW over parameters that lie end to end in one tensor, and their gradients in another.

    Clipping, the sum over processes, the step and the zeroing are one operation each, however many layers there are.
    Each parameter and its `grad` are views of the whole from then on: write into them, do not replace them. The 8-bit
    states of bitsandbytes stay one per parameter, because a block of numbers shares a constant.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], section: TrainSection, methods: Iterable[str] = ()) -> None:
        """With lora+ among the methods, B moves faster than A. Raises DeviceError where the device cannot run it."""
        ratio = LORA_PLUS if "lora+" in methods else 1.0
        faster = {name for name in named if ratio != 1.0 and ".lora_B." in name}
        slow, fast = (
            [p for name, p in named.items() if name not in faster],
            [p for name, p in named.items() if name in faster],
        )
        parts = [(rate, part) for rate, part in ((1.0, slow), (ratio, fast)) if part]
        flat, bounds = _lay_out([part for _, part in parts])
        self.values, self.gradient = flat
        settings: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": 0.0}
        if section.optimizer == "adamw":
            pieces = [flat.part(start, end) for start, end in bounds]
            groups = [{"params": [piece], _RATIO: rate} for piece, (rate, _) in zip(pieces, parts, strict=True)]
            self.inner: torch.optim.Optimizer = torch.optim.AdamW(groups, fused=True, **settings)
            return
        if section.optimizer == "paged_adamw_8bit" and self.values.device.type != "cuda":
            what = "paged_adamw_8bit pages its state between a GPU and the CPU, and this run is on the CPU"
            raise DeviceError(f"train.optimizer {what}", fix="set train.optimizer to adamw_8bit or adamw")
        kind = AdamW8bit if section.optimizer == "adamw_8bit" else PagedAdamW8bit
        self.inner = kind([{"params": p, _RATIO: rate} for rate, p in parts], **settings)

    def clip(self, most: float) -> Tensor:
        """Scale the gradients down to a norm of `most`; return the norm that they had."""
        # In two stages: one sum over millions of numbers in fp32 is off by 1e-4.
        norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(self.gradient.view(-1, _ALIGN), dim=1))
        self.gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, rate: float, finite: Tensor) -> None:
        """Do one step at this learning rate and zero the gradients; where `finite` is false, nothing is applied."""
        for group in self.inner.param_groups:
            group["lr"] = rate * group[_RATIO]
        if isinstance(self.inner, torch.optim.AdamW):
            # The fused kernel skips the update where this is 1: nobody has to wait for the device to know.
            self.inner.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.inner.step()
        elif bool(finite):  # bitsandbytes waits for the device at every parameter anyway
            # Its 8-bit states round a zero up where the numbers around it are not zero.
            halves = [half for p in self._parameters() if (half := frozen_half(p)) is not None]
            before = [half.clone() for half in halves]
            self.inner.step()
            for half, old in zip(halves, before, strict=True):
                half.copy_(old)
        self.gradient.zero_()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state by INDEX.NAME, each tensor with memory of its own; whole numbers as tensors, too."""
        tensors = {}
        for index, parameter in enumerate(self._parameters()):
            for name, value in self.inner.state.get(parameter, {}).items():
                tensors[f"{index}.{name}"] = (
                    value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
                )
        return tensors

    def restore_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` returned, to the last bit."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, key = name.partition(".")
            states.setdefault(int(number), {})[key] = tensor
        parameters = self._parameters()
        for index, saved in states.items():
            if isinstance(self.inner, Optimizer8bit):
                _restore_8bit(self.inner, parameters[index], saved)
            else:
                device = parameters[index].device
                self.inner.state[parameters[index]] = {key: value.to(device) for key, value in saved.items()}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]


class _Flat(NamedTuple):
    values: Tensor
    gradient: Tensor

    def part(self, start: int, end: int) -> nn.Parameter:
        """A part of it as a parameter, with its part of the gradient."""
        part = nn.Parameter(self.values[start:end])
        part.grad = self.gradient[start:end]
        return part


@torch.no_grad()
def _lay_out(groups: Sequence[Sequence[nn.Parameter]]) -> tuple[_Flat, list[tuple[int, int]]]:
    """Move the parameters into one tensor, beside a gradient of zeros; say where each group begins and ends."""
    total = sum(_room(parameter) for group in groups for parameter in group)
    values = groups[0][0].new_zeros(total)
    flat, bounds, end = _Flat(values, torch.zeros_like(values)), list[tuple[int, int]](), 0
    for group in groups:
        start = end
        for parameter in group:
            value, gradient = (each[end : end + parameter.numel()].view_as(parameter) for each in flat)
            value.copy_(parameter)
            parameter.data, parameter.grad = value, gradient
            end += _room(parameter)
        bounds.append((start, end))
    return flat, bounds


def _room(parameter: nn.Parameter) -> int:
    """Numbers that it takes there: kernels want tensors to begin at a multiple of some bytes."""
    return -(-parameter.numel() // _ALIGN) * _ALIGN


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
