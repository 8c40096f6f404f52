"""Check a data set: every row is looked at, compared and tokenised as it streams by."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from finetune.data.encoding import Encoded, encode_stream
from finetune.data.examples import ANY_LENGTH, LEFT_OUT, Example, Rejected, Source, read_examples, training_sources
from finetune.data.lint.compare import Comparison
from finetune.data.lint.findings import Findings, Places
from finetune.data.lint.languages import Languages
from finetune.data.lint.rows import RowLint
from finetune.data.lint.rules import Severity
from finetune.data.template import ChatTemplate
from finetune.data.tokens import TokenWriter, cached, find_entry, writing
from finetune.errors import DataError
from finetune.recipe import DataSection

OUTLIER = 8  # times the median length, and beyond everything but the longest percent
TOO_LONG = "D101"


@dataclass
class Part:
    """What became of the rows of one source. total = accepted + rejected, always."""

    name: str
    path: str
    total: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # rows by the code of their finding
    lengths: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))  # tokens of every tokenised row
    tokens: int = 0  # of the accepted rows
    trained: int = 0

    @property
    def accepted(self) -> int:
        return self.total - sum(self.rejected.values())


class _Incomplete(Exception):
    """Some rows were rejected: what was tokenised is not the whole source and does not go into the cache."""


@dataclass(frozen=True)
class Limit:
    tokens: int
    severity: Severity  # of a longer row


@dataclass(frozen=True)
class HeldApart:
    """What a run is measured with beside its held-out rows."""

    prompts: tuple[Example, ...] = ()  # without an answer
    general: Source | None = None  # the rows that measure forgetting


def check_data(
    section: DataSection, template: ChatTemplate, findings: Findings, measured: HeldApart | None = None
) -> list[Part]:
    """Check all parts of a data set; what is sound is left in the token cache for the training.

    Raises DataError for a file that cannot be read at all.
    """
    measured = measured or HeldApart()
    train, heldout, *mix = training_sources(section)
    limit = Limit(section.max_length, "error" if section.too_long == "error" else "warning")
    apart = [(heldout, limit)]
    if measured.general is not None:
        apart.append((measured.general, Limit(ANY_LENGTH, "warning")))
    check = _Check(template, findings)
    compared, languages = Comparison(findings), Languages(findings)
    for prompt in measured.prompts:
        compared.hold(prompt)
    parts = {source: check.look(source, limit, [compared.hold]) for source, limit in apart}
    for source in (train, *mix):
        parts[source] = check.look(source, limit, [compared.add, languages.add])
    compared.finish(lambda: chain.from_iterable(_good(source) for source in (train, *mix)))
    languages.finish(section.path)
    return [parts[source] for source in (train, *mix, *(source for source, _ in apart))]


def _good(source: Source) -> Iterator[Example]:
    return (made for made in read_examples(source) if isinstance(made, Example))


class _Check:
    def __init__(self, template: ChatTemplate, findings: Findings) -> None:
        self.template, self.findings = template, findings
        self.lint = RowLint(findings, template)

    def look(self, source: Source, limit: Limit, watchers: Sequence[Callable[[Example], None]]) -> Part:
        """Look at every row of one source; `watchers` see its examples, too."""
        entry, look = find_entry(source, self.template), _Look(self, Part(source.name, source.path), limit)
        examples = look.texts(read_examples(source), watchers)
        if (done := cached(entry)) is not None:
            look.tokens(zip(examples, done, strict=True), None)
        else:
            with suppress(_Incomplete), writing(entry) as writer:
                look.tokens(encode_stream(examples, self.template), writer)
                if look.part.rejected.keys() - {LEFT_OUT, TOO_LONG}:
                    raise _Incomplete
        return look.part


class _Look:
    """One source while it is looked at."""

    def __init__(self, check: _Check, part: Part, limit: Limit) -> None:
        self.lint, self.findings, self.part, self.limit = check.lint, check.findings, part, limit
        self.places, self.sizes = Places(), array("i")

    def texts(
        self, rows: Iterable[Example | Rejected], watchers: Sequence[Callable[[Example], None]]
    ) -> Iterator[Example]:
        for made in rows:
            self.part.total += 1
            if not isinstance(made, Example):
                self.part.rejected[made.code] += 1
                self.findings.add(made.code, made.where, made.problem)
                continue
            self.lint.look(made)
            for watch in watchers:
                watch(made)
            yield made

    def tokens(self, rows: Iterable[tuple[Example, Encoded | DataError]], writer: TokenWriter | None) -> None:
        for example, encoded in rows:
            if isinstance(encoded, DataError):
                self.part.rejected["D103"] += 1
                self.findings.add("D103", example.where, encoded.what)
                continue
            if writer is not None:
                writer.append(encoded)
            self.lint.look_at_tokens(encoded)
            self.places.append(encoded.where)
            self.sizes.append(len(encoded.ids))
            if len(encoded.ids) > self.limit.tokens:
                self._too_long(encoded)
            else:
                self.part.tokens += len(encoded.ids)
                self.part.trained += sum(encoded.loss_mask[1:])
        self._outliers()

    def _too_long(self, encoded: Encoded) -> None:
        limit, lost, trained = self.limit.tokens, sum(encoded.loss_mask[self.limit.tokens :]), sum(encoded.loss_mask)
        self.part.rejected[TOO_LONG] += 1
        what = f"{len(encoded.ids)} tokens, {len(encoded.ids) - limit} more than {limit}"
        self.findings.add(TOO_LONG, encoded.where, what, severity=self.limit.severity)
        share = "all of its" if lost == trained else f"{lost} of its {trained}"
        self.findings.add("D102", encoded.where, f"a cut at {limit} would lose {share} trained tokens")

    def _outliers(self) -> None:
        self.part.lengths = lengths = np.array(self.sizes, np.int32)
        if not len(lengths):
            return
        usual = max(OUTLIER * float(np.median(lengths)), float(np.quantile(lengths, 0.99)))
        for row in np.flatnonzero(lengths > usual):
            what = f"{lengths[row]} tokens; half of the rows have {np.median(lengths):.0f} or fewer"
            self.findings.add("D105", self.places[int(row)], what)
