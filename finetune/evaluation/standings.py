"""Every model side by side, in words: the comparison, and scores of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from finetune.evaluation.report import Estimate, Gain, PassRate, PerplexityScore, Report, Rival
from finetune.evaluation.statistics import Interval
from finetune.evaluation.tasks import TaskScore
from finetune.evaluation.tiles import chance, gain_tone, number, percent, points, span, tone


class Cell(NamedTuple):
    """One number of the comparison, its interval, and whether it is good news for the adapter."""

    value: str
    range: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Standing:
    """One model in the comparison, and this report's adapter held against it."""

    name: str
    kind: str
    rate: Cell | None
    heldout: Cell
    general: Cell | None
    gain: Cell | None = None
    heldout_ratio: Cell | None = None
    general_ratio: Cell | None = None
    fixed: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


class TaskRow(NamedTuple):
    """One metric of one lm-eval task: an adapter beside the base."""

    model: str
    task: str
    metric: str
    questions: str
    base: str
    adapter: str
    difference: Cell | None


def standings(report: Report) -> tuple[Standing, ...]:
    """Base, adapter and every rival, each with the paired comparison of the adapter against it."""
    heldout, general, prompts = report.perplexity.heldout, report.perplexity.general, report.prompts
    base = Standing(
        name=report.base,
        kind="base",
        rate=_rate(prompts.base) if prompts else None,
        heldout=_score(heldout.base),
        general=_score(general.base) if general else None,
        gain=_gain(prompts.gain) if prompts else None,
        heldout_ratio=_ratio(heldout.ratio),
        general_ratio=_ratio(general.ratio) if general else None,
    )
    adapter = Standing(
        name=report.name,
        kind="this adapter",
        rate=_rate(prompts.adapter) if prompts else None,
        heldout=_score(heldout.adapter),
        general=_score(general.adapter) if general else None,
    )
    return base, adapter, *map(_rival, report.rivals)


def task_rows(report: Report) -> tuple[TaskRow, ...]:
    """Scores of lm-eval's tasks, this report's adapter first."""
    found = [(report.name, score) for score in report.tasks]
    found += [(rival.name, score) for rival in report.rivals for score in rival.tasks]
    return tuple(_task(model, score) for model, score in found)


def _task(model: str, score: TaskScore) -> TaskRow:
    cut = f", {score.truncated:,} cut to fit" if score.truncated else ""
    gain = None
    if score.difference is not None:
        interval = Interval(score.difference.value, score.difference.low, score.difference.high)
        sign = -1.0 if score.higher_is_better else 1.0
        ends = sorted((sign * interval.low, sign * interval.high))
        news = tone(Interval(sign * interval.value, *ends), 0.0) if score.higher_is_better is not None else ""
        gain = Cell(f"{interval.value:+.3f}", f"{interval.low:+.3f} to {interval.high:+.3f}", news)
    return TaskRow(
        model, score.task, score.metric, f"{score.samples:,}{cut}", number(score.base), number(score.adapter), gain
    )


def _rival(rival: Rival) -> Standing:
    return Standing(
        name=rival.name,
        kind=f"report of {rival.created[:10]}" if rival.created else rival.kind,
        rate=_rate(rival.prompts) if rival.prompts else None,
        heldout=_score(rival.heldout),
        general=_score(rival.general) if rival.general else None,
        gain=_gain(rival.gain) if rival.gain else None,
        heldout_ratio=_ratio(rival.heldout_ratio),
        general_ratio=_ratio(rival.general_ratio) if rival.general_ratio else None,
        fixed=rival.fixed,
        broken=rival.broken,
    )


def _rate(rate: PassRate) -> Cell:
    known = f"{percent(rate.passed / rate.total)}, {percent(rate.low)} to {percent(rate.high)}"
    return Cell(f"{rate.passed:,} of {rate.total:,}", known)


def _score(score: PerplexityScore) -> Cell:
    return Cell(number(score.value), span(score.interval, number))


def _ratio(ratio: Estimate) -> Cell:
    return Cell(f"× {number(ratio.value)}", span(ratio.interval, number), tone(ratio.interval))


def _gain(gain: Gain) -> Cell:
    tail = f"; {chance(gain.p_value)}" if gain.p_value is not None else ""
    return Cell(f"{points(gain.value)} points", f"{span(gain.interval, points)}{tail}", gain_tone(gain))
