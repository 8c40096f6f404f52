"""An earlier report as the bar: the same prompts, answered under the same conditions, must not do worse.

Prompts are aligned by id. Anything else that would change the answers or their grading must be equal,
and what is not is named: a comparison under other conditions says nothing about the adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from finetune.errors import DataError
from finetune.evaluation.checks import describe
from finetune.evaluation.gates import overall
from finetune.evaluation.report import GateResult, Report, Sample, read_report
from finetune.evaluation.statistics import CONFIDENCE, Interval, mcnemar, no_worse, paired_gain
from finetune.evaluation.suite import Prompt

MARGIN = 0.05  # drop in pass rate that is put up with
MAX_NAMED = 20  # mismatches in one message
SHOWN = 60  # characters of a value


class Baseline(NamedTuple):
    report: Report
    samples: tuple[Sample, ...]
    where: str


class Asked(NamedTuple):
    """What a prompt asks, and what its answer must fulfil."""

    id: str
    turns: tuple[tuple[str, str], ...]
    checks: tuple[str, ...]


def read_baseline(path: str | Path) -> Baseline:
    """Read a report folder, or the report.json in one. Raises DataError."""
    folder = Path(path).parent if Path(path).name == "report.json" else Path(path)
    report, file = read_report(folder), folder / "samples.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        samples = tuple(Sample.model_validate_json(line) for line in lines if line)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"cannot be read ({str(error).splitlines()[0]})", where=str(file)) from None
    if not samples:
        raise DataError("the baseline answered no prompts", where=str(file), fix="evaluate it with eval.prompts")
    return Baseline(report, samples, str(folder))


def refuse_mismatch(baseline: Baseline, conditions: Mapping[str, str], prompts: Sequence[Prompt]) -> None:
    """Raise DataError naming everything in which the baseline differs from what is to be evaluated."""
    asked = map(_asked, prompts)
    found = [*_conditions(baseline.report.conditions, conditions), *_prompts(baseline.samples, asked)]
    if found:
        more = [f"... and {len(found) - MAX_NAMED} more"] if len(found) > MAX_NAMED else []
        lines = "\n".join([*found[:MAX_NAMED], *more])
        fix = "make a new baseline: finetune eval without --baseline, and keep its report folder"
        raise DataError(f"is no baseline for this evaluation:\n{lines}\n{fix}", where=baseline.where)


def hold_against(baseline: Baseline, report: Report, samples: Sequence[Sample], margin: float = MARGIN) -> Report:
    """Return the report with one more gate: the pass rate drops by at most `margin` against the baseline."""
    now = {sample.id: sample.adapter.passed for sample in samples}
    before = [sample.adapter.passed for sample in baseline.samples]
    after = [now[sample.id] for sample in baseline.samples]
    decision = no_worse(before, after, margin, CONFIDENCE)
    broken = [s.id for s, then in zip(baseline.samples, before, strict=True) if then and not now[s.id]]
    reason = decision.reason + (f"; passed before and not now: {', '.join(broken[:5])}" if broken else "")
    reason += f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    name, day = baseline.report.name, baseline.report.created[:10]
    gate = GateResult(
        metric="prompts.drop",
        bound=f"at_most {margin:g} against {name} of {day}",
        **decision.drop._asdict(),
        verdict=decision.verdict,
        reason=reason,
    )
    gates = (*report.gates, gate)
    return report.model_copy(update={"gates": gates, "verdict": overall(gates)})


class Paired(NamedTuple):
    """Two reports' adapters on the same prompts."""

    differences: tuple[str, ...]  # why they cannot be compared; empty if they can
    gain: Interval  # pass rate of the second minus that of the first
    p_value: float  # exact McNemar, two-sided
    fixed: tuple[str, ...]  # prompts that only the second passed
    broken: tuple[str, ...]  # prompts that only the first passed


def pair(first: Baseline, second: Baseline) -> Paired:
    """Compare the adapters of two saved reports, prompt by prompt, over the prompts that both answered."""
    asked = [Asked(s.id, _turns(s), tuple(o.check for o in s.adapter.outcomes)) for s in second.samples]
    conditions = second.report.conditions
    found = (*_conditions(first.report.conditions, conditions), *_prompts(first.samples, asked))
    then = {sample.id: sample.adapter.passed for sample in first.samples}
    now = {sample.id: sample.adapter.passed for sample in second.samples if sample.id in then}
    if not now:
        return Paired(found, Interval(0.0, -1.0, 1.0), 1.0, (), ())
    before, after = [then[name] for name in now], list(now.values())
    return Paired(
        found,
        paired_gain(before, after),
        mcnemar(before, after),
        tuple(name for name in now if now[name] and not then[name]),
        tuple(name for name in now if then[name] and not now[name]),
    )


def _conditions(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if not then:
        yield "it does not say under which conditions it was made (a report of an earlier version)"
        return
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield f"{name}: the baseline has {_shown(then.get(name))}, this evaluation {_shown(now.get(name))}"


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
        if tuple(outcome.check for outcome in then[name].adapter.outcomes) != now[name].checks:
            yield f"prompt {name!r} has other checks"


def _turns(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content) for turn in sample.messages)


def _shown(value: str | None) -> str:
    if value is None:
        return "nothing"
    return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}...")
