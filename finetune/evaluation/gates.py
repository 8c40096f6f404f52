"""Gates: conditions on metrics that decide the verdict, by intervals and never by a bare number.

An interval wholly on the good side of the bound passes, wholly on the bad side fails. Anything else
is inconclusive: the data cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from finetune.errors import RecipeError
from finetune.evaluation.report import GateResult, PerplexityPair, Report, Verdict
from finetune.evaluation.statistics import Interval, normal_quantile
from finetune.recipe import EvalSection, Gate, Metric

HOPELESS = 100  # times as much data: closer to the bound than that, no number is worth printing
Measure = Callable[[Report], Interval | None]


def _pass_rate(report: Report) -> Interval | None:
    if report.prompts is None:
        return None
    adapter = report.prompts.adapter
    return Interval(adapter.passed / adapter.total, adapter.low, adapter.high)


def _gain(report: Report) -> Interval | None:
    return report.prompts.gain.interval if report.prompts else None


def _adapter(pair: PerplexityPair | None) -> Interval | None:
    return pair.adapter.interval if pair else None


def _ratio(pair: PerplexityPair | None) -> Interval | None:
    return pair.ratio.interval if pair else None


METRICS: dict[str, Measure] = {
    "prompts.pass_rate": _pass_rate,
    "prompts.gain": _gain,
    "perplexity.heldout": lambda report: _adapter(report.perplexity.heldout),
    "perplexity.heldout.ratio": lambda report: _ratio(report.perplexity.heldout),
    "perplexity.general": lambda report: _adapter(report.perplexity.general),
    "perplexity.general.ratio": lambda report: _ratio(report.perplexity.general),
}
ENDS = {  # of the values a metric can take; an interval comes close to them but never reaches them
    "prompts.pass_rate": (0.0, 1.0),
    "prompts.gain": (-1.0, 1.0),
    "perplexity.heldout": (1.0, math.inf),
    "perplexity.heldout.ratio": (0.0, math.inf),
    "perplexity.general": (1.0, math.inf),
    "perplexity.general.ratio": (0.0, math.inf),
}


def check_gates(section: EvalSection) -> None:
    """Refuse gates that no evaluation could decide. Raises RecipeError naming every one."""
    mistakes = [
        f"eval.gates.{metric}: {problem}"
        for metric, gate in section.gates.items()
        if (problem := _unmeasured(section, metric) or _unreachable(metric, gate))
    ]
    if mistakes:
        raise RecipeError("\n".join(mistakes))


def judge(gates: Mapping[Metric, Gate], report: Report) -> tuple[GateResult, ...]:
    """Decide every gate. Raises RecipeError if one needs a metric that the report has not."""
    return tuple(_judge(metric, gate, report) for metric, gate in gates.items())


def overall(results: Sequence[GateResult]) -> Verdict | Literal["none"]:
    """Return fail if any gate failed, else inconclusive if any is, else pass; none without gates."""
    verdicts = {result.verdict for result in results}
    for verdict in ("fail", "inconclusive", "pass"):
        if verdict in verdicts:
            return verdict
    return "none"


def apply_gates(gates: Mapping[Metric, Gate], report: Report) -> Report:
    """Return the report with its gates decided and its verdict."""
    results = judge(gates, report)
    return report.model_copy(update={"gates": results, "verdict": overall(results)})


def _judge(metric: str, gate: Gate, report: Report) -> GateResult:
    interval = METRICS[metric](report)
    if interval is None:
        raise RecipeError(f"eval.gates.{metric}: was not measured; {_missing_key(metric)}")
    direction, bound = _bound(gate)
    good, bad = ("at or above", "below") if direction == "at_least" else ("at or below", "above")
    if interval.low >= bound if direction == "at_least" else interval.high <= bound:
        verdict, reason = _decided("pass", good, bound)
    elif interval.high < bound if direction == "at_least" else interval.low > bound:
        verdict, reason = _decided("fail", bad, bound)
    else:
        verdict, reason = "inconclusive", _too_little(metric, bound, interval, report)
    return GateResult(
        metric=metric, bound=f"{direction} {bound:g}", **interval._asdict(), verdict=verdict, reason=reason
    )


def _decided(verdict: Verdict, side: str, bound: float) -> tuple[Verdict, str]:
    return verdict, f"the whole 95% interval is {side} {bound:g}"


def _too_little(metric: str, bound: float, interval: Interval, report: Report) -> str:
    """Say how wide the interval is and how much more data would roughly take the bound out of it."""
    if math.isinf(interval.high):
        return "a single example has no interval; add examples"
    now = f"the 95% interval is ±{(interval.high - interval.low) / 2:.3g} and contains {bound:g}"
    total = report.prompts.base.total if report.prompts and metric.startswith("prompts") else None
    factor = _factor(metric, bound, interval, total or 1)
    if factor > HOPELESS:
        return f"{now}, which is about what was measured: more data may not decide it"
    if total is None:
        return f"{now}; it would need roughly {max(factor, 1.1):.1f} times as many examples"
    return f"{now}; it would need roughly {max(math.ceil(factor * total), total + 1):,} prompts instead of {total:,}"


def _factor(metric: str, bound: float, interval: Interval, total: int) -> float:
    """Estimate how many times as much data would decide, if it measured the same value again."""
    value, low, high = interval
    if math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12):
        return math.inf
    if metric == "prompts.pass_rate":
        # Wilson's interval leaves out the bound exactly when the score test rejects it.
        return normal_quantile() ** 2 * bound * (1 - bound) / (value - bound) ** 2 / total
    if metric == "prompts.gain":
        return (((value - low) if value > bound else (high - value)) / (value - bound)) ** 2
    # Perplexity intervals are symmetric in the logarithm and shrink with the root of the examples.
    return (math.log(high / value) / math.log(bound / value)) ** 2


def _bound(gate: Gate) -> tuple[str, float]:
    if gate.at_least is not None:
        return "at_least", gate.at_least
    return "at_most", gate.at_most if gate.at_most is not None else math.nan  # the recipe allows exactly one


def _unmeasured(section: EvalSection, metric: str) -> str:
    missing = (metric.startswith("prompts") and not section.prompts) or (
        metric.startswith("perplexity.general") and not section.general
    )
    return f"would not be measured; {_missing_key(metric)}" if missing else ""


def _missing_key(metric: str) -> str:
    if metric.startswith("prompts"):
        return "set eval.prompts to a file of held-out prompts"
    return "set eval.general to a file of general conversations"


def _unreachable(metric: str, gate: Gate) -> str:
    direction, bound = _bound(gate)
    if not math.isfinite(bound):
        return f"{direction} {bound} is no number"
    lowest, highest = ENDS[metric]
    if direction == "at_least" and bound >= highest:
        return f"no interval lies wholly at or above {bound:g}; choose a bound below {highest:g}"
    if direction == "at_most" and bound <= lowest:
        return f"no interval lies wholly at or below {bound:g}; choose a bound above {lowest:g}"
    return ""
