"""Regional compilation: what lies between a layer's matrix products, each piece compiled once and used by every layer.

The pieces are pure functions of tensors without gradient (the layers have their own backward), so there is nothing
that could break a graph: no attention, no quantised weight, no adapter. A compiled piece is one pass over memory, or
one kernel, where PyTorch takes two to eight. It rounds less often, so results differ by rounding alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from finetune.errors import DeviceError

P = ParamSpec("P")
R = TypeVar("R")

_compiling = False
_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def region(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a piece: a function of tensors whose last dimension is always the same; all others may change."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return _run(function, args) if _compiling and not kwargs else function(*args, **kwargs)

    return run


@contextmanager
def compiled_regions(wanted: bool) -> Iterator[None]:
    """Run pieces compiled inside this block, if `wanted`; the first call of each compiles it.

    Raises DeviceError inside if the compiler fails.
    """
    global _compiling  # the pieces are called from the backward, which is handed nothing that could carry it
    before, _compiling = _compiling, wanted
    try:
        yield
    finally:
        _compiling = before


def require_compiler(device: torch.device) -> None:
    """Raise DeviceError if torch.compile lacks what it needs for this device."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise DeviceError("--compile needs Triton on a GPU, which is not installed", fix="pip install triton")
        names, kind = [os.environ.get("CC", ""), "gcc", "clang", "cc"], "C"
    else:
        names, kind = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")], "C++"
    names = [name for name in names if name]
    if not any(shutil.which(name) for name in names):
        what = f"--compile needs a {kind} compiler on this device ({device.type}), and there is no {' or '.join(names)}"
        variable = "CC" if kind == "C" else "CXX"
        raise DeviceError(what, fix=f"install one (Debian: apt install g++), name it in {variable}, or leave it out")


def modules_with_regions(model: nn.Module) -> int:
    """How many modules of a base run pieces: norms, MLPs and decoder layers that were given a forward of ours."""
    forwards = [vars(module).get("forward") for module in model.modules()]
    return sum(getattr(forward, "__module__", "").startswith("finetune.model.") for forward in forwards)


def _run(function: Callable[..., R], args: tuple[Any, ...]) -> R:
    from torch._dynamo.exc import TorchDynamoException

    if function not in _compiled:
        _compiled[function] = torch.compile(function)
    # Whether a gradient is wanted is the caller's business; asked for, it would be a further graph.
    given = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
    for tensor in given:
        if isinstance(tensor, Tensor):
            # Told at the first call that these sizes change, it compiles for all of them at once.
            for dimension in range(tensor.dim() - 1):
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    try:
        return _compiled[function](*given)  # type: ignore[no-any-return]
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
        raise DeviceError(f"torch.compile failed: {' '.join(lines)[:300]}", fix="train without --compile") from error
