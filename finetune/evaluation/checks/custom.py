"""Checks of one's own: a function that the prompts file names."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from finetune.data.formats import working_folder_importable
from finetune.evaluation.checks.core import Answer, CheckError, check_at_load
from finetune.evaluation.checks.values import JsonText, Text, one_line

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _callable_with(name: str, *, options: str = "{}") -> None:
    call = load_function(name)
    try:
        signature = inspect.signature(call)
    except ValueError:  # written in C: nobody can tell before the call
        return
    try:
        signature.bind("", **json.loads(options))
    except TypeError as error:
        raise ValueError(f"{name!r} cannot be called with the answer and these options: {one_line(error)}") from None


@check_at_load(_callable_with)
def function(answer: Answer, name: Text, *, options: JsonText = "{}") -> str | None:
    """The function `package.module:name`, importable from the working folder, finds nothing wrong.

    It gets the answer's text and the `options` as keyword arguments. It returns None or True if the answer
    is fine, False or a text that says what is wrong if it is not. An exception is an error of the check, which
    counts as not passed. It runs with your rights and without a time limit.

    Example: {function: "my_shop.checks:is_on_the_menu", options: {menu: pizza}}
    """
    try:
        said = load_function(name)(answer.text, **json.loads(options))
    except Exception as error:  # somebody's code: it becomes a finding about this answer
        raise CheckError(f"raised {type(error).__name__}: {one_line(error)}") from None
    if said is None or said is True:
        return None
    if said is False:
        return "returned False"
    if isinstance(said, str):
        return one_line(said)
    raise CheckError(f"returned {type(said).__name__}, not text, True, False or None")


@lru_cache(maxsize=256)
def load_function(name: str) -> Callable[..., object]:
    """Import what `package.module:name` names. Raises ValueError saying why that cannot be done."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} should be written package.module:name")
    module, _, attribute = name.partition(":")
    try:
        with working_folder_importable():
            call = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the module does while it is imported
        what = f"{name!r} cannot be imported: {type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{what}; it should be importable from the working folder") from None
    if not callable(call):
        raise ValueError(f"{name!r} is {type(call).__name__}, not a function")
    made: Callable[..., object] = call
    return made
