"""Which device to run on, alone or under `accelerate launch`: the command's business, never the recipe's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType, parse_flag_from_env

from finetune.errors import DeviceError, FinetuneError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_OMP_PAUSE_SOFT = 1  # omp.h
USE_CPU = "ACCELERATE_USE_CPU"  # accelerate's variable; `accelerate launch --cpu` sets it


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU; ACCELERATE_USE_CPU=true leaves GPUs alone, as in `make_accelerator`.

    Raises DeviceError for a value of that variable that is neither true nor false.
    """
    return torch.device("cuda" if not _cpu_wanted() and torch.cuda.is_available() else "cpu")


def make_accelerator(trackers: Sequence[str], tracker_folder: Path) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one.

    Raises DeviceError as `pick_device` and for a tracker that is not installed, FinetuneError for one that is unknown.
    """
    _check_trackers(trackers)
    return Accelerator(
        # Left alone, accelerate would also take accelerators that 4-bit training is not made for.
        cpu=pick_device().type == "cpu",
        log_with=list(trackers) or None,
        project_dir=str(tracker_folder) if trackers else None,
    )


def keep_freed_memory() -> None:
    """Let the C library keep what is freed: fetching a large tensor's pages from the kernel anew takes longer than
    filling them. Without effect but with glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def releasing_workers() -> Iterator[None]:
    """Compute in this block in a thread that is not the model's: its OpenMP workers are ended behind it.

    While there are more workers than cores, idle ones of other threads included, GNU's library lets them sleep at
    every barrier instead of waiting awake: a model that runs in another thread took twice as long per token.
    Without effect where the library has no omp_pause_resource_all (OpenMP 5.0).
    """
    try:
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).omp_pause_resource_all(_OMP_PAUSE_SOFT)


def _cpu_wanted() -> bool:
    try:
        return bool(parse_flag_from_env(USE_CPU))
    except ValueError:
        what = f"{USE_CPU} is {os.environ[USE_CPU]!r}, neither true nor false"
        raise DeviceError(what, fix="set it to true, or unset it") from None


def _check_trackers(trackers: Sequence[str]) -> None:
    """Refuse what accelerate would pass over with a warning; registered classes of the user's own are known."""
    missing = {*map(str, LoggerType)} - {*map(str, get_available_trackers())}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise FinetuneError(f"--tracker {name}: accelerate has no such tracker", fix=f"there are {known}")
        if name in missing:
            raise DeviceError(f"--tracker {name}: its package is not installed", fix=f"pip install {name}")
