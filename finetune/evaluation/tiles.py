"""Numbers of a report in words, and its headlines with their place on an axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from finetune.evaluation.power import DISCORDANT
from finetune.evaluation.report import Gain, PerplexityPair, Repeats, Report
from finetune.evaluation.statistics import Interval


@dataclass(frozen=True)
class Axis:
    """Where an interval lies, in percent of the axis, and what its left end, mark and right end are."""

    low: float
    value: float
    high: float
    mark: float = 50.0
    ends: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True)
class Tile:
    """One headline: a title, the number, what it means, and where its interval lies."""

    title: str
    number: str
    meaning: str
    detail: str = ""
    tone: str = "none"  # good, bad, unclear or none
    axis: Axis | None = None


def headline(report: Report) -> str:
    """Say in one sentence which gates decided."""
    total = len(report.gates)
    if report.verdict == "none":
        return "No gates in the recipe: these are the numbers, without a verdict."
    if report.verdict == "pass":
        return "The gate passed." if total == 1 else f"All {total} gates passed."
    named = [gate.metric for gate in report.gates if gate.verdict == report.verdict]
    undecided = ("is" if len(named) == 1 else "are") + " undecided: too little data"
    verb = "failed" if report.verdict == "fail" else undecided
    return f"{len(named)} of {total} gate{'s' * (total > 1)} {verb} ({', '.join(dict.fromkeys(named))})."


def tiles_of(report: Report) -> tuple[Tile, ...]:
    """Return the headlines: held-out answers, forgetting, prompts, and prompts answered several times."""
    tiles = (_heldout(report), _general(report), _prompts(report))
    repeats = report.prompts.repeats if report.prompts else None
    return (*tiles, _repeats(repeats)) if repeats else tiles


def detectable(report: Report) -> str:
    """Say how small a drop in pass rate the prompts would show; empty without prompts."""
    if report.prompts is None:
        return ""
    drop = report.prompts.detectable_drop
    if not 0 < drop <= 1:
        return "There are too few prompts: no drop from one adapter to the next is seen 9 times out of 10."
    points = math.ceil(round(100 * drop, 6))  # never less than what was promised
    what = f"So many prompts show a drop of {points} points or more from one adapter to the next 9 times out of 10"
    return f"{what}, if {DISCORDANT:.0%} of them tell the two apart."


def tone(interval: Interval, neutral: float = 1.0) -> str:
    """Judge an interval where less is better."""
    return "good" if interval.high < neutral else "bad" if interval.low > neutral else "unclear"


def gain_tone(gain: Gain) -> str:
    """Judge a gain in pass rate, where more is better."""
    return tone(Interval(-gain.value, -gain.high, -gain.low), 0.0)


def number(value: float) -> str:
    """Write a ratio or a perplexity with three digits or more."""
    return f"{value:.3f}" if abs(value) < 10 else short(value)


def short(value: float) -> str:
    """Write a number as briefly as a headline wants it."""
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float) -> str:
    return f"{value:.1%}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def span(interval: Interval, write: Callable[[float], str]) -> str:
    """Write the ends of an interval."""
    return f"{write(interval.low)} to {write(interval.high)}"


def chance(p_value: float | None) -> str:
    """Write a p-value; empty where there is none."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _heldout(report: Report) -> Tile:
    pair = report.perplexity.heldout
    ratio = pair.ratio.interval
    return Tile(
        "Held-out perplexity",
        f"{short(pair.base.value)} → {short(pair.adapter.value)}",
        _meaning(ratio, "the adapter predicts held-out answers"),
        f"adapter {span(pair.adapter.interval, short)}; ratio {number(ratio.value)}, {span(ratio, number)}",
        _gate_tone(report, "perplexity.heldout") or tone(ratio),
        _ratio_axis(pair),
    )


def _general(report: Report) -> Tile:
    pair = report.perplexity.general
    title = "Forgetting (perplexity of general text)"
    if pair is None:
        return Tile(title, "not measured", "set eval.general to see what the adapter forgot")
    ratio = pair.ratio.interval
    return Tile(
        title,
        f"× {number(ratio.value)}",
        _meaning(ratio, "the adapter predicts general text"),
        f"ratio {span(ratio, number)}; {short(pair.base.value)} → {short(pair.adapter.value)}",
        _gate_tone(report, "perplexity.general") or tone(ratio),
        _ratio_axis(pair),
    )


def _prompts(report: Report) -> Tile:
    if report.prompts is None:
        return Tile("Prompts passed", "not measured", "set eval.prompts to check answers")
    base, adapter, gain = report.prompts.base, report.prompts.adapter, report.prompts.gain
    several = report.prompts.repeats is not None
    meaning = f"{points(gain.value)} points, {span(gain.interval, points)}"
    low, value, high = (50 + 50 * end for end in (gain.low, gain.value, gain.high))
    return Tile(
        "Answers passed" if several else "Prompts passed",
        f"{base.passed:,} → {adapter.passed:,} of {adapter.total:,}",
        "; ".join(part for part in (meaning, chance(gain.p_value)) if part),
        f"adapter {percent(adapter.passed / adapter.total)}, {percent(adapter.low)} to {percent(adapter.high)}",
        _gate_tone(report, "prompts") or gain_tone(gain),
        Axis(low, value, high, ends=("−100", "no change", "+100 points")),
    )


def _repeats(repeats: Repeats) -> Tile:
    every, some = repeats.pass_all, repeats.pass_any
    flaky = len(repeats.flaky)
    low, value, high = (100 * end for end in (every.adapter.low, every.adapter.value, every.adapter.high))
    return Tile(
        f"All of {repeats.k} answers pass (pass^{repeats.k})",
        f"{percent(every.base.value)} → {percent(every.adapter.value)}",
        f"{flaky:,} of {repeats.prompts:,} prompts {'is' if flaky == 1 else 'are'} flaky: passed in some answers only",
        f"adapter {span(every.adapter.interval, percent)}; at least one passes (pass@{repeats.k}): "
        f"{percent(some.base.value)} → {percent(some.adapter.value)}",
        "none",
        Axis(low, value, high, 100 * every.base.value, ("0%", "", "100%")),
    )


def _ratio_axis(pair: PerplexityPair) -> Axis:
    """Place a ratio on a logarithmic axis with 1 in the middle, wide enough for its interval."""
    interval = pair.ratio.interval
    finite = [max(x, 1 / x) for x in interval if 0 < x < math.inf]
    reach = next((r for r in (1.05, 1.2, 1.5, 2, 4, 10, 100, 1_000, 1e6) if r >= max(finite, default=1.0)), 1e12)
    low, value, high = (_log_place(x, reach) for x in (interval.low, interval.value, interval.high))
    return Axis(low, value, high, ends=(f"÷ {reach:g} better", "1", f"× {reach:g} worse"))


def _log_place(x: float, reach: float) -> float:
    if x <= 0:
        return 0.0
    return max(0.0, min(100.0, 50 + 50 * math.log(x) / math.log(reach))) if x < math.inf else 100.0


def _gate_tone(report: Report, prefix: str) -> str | None:
    """Colour a tile by the worst of its gates: who wrote a gate has said what is acceptable."""
    verdicts = {gate.verdict for gate in report.gates if gate.metric.startswith(prefix)}
    tones = {"fail": "bad", "inconclusive": "unclear", "pass": "good"}
    return next((tone for verdict, tone in tones.items() if verdict in verdicts), None)


def _meaning(ratio: Interval, claim: str) -> str:
    """Say in words what the ratio of two perplexities means."""
    change = f"{abs(ratio.value - 1):.1%} {'lower' if ratio.value < 1 else 'higher'}"
    if tone(ratio) == "unclear":
        return "unchanged" if ratio.value == 1 else f"{change}, which may be chance"
    return f"{change}: {claim} {'better' if tone(ratio) == 'good' else 'worse'}"
