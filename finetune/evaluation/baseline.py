"""Earlier reports as a bar: the same prompts, answered under the same conditions.

Prompts are aligned by id, rows by their place. Anything else that would change the answers, their
grading or the scored tokens must be equal, and what is not is named: a comparison under other
conditions says nothing about the adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from finetune.errors import DataError
from finetune.evaluation.bootstrap import paired_bootstrap
from finetune.evaluation.checks import describe
from finetune.evaluation.report import Answers, Evaluation, RowScores, Sample, ScoreTable, share
from finetune.evaluation.statistics import Interval, mcnemar, paired_gain
from finetune.evaluation.suite import Prompt

MAX_NAMED = 20  # mismatches in one message
SHOWN = 60  # characters of a value


class Asked(NamedTuple):
    """What a prompt asks, and what its answer must fulfil."""

    id: str
    turns: tuple[tuple[str, str], ...]
    checks: tuple[str, ...]


class Paired(NamedTuple):
    """Two reports' adapters on the same prompts."""

    differences: tuple[str, ...]  # why they cannot be compared; empty if they can
    gain: Interval  # pass rate of the second minus that of the first
    p_value: float | None  # exact McNemar, two-sided; None where prompts were answered several times
    fixed: tuple[str, ...]  # prompts that the second passes more often
    broken: tuple[str, ...]  # prompts that the first passes more often


def refuse_mismatch(earlier: Evaluation, where: str, conditions: Mapping[str, str], prompts: Sequence[Prompt]) -> None:
    """Raise DataError naming everything in which an earlier report differs from what is to be evaluated."""
    found = [*_conditions(earlier.report.conditions, conditions), *_prompts(earlier.samples, map(_asked, prompts))]
    if found:
        more = [f"... and {len(found) - MAX_NAMED} more"] if len(found) > MAX_NAMED else []
        raise DataError(
            "\n".join(["cannot be compared with this evaluation:", *found[:MAX_NAMED], *more]),
            where=where,
            fix="evaluate both adapters under the same conditions, or make a new baseline",
        )


def pair(first: Evaluation, second: Evaluation) -> Paired:
    """Compare the adapters of two saved reports, prompt by prompt, over the prompts that both answered."""
    asked = [Asked(s.id, _turns(s), _checks(s.adapter)) for s in second.samples]
    found = (*_conditions(first.report.conditions, second.report.conditions), *_prompts(first.samples, asked))
    then = {sample.id: sample.adapter for sample in first.samples}
    pairs = [(s.id, then[s.id], s.adapter) for s in second.samples if s.id in then]
    if not pairs:
        return Paired(found, Interval(0.0, -1.0, 1.0), 1.0, (), ())
    before, after = [share(old) for _, old, _ in pairs], [share(new) for _, _, new in pairs]
    once = all(len(old) == len(new) == 1 for _, old, new in pairs)
    flags = [value == 1 for value in before], [value == 1 for value in after]
    return Paired(
        found,
        paired_gain(*flags) if once else paired_bootstrap(before, after, seed=0),
        mcnemar(*flags) if once else None,
        tuple(name for name, old, new in pairs if share(new) > share(old)),
        tuple(name for name, old, new in pairs if share(new) < share(old)),
    )


def beside(samples: Sequence[Sample], earlier: Mapping[str, Evaluation]) -> tuple[Sample, ...]:
    """Put earlier reports' answers, by the names they get here, beside these."""
    answers = {name: {sample.id: sample.adapter for sample in found.samples} for name, found in earlier.items()}
    return tuple(
        sample.model_copy(update={"rivals": {**sample.rivals, **{name: by[sample.id] for name, by in answers.items()}}})
        for sample in samples
    )


def scores_beside(scores: ScoreTable, earlier: Mapping[str, Evaluation]) -> ScoreTable:
    """Put earlier reports' scores, by the names they get here, beside these."""

    def joined(rows: RowScores, theirs: Mapping[str, RowScores | None]) -> RowScores:
        nll = {name: found.adapter for name, found in theirs.items() if found is not None}
        return rows.model_copy(update={"rivals": {**rows.rivals, **nll}})

    return ScoreTable(
        heldout=joined(scores.heldout, {name: found.scores.heldout for name, found in earlier.items()}),
        general=joined(scores.general, {name: found.scores.general for name, found in earlier.items()})
        if scores.general
        else None,
    )


def _conditions(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if not then:
        yield "it does not say under which conditions it was made"
        return
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield f"{name}: the earlier one has {_shown(then.get(name))}, this one {_shown(now.get(name))}"


def _asked(prompt: Prompt) -> Asked:
    turns = tuple((message.role, message.content) for message in prompt.messages)
    return Asked(prompt.id, turns, tuple(describe(check) for check in prompt.checks))


def _prompts(samples: Sequence[Sample], asked: Iterable[Asked]) -> Iterator[str]:
    then, now = {sample.id: sample for sample in samples}, {prompt.id: prompt for prompt in asked}
    if len(then) < len(samples):
        yield "samples.jsonl has an id twice"
    for name in sorted(now.keys() - then.keys()):
        yield f"prompt {name!r} is new"
    for name in sorted(then.keys() - now.keys()):
        yield f"prompt {name!r} is missing now"
    for name in sorted(then.keys() & now.keys()):
        if _turns(then[name]) != now[name].turns:
            yield f"prompt {name!r} has another text"
        if _checks(then[name].adapter) != now[name].checks:
            yield f"prompt {name!r} has other checks"


def _turns(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content) for turn in sample.messages)


def _checks(answers: Answers) -> tuple[str, ...]:
    return tuple(outcome.check for outcome in answers[0].outcomes)


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}...")
