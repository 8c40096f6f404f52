"""Early stopping: the adapter with the lowest held-out loss so far, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.errors import RecipeError


@dataclass
class Best:
    """What was measured so far; goes into every checkpoint, so that a resumed run decides alike."""

    patience: int | None  # evaluations without a fall; None: never stop, keep the last adapter
    losses: list[tuple[int, float]] = field(default_factory=list)  # optimizer step, held-out loss
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of the best one, on the CPU

    @property
    def step(self) -> int | None:
        """The step whose adapter was best; the earlier of equals."""
        return min(self.losses, key=lambda pair: pair[1])[0] if self.losses else None

    @property
    def done(self) -> bool:
        """Whether the loss has not fallen for `patience` evaluations."""
        if self.patience is None or not self.losses:
            return False
        place = [step for step, _ in self.losses].index(int(self.step or 0))
        return len(self.losses) - 1 - place >= self.patience

    def note(self, step: int, loss: float, named: Mapping[str, nn.Parameter]) -> None:
        """Remember an evaluation, and the adapter if it is the best so far."""
        if self.patience is None:
            return
        self.losses.append((step, loss if math.isfinite(loss) else math.inf))
        if self.step == step:
            self.tensors = {name: p.detach().to("cpu", copy=True) for name, p in named.items()}

    @torch.no_grad()
    def put_back(self, named: Mapping[str, nn.Parameter]) -> None:
        """Make the best adapter the run's."""
        for name, parameter in named.items():
            if name in self.tensors:
                parameter.copy_(self.tensors[name])


def check_heldout(patience: int | None, rows: int) -> None:
    """Raise RecipeError where early stopping has nothing to look at."""
    if patience is not None and not rows:
        what = f"train.patience is {patience}, but no row is held out whose loss could stop the run"
        raise RecipeError(what, fix="set data.heldout, or remove train.patience")
