"""Rows -> examples, one after the other: nothing here holds a data set in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from finetune.data.formats import Row, build
from finetune.data.messages import TEXT, Message, RowError
from finetune.data.readers import BadRow
from finetune.data.sources import read_rows
from finetune.recipe import DataSection, MixSource

ANY_LENGTH = 2**31 - 1  # tokens; for rows that are scored in windows, however long they are
LEFT_OUT = "D009"  # code of a row that a custom format leaves out on purpose
_CODES = {"syntax": "D001", "encoding": "D002", "shape": "D003"}


@dataclass(frozen=True, slots=True)
class Example:
    messages: tuple[Message, ...]
    where: str
    tools: str = ""  # JSON of the tools that may be called, or empty

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What the last answer answers; of plain text, the text itself."""
        return self.messages if self.messages[0].role == TEXT else self.messages[:-1]


class Rejected(NamedTuple):
    """A row that is no example, and why."""

    where: str
    code: str  # of the finding, see data/lint/rules.py
    problem: str


@dataclass(frozen=True)
class Source:
    """The rows of one part of a data set."""

    name: str  # "train", "held-out", "mix 1", "general"
    path: str
    format: str
    columns: tuple[tuple[str, str], ...] = ()  # our key, the file's column
    system: str | None = None  # put before conversations that have no system prompt
    heldout_share: float = 0.0  # of path, by the hash of the prompt
    heldout: bool = False  # which side of that split


def training_sources(section: DataSection) -> tuple[Source, ...]:
    """What a recipe's data section names: training rows, held-out rows, then what is mixed in."""
    columns, share = tuple(section.columns.items()), section.heldout if isinstance(section.heldout, float) else 0.0
    train = Source("train", section.path, section.format, columns, section.system, share)
    path = section.heldout if isinstance(section.heldout, str) else section.path
    heldout = Source("held-out", path, section.format, columns, section.system, share, heldout=bool(share))
    return (train, heldout, *(mixed_source(number, mixed) for number, mixed in enumerate(section.mix, 1)))


def mixed_source(number: int, mixed: MixSource) -> Source:
    return Source(f"mix {number}", mixed.path, mixed.format, tuple(mixed.columns.items()))


def general_source(path: str) -> Source:
    """The conversations that measure forgetting."""
    return Source("general", path, "messages")


def read_examples(source: Source) -> Iterator[Example | Rejected]:
    """Yield the examples of a source and what is no example, in the order of the file.

    Rows of the other side of a split are passed over. Raises DataError for a file that cannot be read.
    """
    columns = dict(source.columns)
    for row in read_rows(source.path):
        if isinstance(row, BadRow):
            rejected = Rejected(row.where, _CODES[row.code], row.problem)
        else:
            made = _example(row.row, row.where, source, columns)
            if isinstance(made, Example):
                if not source.heldout_share or source.heldout == (fraction(made) < source.heldout_share):
                    yield made
                continue
            rejected = made
        # A row without a prompt has no side; it is reported with the training rows.
        if not source.heldout:
            yield rejected


def fraction(example: Example) -> float:
    """A number in [0, 1) that depends on the prompt alone: the side of a split does not change with
    the order or the other rows of a file, and equal prompts have the same."""
    return int.from_bytes(prompt_digest(example)[:8], "big") / 2**64


def prompt_digest(example: Example) -> bytes:
    plain = tuple(tuple(message if message.extra else message[:2]) for message in example.prompt)
    return hashlib.sha256((repr(plain) + example.tools).encode()).digest()


def _example(row: Row, where: str, source: Source, columns: dict[str, str]) -> Example | Rejected:
    try:
        talk = build(row, source.format, columns)
    except RowError as error:
        return Rejected(where, error.code, str(error))
    if talk is None:
        return Rejected(where, LEFT_OUT, f"left out by {source.format}")
    messages = talk.messages
    if source.system is not None and messages[0].role not in ("system", TEXT):
        messages = (Message("system", source.system), *messages)
    return Example(messages, where, talk.tools)
