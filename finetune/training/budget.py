"""How a step is cut: tokens of a micro-batch, layers that are recomputed, dequantised copies. Never the result.

Chosen from the closed form of `model/memory.py`, from a probe step on the real device where that leaves doubt, and
from the memory that is free. Every process chooses for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from finetune.data.batches import MicroBatch, pack
from finetune.data.encoding import Encoded
from finetune.model.attention import packed_attention
from finetune.model.base import Base
from finetune.model.lora import trained_parameters
from finetune.model.memory import LATER, PER_STEP, Workload, estimate, saved_bytes
from finetune.model.shapes import ModelShape
from finetune.training.loss import output_head, trained_nll

CPU_TOKENS = 2048  # of a micro-batch on a CPU, at most: more brings little speed
SCORING_TOKENS = 4096  # of a forward pass that only scores
ENOUGH_TOKENS = 1024  # below, a micro-batch wastes time; above, recomputing layers wastes more
HEADROOM = {"cpu": 0.25, "cuda": 0.08}  # share of the free memory for others, fragmentation and libraries
PROBE_TOKENS = 256
DOUBT = 2.0  # the closed form decides alone where a need so many times as large would change nothing
_CHOICES = ((0, False), (4, False), (2, False), (1, False), (1, True))  # recompute, offload


@dataclass(frozen=True)
class MemoryPlan:
    """How much a micro-batch holds and what is done to make it fit."""

    tokens: int  # of a micro-batch, padding included; a longer example goes alone
    recompute: int = 0  # every k-th decoder layer is computed again in the backward; 0: none
    offload: bool = False  # what is kept for the backward lies in host memory
    dense_bytes: int = 0  # for dequantised copies of weights

    def describe(self) -> str:
        """The plan in a few words."""
        which = {0: "nothing", 1: "every layer", 2: "every 2nd layer"}
        again = which.get(self.recompute, f"every {self.recompute}th layer")
        host = ", activations in host memory" if self.offload else ""
        return f"micro-batches of {self.tokens:,} tokens, {again} is recomputed{host}"


def choose_plan(shape: ModelShape, work: Workload, step_tokens: int, room: int, factor: float = 1.0) -> MemoryPlan:
    """The plan for steps of at most `step_tokens` tokens with `room` free bytes.

    `work.longest` tokens always go together. `factor`: what a micro-batch really needs, over the closed form.
    """
    most = max(work.longest, min(step_tokens, CPU_TOKENS) if work.cpu else step_tokens)
    enough = max(work.longest, min(most, ENOUGH_TOKENS))
    for recompute, offload in _CHOICES[: 4 if work.cpu else 5]:
        tried = replace(work, recompute=recompute, offload=offload, dense_bytes=0)
        tokens = _most_tokens(shape, tried, most, room, factor)
        if tokens >= enough:
            left = room - _need(shape, replace(tried, tokens=tokens), factor)
            dense = left if work.precision == "nf4" and not recompute else 0
            return MemoryPlan(tokens, recompute, offload, min(dense, work.width * shape.linear_parameters))
    return MemoryPlan(max(work.longest, tokens), recompute, offload)


def plan_memory(  # noqa: PLR0913 (the first four say what, the others how much)
    base: Base,
    model: PeftModel,
    shape: ModelShape,
    work: Workload,
    step_tokens: int,
    cap: int | None = None,
    *,
    reserved: int = 0,
) -> MemoryPlan:
    """Choose on the real device, for the loaded model with its adapter.

    `cap`: bytes on it that may be used in all. `reserved`: bytes of what is free that are for something else.
    """
    room = max(0, free_bytes(base.device, cap) - reserved)
    plans = [choose_plan(shape, work, step_tokens, room, factor) for factor in (1.0, DOUBT)]
    if plans[0] == replace(plans[1], dense_bytes=plans[0].dense_bytes):
        return plans[1]
    return choose_plan(shape, work, step_tokens, room, probe(base, model, shape, work))


def probe(base: Base, model: PeftModel, shape: ModelShape, work: Workload) -> float:
    """Do a forward and a backward of a made-up row; return the bytes that it needs over those of the closed form.

    Nothing of it stays: no gradient, no random number.
    """
    small = replace(work, tokens=PROBE_TOKENS, longest=PROBE_TOKENS, scored=PROBE_TOKENS - 1)
    cuda = [base.device] if base.device.type == "cuda" else []
    training = model.training
    with torch.random.fork_rng(cuda), packed_attention(base.model, base.packs):
        model.train()
        before = _reset_peak(base.device)
        kept = _saved_by(base, model, _made_up(base))
        model.train(training)
    if before is not None:
        expected = estimate(shape, small).of(PER_STEP)
        return (torch.cuda.max_memory_allocated(base.device) - before) / expected
    return kept / saved_bytes(shape, small)


def free_bytes(device: torch.device, cap: int | None = None) -> int:
    """Bytes that a step may take of the device, headroom left out; with `cap` bytes for the process in all."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - used
        if cap is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
    else:
        # Processes that accelerate launch starts on this machine share its memory.
        free, used = _host_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), _resident_bytes()
    if cap is not None:
        free = min(free, max(0, cap - used))
    return round(free * (1 - HEADROOM[device.type]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
    )


def _need(shape: ModelShape, work: Workload, factor: float) -> int:
    found = estimate(shape, work)
    return round(found.of(LATER) + (factor - 1) * found.of(PER_STEP))


def _most_tokens(shape: ModelShape, work: Workload, most: int, room: int, factor: float) -> int:
    """The largest micro-batch of at most `most` tokens that fits; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if _need(shape, replace(work, tokens=middle), factor) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _made_up(base: Base) -> MicroBatch:
    vocabulary = base.model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    (batch,) = pack([Encoded(ids, [1] * PROBE_TOKENS, "probe", 0)], PROBE_TOKENS, isolate=base.packs)
    return batch.to(base.device)


def _saved_by(base: Base, model: PeftModel, batch: MicroBatch) -> int:
    """Bytes of the tensors that one forward keeps for its backward, which is done, too."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = trained_nll(base.model, output_head(base.model), batch, float(batch.trained))
    torch.autograd.grad(loss, list(trained_parameters(model).values()), allow_unused=True)
    return sum(sizes.values())


def _reset_peak(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not on Linux
        return 0


def _host_bytes() -> int:
    """Memory that can still be had: of the machine, and of the container that this runs in."""
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            bounds.append(int(line.split()[1]) * 1024)
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        values = [line for name in (limit, usage) for line in _lines(f"{folder}/{name}")[:1]]
        if len(values) == 2 and all(value.isdigit() for value in values):
            inactive = [int(line.split()[1]) for line in _lines(f"{folder}/memory.stat") if "inactive_file " in line]
            bounds.append(int(values[0]) - int(values[1]) + max(inactive, default=0))
    return max(0, min(bounds))


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return ()
