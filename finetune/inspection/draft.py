"""A first recipe for a data file: commented, and it runs as it is."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from finetune.data.detect import Detected, detect_format
from finetune.data.encoding import encode_stream
from finetune.data.examples import Example, Source, read_examples
from finetune.errors import DataError
from finetune.model.hub import TINY
from finetune.model.tokenizer import load_chat_template, max_positions, read_config
from finetune.recipe import BaseSection

MEASURED = 5000  # rows whose length is looked at
ROOM, LEAST, MOST = 64, 128, 2048  # max_length: a multiple, at least, at most
_HELDOUT = ("heldout", "held_out", "held-out", "test", "valid", "validation", "val", "eval", "dev")


class Draft(NamedTuple):
    file: Path  # where it belongs
    text: str  # of the recipe
    found: str  # what was found out about the file, in a line


def draft_recipe(path: str, base: str = TINY, name: str | None = None, file: Path | None = None) -> Draft:
    """Look at a data file and write a recipe for it, to be saved as `file`, by default NAME.yaml.

    Raises DataError, ModelError.
    """
    detected = detect_format(path)
    rows, longest = _measure(path, detected, base)
    limit = max_positions(read_config(BaseSection(model=base))) or MOST
    length = min(max(LEAST, -(-longest // ROOM) * ROOM), MOST, limit)
    name = name or _name_of(path)
    columns = f" (columns {json.dumps(detected.columns, ensure_ascii=False)})" if detected.columns else ""
    many = f"{rows:,}" if rows < MEASURED else f"at least {rows:,}"
    found = f"{path}: format {detected.format}{columns}, {many} rows, the longest of {longest} tokens"
    file = file or Path(f"{name}.yaml")
    next_steps = f"finetune check {file} · finetune train {file} · finetune eval {file}"
    head = [
        f"# Written by finetune init for {path}. Every key: docs/recipe.md; completion in an editor:",
        "#   finetune recipe schema > recipe.schema.json",
        f"# Next: {next_steps} · finetune chat --adapter {name}",
    ]
    return Draft(
        file, "\n".join(head) + "\n" + _text(path, base, name, detected, length, fits=longest <= length), found
    )


def _measure(path: str, detected: Detected, base: str) -> tuple[int, int]:
    """How many rows there are (up to a number), and the tokens of the longest."""
    template = load_chat_template(BaseSection(model=base))
    source = Source("train", path, detected.format, tuple(detected.columns.items()))
    examples = (made for made in read_examples(source) if isinstance(made, Example))
    rows = [encoded for _, encoded in encode_stream(islice(examples, MEASURED), template)]
    lengths = [len(row.ids) for row in rows if not isinstance(row, DataError)]
    if not lengths:
        refused = next(row for row in rows if isinstance(row, DataError))
        raise refused
    return len(rows), max(lengths)


def _text(path: str, base: str, name: str, detected: Detected, length: int, *, fits: bool) -> str:
    tiny = base == TINY
    where_from = "built in; any Hub id or folder works here" if tiny else "pin a commit with revision:"
    rank = "r: 32, alpha: 64" if tiny else "r: 16, alpha: 32"
    rate = "1.5e-3   # high, because the base is small" if tiny else "2e-4   # usual from 1 B parameters on"
    columns = [f"  columns: {_flow(detected.columns)}   # the format's key: your column"] if detected.columns else []
    beside = _heldout_beside(path)
    held = f"{_scalar(beside)}   # never trained on" if beside else "0.1   # this share is never trained on"
    lines = [
        f"name: {name}",
        "",
        "base:",
        f"  model: {_scalar(base)}   # {where_from}",
        "  quantization: nf4   # the frozen base in 4 bits (QLoRA); none: 16 bits",
        "",
        "data:",
        f"  path: {_scalar(path)}",
        f"  format: {detected.format}",
        *columns,
        f"  heldout: {held}",
        f"  max_length: {length}   # tokens of an example at most",
        *([] if fits else ["  too_long: drop   # longer ones are left out and counted; error: the run stops"]),
        "",
        f"adapter: {{{rank}}}   # rank and strength; more rank learns more and forgets more",
        "",
        "train:",
        "  epochs: 3",
        f"  learning_rate: {rate}",
        "  batch_size: 16   # examples per optimizer step",
        "",
        "eval:",
        "  gates:   # finetune eval fails (exit code 1) where one is missed",
        "    perplexity.heldout.ratio: {at_most: 0.95}   # adapter / base on the held-out rows",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _heldout_beside(path: str) -> str | None:
    """A file in the same folder whose name says that it is held out."""
    file = Path(path)
    if not file.is_file():
        return None
    suffix = "".join(file.suffixes)
    beside = [file.with_name(word + suffix) for word in _HELDOUT]
    return next((str(other) for other in beside if other.is_file() and other != file), None)


def _name_of(path: str) -> str:
    file = Path(path.partition("@")[0])
    stem = file.name.partition(".")[0] or "adapter"
    stem = file.parent.name if stem in ("train", "data", "rows") and file.parent.name else stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:64] or "adapter"


def _flow(columns: dict[str, str]) -> str:
    pairs = [f"{ours}: {json.dumps(theirs, ensure_ascii=False)}" for ours, theirs in columns.items()]
    return "{" + ", ".join(pairs) + "}"


def _scalar(text: str) -> str:
    """A YAML scalar, quoted where it has to be."""
    plain = re.fullmatch(r"[A-Za-z0-9_./@-]*[A-Za-z_/][A-Za-z0-9_./@-]*", text)
    return text if plain else json.dumps(text, ensure_ascii=False)
