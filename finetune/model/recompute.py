"""Activation checkpointing: decoder layers that are computed again in the backward instead of keeping what it needs.

Chen et al. (2016, arXiv 1604.06174). Exact: the same numbers are computed twice, dropout included. The non-reentrant
kind asks nothing of a layer's input, so the backward still stops at the lowest adapted layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

_OWN = "finetune_forward"  # attribute of a layer that is computed again: the forward it had


def recompute_layers(model: nn.Module, every: int) -> int:
    """Recompute every k-th decoder layer in training, 1: all, 0: none; return how many."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    chosen = [bool(every) and number % every == 0 for number in range(len(layers))]
    for layer, again in zip(layers, chosen, strict=True):
        if again and _OWN not in layer.__dict__:
            layer.__dict__[_OWN] = layer.__dict__.get("forward")  # None where it is the class's
            layer.forward = partial(_twice, layer, layer.forward)
        elif not again and _OWN in layer.__dict__:
            own = layer.__dict__.pop(_OWN)
            del layer.__dict__["forward"]
            if own is not None:
                layer.forward = own
    return sum(chosen)


def _twice(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not layer.training:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
