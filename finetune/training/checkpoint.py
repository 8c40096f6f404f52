"""Checkpoints: what a run needs to go on bit for bit, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import AdapterError
from finetune.files import recover_folder, replace_folder, sha256_file
from finetune.training.optimizer import Optimizer
from finetune.training.stopping import Best
from finetune.training.telemetry import LogEntry, read_log, write_log

_STATE, _PROGRESS, _LOG, _MANIFEST = "state.safetensors", "progress.json", "log.jsonl", "manifest.json"


@dataclass
class Progress:
    step: int = 0  # optimizer steps done
    seconds: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class RunState:
    """What a run knows beside model and optimizer."""

    progress: Progress
    log: list[LogEntry]
    best: Best


def save_checkpoint(
    folder: Path,
    key: Mapping[str, str],
    named: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    state: RunState,
) -> None:
    """Write adapter, optimizer, random state, progress, log and the best adapter; `key` says of which run."""
    tensors = {f"adapter.{name}": p.detach().contiguous() for name, p in named.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.state_tensors().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.tensors.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    with replace_folder(folder) as fresh:
        save_file(tensors, fresh / _STATE)
        progress = {"key": dict(key), "heldout": state.best.losses, **asdict(state.progress)}
        (fresh / _PROGRESS).write_text(json.dumps(progress))
        write_log(fresh / _LOG, state.log)
        digests = {name: sha256_file(fresh / name) for name in (_STATE, _PROGRESS, _LOG)}
        (fresh / _MANIFEST).write_text(json.dumps(digests))


def has_checkpoint(folder: Path) -> bool:
    recover_folder(folder)
    return (folder / _MANIFEST).is_file()


def check_key(folder: Path, key: Mapping[str, str]) -> None:
    """Raise AdapterError if the checkpoint is damaged or belongs to another run, naming what differs."""
    try:
        digests = json.loads((folder / _MANIFEST).read_text())
        broken = [name for name, digest in digests.items() if sha256_file(folder / name) != digest]
        found = json.loads((folder / _PROGRESS).read_text())["key"]
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"checkpoint cannot be read ({error})", where=str(folder), fix=_FRESH) from None
    if broken:
        raise AdapterError(f"checkpoint is damaged: {', '.join(broken)}", where=str(folder), fix=_FRESH)
    differing = [part for part in {**found, **key} if found.get(part) != key.get(part)]
    if differing:
        raise AdapterError(
            f"checkpoint belongs to another run: {', '.join(differing)} changed since it was written",
            where=str(folder),
            fix=f"change it back, or {_FRESH}",
        )


def load_checkpoint(
    folder: Path, named: Mapping[str, nn.Parameter], optimizer: Optimizer, patience: int | None = None
) -> RunState:
    """Put the parameters, optimizer and random state back; `check_key` comes first. Raises AdapterError."""
    try:
        tensors = load_file(folder / _STATE)
        saved = json.loads((folder / _PROGRESS).read_text())
        log = read_log(folder / _LOG)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"checkpoint cannot be read ({error})", where=str(folder), fix=_FRESH) from None
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[f"adapter.{name}"])
    optimizer.restore_state(_part(tensors, "optimizer."))
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    del saved["key"]
    best = Best(patience, [(int(step), loss) for step, loss in saved.pop("heldout")], _part(tensors, "best."))
    return RunState(Progress(**saved), log, best)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_FRESH = "run with --fresh to start over"
