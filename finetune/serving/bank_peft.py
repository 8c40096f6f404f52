"""Adapters that only PEFT can run (DoRA, modules trained in full, ...), beside the bank: put in and out of the base.

PEFT replaces modules of the base. Which ones is noted when an adapter is loaded, and they are taken out again at
once: the base is as it was, and putting them in is one assignment per module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from finetune.errors import AdapterError
from finetune.model.base import Base
from finetune.model.lora import load_adapter
from finetune.serving.routing import Plan, Router

_LEFT = ("peft_config", "_hf_peft_config_loaded")  # attributes that PEFT puts on a model


@dataclass(frozen=True)
class Wrapped:
    """What PEFT changed on the base for one adapter."""

    modules: tuple[tuple[nn.Module, str, nn.Module, nn.Module], ...]  # parent, name, the base's own, PEFT's
    forwards: tuple[tuple[nn.Module, Any], ...]  # modules without their lean forward, and that forward

    def put_in(self) -> None:
        """Make the base the adapted model."""
        for parent, name, _, theirs in self.modules:
            parent._modules[name] = theirs
        for module, _ in self.forwards:
            vars(module).pop("forward", None)

    def take_out(self) -> None:
        """Make the base itself again."""
        for parent, name, own, _ in self.modules:
            parent._modules[name] = own
        for module, forward in self.forwards:
            vars(module)["forward"] = forward


class Alone(Plan):
    """An adapter that PEFT runs, for all rows."""

    def __init__(self, wrapped: Wrapped) -> None:
        self._wrapped = wrapped

    def enter(self) -> None:
        self._wrapped.put_in()

    def leave(self) -> None:
        self._wrapped.take_out()


def wrap(base: Base, folder: Path, config: PeftConfig, router: Router) -> Wrapped:
    """Load an adapter through PEFT, with this configuration, and take it out of the base again.

    Waits for the forward pass that is running. Raises AdapterError if PEFT cannot load it, or runs it by more than
    modules in place of the base's.

    """
    with router.lock:
        before = router.switch(None)
        children, forwards = _children(base.model), _forwards(base.model)
        try:
            model = load_adapter(base, folder, config)
            if not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning:
                raise AdapterError("needs a forward pass of PEFT's own (prompt learning)", where=str(folder))
            model.requires_grad_(False).eval()
            changed = _children(base.model)
            modules = tuple(
                (parent, name, own, changed[parent, name])
                for (parent, name), own in children.items()
                if changed.get((parent, name)) is not own
            )
            left = _forwards(base.model)
            return Wrapped(modules, tuple((m, forward) for m, forward in forwards.items() if m not in left))
        finally:
            for (parent, name), own in children.items():
                parent._modules[name] = own
            for module, forward in forwards.items():
                vars(module)["forward"] = forward
            for name in _LEFT:
                vars(base.model).pop(name, None)
            router.switch(before)


def _children(model: nn.Module) -> dict[tuple[nn.Module, str], nn.Module]:
    return {(parent, name): child for parent in model.modules() for name, child in parent.named_children()}


def _forwards(model: nn.Module) -> dict[nn.Module, Any]:
    return {module: vars(module)["forward"] for module in model.modules() if "forward" in vars(module)}
