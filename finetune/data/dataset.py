"""A data set ready for training: tokenised rows of every part, of the length that the recipe allows."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np

from finetune.data.encoding import Encoded, encode_stream
from finetune.data.examples import LEFT_OUT, Example, Source, read_examples, training_sources
from finetune.data.formats import FORMATS
from finetune.data.template import ChatTemplate
from finetune.data.tokens import Tokens, cached, find_entry, writing
from finetune.errors import DataError
from finetune.recipe import DataSection

MAX_REPORTED = 20  # mistakes named in one message


class Rows(Sequence[Encoded]):
    """Those rows of a tokenised source that are short enough; nothing is held in memory but their numbers."""

    def __init__(self, tokens: Tokens, max_length: int, sha256: Mapping[str, str]) -> None:
        self.tokens = tokens
        self.sha256 = dict(sha256)  # of every file it was read from
        self.kept = np.flatnonzero(tokens.lengths <= max_length)

    @property
    def dropped(self) -> int:
        return len(self.tokens) - len(self.kept)

    @property
    def digest(self) -> str:
        """A hash of the tokens of all rows, in their order."""
        digest = hashlib.sha256()
        for row in self:
            digest.update(array("i", row.ids).tobytes() + bytes(row.loss_mask))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self.tokens[int(number)] for number in self.kept[index]]
        return self.tokens[int(self.kept[index])]


class Mixed(NamedTuple):
    rows: Rows
    weight: float  # rows per row of the main data set


@dataclass(frozen=True)
class Dataset:
    train: Rows
    heldout: Rows
    mix: tuple[Mixed, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)  # of every file it was read from


def load_dataset(section: DataSection, template: ChatTemplate) -> Dataset:
    """Read, check, split and tokenise the data of a recipe; what was done before is read from the cache.

    Raises DataError naming the bad rows, and for rows longer than data.max_length unless they are to
    be dropped.
    """
    train, heldout, *mix = training_sources(section)
    rows = [
        load_rows(source, template, section.max_length, drop_long=section.too_long == "drop")
        for source in (train, heldout, *mix)
    ]
    if not rows[0] and not rows[1]:
        raise DataError("holds no rows", where=section.path)
    if not rows[0] or not rows[1]:
        sides = f"{len(rows[0])} to train on and {len(rows[1])} held out"
        raise DataError(
            f"{len(rows[0]) + len(rows[1])} rows split by {section.heldout} leave {sides}",
            where=section.path,
            fix="add rows, change data.heldout, or give a file there",
        )
    mixed = tuple(Mixed(found, source.weight) for found, source in zip(rows[2:], section.mix, strict=True))
    hashes = {path: digest for part in rows for path, digest in part.sha256.items()}
    return Dataset(rows[0], rows[1], mixed, hashes)


def load_rows(source: Source, template: ChatTemplate, max_length: int, *, drop_long: bool = False) -> Rows:
    """Tokenised rows of one source. Raises DataError naming the bad rows and the over-long ones."""
    entry = find_entry(source, template)
    if (tokens := cached(entry)) is None:
        with writing(entry) as writer:
            for row in _strictly(source, template):
                writer.append(row)
        tokens = cached(entry)
        assert tokens is not None
    if not len(tokens) and not source.heldout_share:
        raise DataError("holds no rows", where=source.path)
    rows = Rows(tokens, max_length, entry.sha256)
    if rows.dropped and not drop_long:
        longest = int(tokens.lengths.argmax())
        raise DataError(
            f"{rows.dropped} of {len(tokens)} examples exceed data.max_length {max_length} tokens "
            f"(longest {tokens.lengths[longest]}, {tokens[longest].where})",
            fix="raise data.max_length, shorten them, or set data.too_long: drop",
        )
    if len(tokens) and not len(rows):
        where = tokens[0].where
        raise DataError(f"all {len(tokens)} examples exceed {max_length} tokens, so none is left ({where}, ...)")
    return rows


def _strictly(source: Source, template: ChatTemplate) -> Iterator[Encoded]:
    """Tokenise a source. Raises DataError naming every bad row when all have been read."""
    problems: list[str] = []

    def good() -> Iterator[Example]:
        for made in read_examples(source):
            if isinstance(made, Example):
                yield made
            elif made.code != LEFT_OUT:
                problems.append(f"{made.where}: {made.problem}")

    for _, encoded in encode_stream(good(), template):
        if isinstance(encoded, DataError):
            problems.append(str(encoded))
        elif not problems:
            yield encoded
    if problems:
        raise DataError(_listing(problems, source))


def _listing(problems: Sequence[str], source: Source) -> str:
    more = len(problems) - MAX_REPORTED
    keys = FORMATS[source.format].keys if source.format in FORMATS else ()
    tail = [f"... and {more} more rows"] if more > 0 else []
    tail += [f"(format {source.format!r} needs {' and '.join(keys)})"] if keys else []
    return "\n".join([*problems[:MAX_REPORTED], *tail])
