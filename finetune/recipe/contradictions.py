"""What cannot be right together in one recipe, though each value alone could be."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from finetune.recipe.schema import Method, Recipe, RowSource

# Methods that choose how A and B begin; each says it alone.
STARTS = ("pissa", "olora", "eva", "loftq")
# Decoder layers instead of a plain name: layers.20, layers.20-29 or layers.20-29.q_proj.
LAYERS = re.compile(r"layers\.([0-9]{1,4})(?:-([0-9]{1,4}))?(?:\.([A-Za-z_][A-Za-z0-9_]*))?")
Location = tuple[str | int, ...]
KIND = "contradiction"


class Mistake(NamedTuple):
    at: Location  # from the section that found it
    text: str


def refuse(mistakes: Sequence[Mistake]) -> None:
    """Raise the one error that pydantic allows a validator; `explain` takes it apart again."""
    if mistakes:
        text = "; ".join(f"{'.'.join(map(str, mistake.at))}: {mistake.text}" for mistake in mistakes)
        raise PydanticCustomError(KIND, "{text}", {"text": text, "mistakes": tuple(mistakes)})


def in_columns(rows: RowSource, known: Sequence[str] | None) -> Iterator[Mistake]:
    """Check `columns` against the keys of the format; None: a custom format has any."""
    readers: dict[str, str] = {}
    for key, column in rows.columns.items():
        if known is not None and key not in known:
            close = difflib.get_close_matches(key[:80], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            yield Mistake(("columns", key), f"format {rows.format!r} has no key {key[:80]!r}; {hint}")
        elif column in readers:
            yield Mistake(("columns", key), f"column {column!r} is already read as {readers[column]!r}")
        readers.setdefault(column, key)


def in_methods(methods: Sequence[Method]) -> Iterator[Mistake]:
    """Check a list of methods: what PEFT or their own definitions do not allow together."""
    at = ("method",)
    for name in dict.fromkeys(methods):
        if methods.count(name) > 1:
            yield Mistake(at, f"{name!r} stands there {methods.count(name)} times; once is enough")
    starts = [repr(name) for name in methods if name in STARTS]
    if len(set(starts)) > 1:
        yield Mistake(at, f"{' and '.join(starts)} each say how A and B begin; keep one of them")
    special = [name for name in ("rslora", "dora") if name in methods]
    if "lora" in methods and special:
        yield Mistake(at, f"'lora' is the plain kind and {special[0]!r} another; keep one of them")
    if "dora" in methods and "loftq" in methods:
        text = "'dora' begins with the magnitudes of the base, which 'loftq' changes from the start; keep one of them"
        yield Mistake(at, text)


def in_targets(targets: str | Sequence[str]) -> Iterator[Mistake]:
    """Check the names of layers among target_modules; plain names are the model's to know."""
    for index, name in enumerate(() if isinstance(targets, str) else targets):
        if not name.startswith("layers."):
            continue
        found = LAYERS.fullmatch(name)
        if found is None:
            text = f"{name[:80]!r} names no layers; write layers.20-29 or, of one kind, layers.20-29.q_proj"
            yield Mistake(("target_modules", index), text)
        elif found[2] and int(found[2]) < int(found[1]):
            text = f"{name!r} ends before it begins; write the smaller number first"
            yield Mistake(("target_modules", index), text)


def in_recipe(recipe: Recipe) -> Iterator[Mistake]:
    yield from _in_base(recipe)
    if "loftq" in recipe.adapter.methods and recipe.base.quantization != "nf4":
        text = f"'loftq' makes up for what 4 bits lose, but base.quantization is {recipe.base.quantization!r}"
        yield Mistake(("adapter", "method"), f"{text}; set it to nf4, or remove loftq")
    yield from _judged_on_trained_rows(recipe)


def _in_base(recipe: Recipe) -> Iterator[Mistake]:
    base = recipe.base
    kind = "the built-in base" if base.model == "tiny" else "a local folder" if _looks_local(base.model) else None
    if kind and base.revision not in (None, "main"):
        # 'main' is what the Hub takes without one, so a recipe for the Hub can be run on a folder.
        text = f"{base.revision!r} is a revision on the Hub, but base.model {base.model!r} is {kind}; remove it"
        yield Mistake(("base", "revision"), text)
    if base.model == "tiny" and base.trust_remote_code:
        text = f"true, but base.model {base.model!r} is {kind} and brings no code of its own; remove it"
        yield Mistake(("base", "trust_remote_code"), text)


def _looks_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _judged_on_trained_rows(recipe: Recipe) -> Iterator[Mistake]:
    trained = {os.path.normpath(recipe.data.path): "data.path"}
    for index, source in enumerate(recipe.data.mix):
        trained.setdefault(os.path.normpath(source.path), f"data.mix.{index}.path")
    heldout = recipe.data.heldout if isinstance(recipe.data.heldout, str) else None
    judged = {("data", "heldout"): heldout, ("eval", "prompts"): recipe.eval.prompts}
    judged["eval", "general"] = recipe.eval.general
    for at, path in judged.items():
        if path is not None and (key := trained.get(os.path.normpath(path))):
            rows = recipe.data.path if key == "data.path" else recipe.data.mix[int(key.split(".")[2])].path
            yield Mistake(at, f"{path!r} is {key} {rows!r}, too: rows that are trained on cannot judge the adapter")
