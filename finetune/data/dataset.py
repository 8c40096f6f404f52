"""Rows -> examples -> a data set split into training and held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from finetune.data.formats import FORMATS, Message, RowError
from finetune.data.sources import LocatedRow, read_rows
from finetune.errors import DataError
from finetune.files import sha256_file
from finetune.recipe import DataSection, MixSource

MAX_REPORTED = 20  # mistakes named in one message


@dataclass(frozen=True)
class Example:
    messages: tuple[Message, ...]
    where: str

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]


@dataclass(frozen=True)
class Mixed:
    examples: tuple[Example, ...]
    weight: float  # examples per example of the main data set


@dataclass(frozen=True)
class Dataset:
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    mix: tuple[Mixed, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)  # of every file it was read from


def load_dataset(section: DataSection) -> Dataset:
    """Read, check and split the data of a recipe. Raises DataError naming every bad row."""
    rows = read_examples(section.path, section.format, section.system)
    if isinstance(section.heldout, str):
        train, heldout = rows, read_examples(section.heldout, section.format, section.system)
        files = [section.path, section.heldout]
    else:
        train, heldout = split(rows, section.heldout)
        files = [section.path]
        if not train or not heldout:
            sides = f"{len(train)} to train on and {len(heldout)} held out"
            raise DataError(
                f"{len(rows)} rows split by {section.heldout} leave {sides}",
                where=section.path,
                fix="add rows, change data.heldout, or give a file there",
            )
    mix = tuple(_load_mixed(source) for source in section.mix)
    files += [source.path for source in section.mix]
    return Dataset(train, heldout, mix, {name: sha256_file(name) for name in files})


def read_examples(path: str, format_name: str, system: str | None = None) -> tuple[Example, ...]:
    """Read one file in one format; `system` goes before every conversation that has none."""
    spec = FORMATS[format_name]
    examples, problems = [], []
    for located in read_rows(path):
        try:
            messages = _build(located, format_name)
        except RowError as error:
            problems.append(f"{located.where}: {error}")
            continue
        if system is not None and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        examples.append(Example(messages, located.where))
    if problems:
        raise DataError(_listing(problems, f"format {format_name!r} needs {' and '.join(spec.keys)}"))
    if not examples:
        raise DataError("holds no rows", where=path)
    return tuple(examples)


def split(examples: Sequence[Example], share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split by the hash of the prompt: the order and other rows of the file do not matter.

    Equal prompts land on one side.
    """
    heldout = [_fraction(e.prompt) < share for e in examples]
    return (
        tuple(e for e, held in zip(examples, heldout, strict=True) if not held),
        tuple(e for e, held in zip(examples, heldout, strict=True) if held),
    )


def _load_mixed(source: MixSource) -> Mixed:
    return Mixed(read_examples(source.path, source.format), source.weight)


def _build(located: LocatedRow, format_name: str) -> tuple[Message, ...]:
    spec = FORMATS[format_name]
    missing = [key for key in spec.keys if key not in located.row]
    if missing:
        fits = [name for name, other in FORMATS.items() if set(other.keys) <= set(located.row)]
        hint = f"; the row fits format {' or '.join(fits)}" if fits else ""
        raise RowError(f"no key {', '.join(map(repr, missing))} (it has {', '.join(map(repr, located.row))}){hint}")
    return spec.build(located.row)


def _listing(problems: Sequence[str], expected: str) -> str:
    more = len(problems) - MAX_REPORTED
    tail = [f"... and {more} more rows"] if more > 0 else []
    return "\n".join([*problems[:MAX_REPORTED], *tail, f"({expected})"])


def _fraction(prompt: Iterable[Message]) -> float:
    digest = hashlib.sha256(repr(tuple(map(tuple, prompt))).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
