"""Which device to run on, alone or under `accelerate launch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from finetune.errors import DeviceError, RecipeError
from finetune.recipe import BaseSection


def pick_device(section: BaseSection) -> torch.device:
    """The device of a single process. Raises DeviceError if a GPU was asked for and is absent."""
    if section.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("base.device is cuda, but no GPU is usable here", fix="set base.device: cpu or auto")
    return torch.device("cuda" if section.device != "cpu" and torch.cuda.is_available() else "cpu")


def make_accelerator(section: BaseSection, trackers: Sequence[str], tracker_folder: Path) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one.

    Raises DeviceError for an absent GPU, RecipeError for a tracker that is not installed.
    """
    device = pick_device(section)
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(tracker_folder) if trackers else None,
        )
    except ValueError as error:
        raise RecipeError(f"train.trackers {list(trackers)}: {error}") from None
