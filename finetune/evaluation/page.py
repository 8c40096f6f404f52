"""What the page and the job summary show, in words and in order: the worst first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune.evaluation.diff import Span, compare
from finetune.evaluation.escaping import clip, visible
from finetune.evaluation.report import (
    Answers,
    Report,
    Sample,
    SampleAnswer,
    SampleOutcome,
    share,
)

OUTCOMES = ("failed", "regressed", "gained", "passed", "flaky", "error")
TEXT, BRIEF = 4_000, 1_000  # characters of a text, and of one that is folded away
TURNS, ANSWERS, CHECKS, SIDES = 12, 10, 40, 8  # of one prompt, on the page
FIRST = 2  # answers of one model that are not folded away
NAME = 200  # characters of an id or a tag
MORE = "more characters in samples.jsonl"


class Marked(NamedTuple):
    """One answer in spans, or None where nothing is marked, and why."""

    spans: tuple[Span, ...] | None
    note: str


class Attempt(NamedTuple):
    """One answer as it is shown: its text in spans, and the checks that it missed."""

    number: int  # from 1
    answer: SampleAnswer
    spans: tuple[Span, ...]
    missed: tuple[SampleOutcome, ...]
    missed_more: int


@dataclass(frozen=True)
class Side:
    """One model's answers to a prompt, those that failed first."""

    name: str
    note: str  # how it differs from what it is compared with
    passed: int
    total: int
    mark: str  # of the changed words: ins, del or nothing
    first: tuple[Attempt, ...]
    folded: tuple[Attempt, ...]
    omitted: int


@dataclass(frozen=True)
class Card:
    """One prompt with everybody's answers."""

    sample: Sample
    anchor: str
    outcomes: tuple[str, ...]
    sides: tuple[Side, ...]
    omitted: int  # models whose answers are not shown
    checks: tuple[tuple[str, tuple[str, ...]], ...]  # text of a check, and how each side did


def reference_of(report: Report) -> str | None:
    """Name the rival whose answers the adapter's are marked against: an earlier report, else None for the base."""
    return next((rival.name for rival in report.rivals if rival.kind == "report"), None)


def outcomes_of(sample: Sample) -> tuple[str, ...]:
    """Name everything that a person may look for: a prompt can have failed, regressed and be flaky."""
    before, after = share(sample.base), share(sample.adapter)
    holds = {
        "failed": not sample.passed,
        "regressed": sample.regressed,
        "gained": after > before,
        "passed": sample.passed,
        "flaky": 0 < after < 1,
        "error": any(outcome.error for answer in sample.adapter for outcome in answer.outcomes),
    }
    return tuple(name for name in OUTCOMES if holds[name])


def ranked(samples: Sequence[Sample]) -> list[Sample]:
    """Sort the worst first: what the base could do, then what fails; by how much, then in the file's order."""

    def badness(sample: Sample) -> tuple[bool, bool, float]:
        after = share(sample.adapter)
        return sample.passed, not sample.regressed, after - share(sample.base) if sample.regressed else after

    return sorted(samples, key=badness)


def card_of(sample: Sample, reference: str | None) -> Card:
    """Put the answers side by side, the differences from the reference's marked."""
    compared = (sample.rivals.get(reference) if reference is not None else None) or sample.base
    gone, new = _mark(compared, sample.adapter, "the base" if compared is sample.base else "before")
    rivals = sorted(sample.rivals.items(), key=lambda rival: rival[0] != reference)
    named = [("Base", sample.base), ("Adapter", sample.adapter), *rivals][:SIDES]
    sides = [
        _side(name, given, "ins", new)
        if name == "Adapter" and given is sample.adapter
        else _side(name, given, *(("del", gone) if given is compared else ("", {})))
        for name, given in named
    ]
    checks = tuple(_checks([given for _, given in named]))
    return Card(
        sample, visible(sample.id)[:NAME], outcomes_of(sample), tuple(sides), 2 + len(rivals) - len(sides), checks
    )


def counts(samples: Iterable[Sample]) -> dict[str, int]:
    """Count prompts by outcome."""
    found = [outcomes_of(sample) for sample in samples]
    return {name: sum(name in outcomes for outcomes in found) for name in OUTCOMES}


def state(answers: Answers) -> str:
    """Say how many answers passed."""
    passed = sum(answer.passed for answer in answers)
    return f"{passed} of {len(answers)} answers passed" if len(answers) > 1 else ("passed" if passed else "failed")


def missed_checks(answer: SampleAnswer) -> tuple[SampleOutcome, ...]:
    return tuple(outcome for outcome in answer.outcomes if not outcome.passed)


def _side(name: str, given: Answers, mark: str, marked: Mapping[int, Marked]) -> Side:
    attempts = []
    for rank, place in enumerate(_order(given)):
        text, missed = given[place].text, missed_checks(given[place])
        spans = marked[place].spans if place in marked else None
        if spans is None or (rank >= FIRST and len(text) > BRIEF):
            spans = (Span("same", clip(text, TEXT if rank < FIRST else BRIEF, MORE)),) if text else ()
        attempts.append(Attempt(place + 1, given[place], spans, missed[:CHECKS], max(0, len(missed) - CHECKS)))
    notes = {one.note for one in marked.values()}
    note = notes.pop() if len(notes) == 1 and mark == "ins" else ""
    passed = sum(answer.passed for answer in given)
    first, folded = tuple(attempts[:FIRST]), tuple(attempts[FIRST:])
    return Side(name, note, passed, len(given), mark, first, folded, max(0, len(given) - ANSWERS))


def _mark(before: Answers, after: Answers, what: str) -> tuple[dict[int, Marked], dict[int, Marked]]:
    """Mark those answers of the same number that are shown, by number; `what` names those before."""
    shown = {place for place in (*_order(before), *_order(after)) if place < min(len(before), len(after))}
    pairs = {place: _mark_pair(before[place].text, after[place].text, what) for place in shown}
    return {place: old for place, (old, _) in pairs.items()}, {place: new for place, (_, new) in pairs.items()}


def _order(given: Answers) -> list[int]:
    """Places of the answers that are shown, those that failed first."""
    return sorted(range(len(given)), key=lambda place: given[place].passed)[:ANSWERS]


def _mark_pair(before: str, after: str, what: str) -> tuple[Marked, Marked]:
    if not before or not after:
        return Marked(None, ""), Marked(None, "")
    if before == after:
        return Marked(None, ""), Marked(None, f"same as {what}")
    if max(len(before), len(after)) > TEXT:
        return Marked(None, ""), Marked(None, "too long to mark")
    found = compare(before, after)
    if found is None:
        return Marked(None, ""), Marked(None, f"all of it other than {what}")
    return Marked(found[0], ""), Marked(found[1], "")


def _checks(sides: Sequence[Answers]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for place, outcome in enumerate(sides[1][0].outcomes[:CHECKS]):  # the adapter's
        yield outcome.check, tuple(_tally(answers, place) for answers in sides)


def _tally(answers: Answers, place: int) -> str:
    found = [answer.outcomes[place] for answer in answers if place < len(answer.outcomes)]
    passed = sum(outcome.passed for outcome in found)
    if len(found) > 1:
        return f"{passed} of {len(found)}"
    return "" if not found else "✓" if passed else "⚠" if found[0].error else "✗"
