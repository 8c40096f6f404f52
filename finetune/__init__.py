"""LoRA and QLoRA fine-tuning from one short recipe; `finetune --help` is the way in."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.inspection.check import check
    from finetune.pipeline import evaluate, train
    from finetune.recipe import Recipe, load_recipe
    from finetune.serving.assistant import Assistant

__all__ = ["Assistant", "Recipe", "check", "evaluate", "load_recipe", "train"]

# Said at import by a library about an optional package of its own; nobody here can act on it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# PEFT asks transformers by a name that transformers is retiring; neither is ours to change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated", category=FutureWarning)

# Public name -> module; loaded on first use, so that importing finetune costs nothing.
_HOMES = {
    "Assistant": "finetune.serving.assistant",
    "Recipe": "finetune.recipe",
    "check": "finetune.inspection.check",
    "evaluate": "finetune.pipeline",
    "load_recipe": "finetune.recipe",
    "train": "finetune.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
