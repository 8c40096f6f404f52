"""Checks: one function each, from an answer to what is wrong with it.

To add one: write the function in a module of this folder, decorate it, and every prompts file can use
its name.
"""

# Imported for what they register.
from finetune.evaluation.checks import custom, judge, nearness, numeric, structure, texts, turn
from finetune.evaluation.checks.core import (
    CHECKS,
    Answer,
    Check,
    CheckError,
    Context,
    Outcome,
    describe,
    make_check,
    option_names,
    read_check,
    run_check,
)

__all__ = [
    "CHECKS",
    "Answer",
    "Check",
    "CheckError",
    "Context",
    "Outcome",
    "custom",
    "describe",
    "judge",
    "make_check",
    "nearness",
    "numeric",
    "option_names",
    "read_check",
    "run_check",
    "structure",
    "texts",
    "turn",
]
