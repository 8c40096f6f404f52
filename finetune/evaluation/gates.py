"""Gates: conditions on metrics that decide the verdict, by intervals and never by a bare number.

An interval wholly on the good side of the bound passes, wholly on the bad side fails. Anything else
is inconclusive: the data cannot tell. Gates against the base or a baseline: `nonworse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from finetune.errors import RecipeError
from finetune.evaluation.nonworse import COMPARED, HOPELESS, judge_no_worse
from finetune.evaluation.report import Evaluation, GateResult, PerplexityPair, Report, Verdict
from finetune.evaluation.statistics import Interval, normal_quantile
from finetune.recipe import EvalSection, Gate, Metric

BASELINE_MARGIN = 0.05  # of the gate against a baseline where the recipe has none
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
    _refuse(section, lambda metric, gate: _unmeasured(section, metric) or _unreachable(metric, gate))


def gates_of(section: EvalSection, *, baseline: bool) -> dict[Metric, Gate]:
    """Return the recipe's gates, and one against the baseline if there is a baseline of which none speaks.

    Raises RecipeError for a gate against a baseline where there is none.
    """
    check_gates(section)
    missing = "no_worse_than_baseline needs an earlier report; give one with --baseline FOLDER"
    _refuse(section, lambda _, gate: missing if gate.no_worse_than_baseline is not None and not baseline else "")
    gates = dict(section.gates)
    if baseline and all(gate.no_worse_than_baseline is None for gate in gates.values()):
        metric: Metric = "prompts.pass_rate" if section.prompts else "perplexity.heldout"
        own = gates[metric].bounds() if metric in gates else {}
        gates[metric] = Gate(**own, no_worse_than_baseline=BASELINE_MARGIN)
    return gates


def _refuse(section: EvalSection, problem_of: Callable[[Metric, Gate], str]) -> None:
    found = {metric: problem_of(metric, gate) for metric, gate in section.gates.items()}
    if any(found.values()):
        raise RecipeError("\n".join(f"eval.gates.{metric}: {problem}" for metric, problem in found.items() if problem))


def judge(gates: Mapping[Metric, Gate], found: Evaluation, baseline: str | None = None) -> tuple[GateResult, ...]:
    """Decide every bound of every gate; `baseline` is its name among the rivals.

    Raises RecipeError if one needs a metric that the report has not.
    """
    return tuple(result for metric, gate in gates.items() for result in _results(metric, gate, found, baseline))


def overall(results: Sequence[GateResult]) -> Verdict | Literal["none"]:
    """Return fail if any gate failed, else inconclusive if any is, else pass; none without gates."""
    verdicts = {result.verdict for result in results}
    for verdict in ("fail", "inconclusive", "pass"):
        if verdict in verdicts:
            return verdict
    return "none"


def apply_gates(gates: Mapping[Metric, Gate], found: Evaluation, baseline: str | None = None) -> Evaluation:
    """Return the evaluation with its gates decided and its verdict."""
    results = judge(gates, found, baseline)
    report = found.report.model_copy(update={"gates": results, "verdict": overall(results)})
    return found.model_copy(update={"report": report})


def _results(metric: Metric, gate: Gate, found: Evaluation, baseline: str | None) -> Iterator[GateResult]:
    if gate.at_least is not None:
        yield _judge(metric, "at_least", gate.at_least, found.report)
    if gate.at_most is not None:
        yield _judge(metric, "at_most", gate.at_most, found.report)
    options = {"confidence": gate.confidence}
    if gate.no_worse_than_base is not None:
        yield judge_no_worse(metric, found, than="base", rival=None, margin=gate.no_worse_than_base, **options)
    if gate.no_worse_than_baseline is not None:
        assert baseline is not None  # gates_of has refused it otherwise
        margin = gate.no_worse_than_baseline
        yield judge_no_worse(metric, found, than="baseline", rival=baseline, margin=margin, **options)


def _judge(metric: Metric, direction: str, bound: float, report: Report) -> GateResult:
    interval = METRICS[metric](report)
    if interval is None:
        raise RecipeError(f"eval.gates.{metric}: was not measured; {_missing_key(metric)}")
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


def _unmeasured(section: EvalSection, metric: str) -> str:
    missing = (metric.startswith("prompts") and not section.prompts) or (
        metric.startswith("perplexity.general") and not section.general
    )
    return f"would not be measured; {_missing_key(metric)}" if missing else ""


def _missing_key(metric: str) -> str:
    if metric.startswith("prompts"):
        return "set eval.prompts to a file of held-out prompts"
    return "set eval.general to a file of general conversations"


def _unreachable(metric: Metric, gate: Gate) -> str:
    lowest, highest = ENDS[metric]
    for key, bound in gate.bounds().items():
        if key.startswith("no_worse") and metric not in COMPARED:
            return f"{key}: this metric is a comparison already; write it for one of {', '.join(COMPARED)}"
        if not math.isfinite(bound):
            return f"{key} {bound} is no number"
        if key == "at_least" and bound >= highest:
            return f"no interval lies wholly at or above {bound:g}; choose a bound below {highest:g}"
        if key == "at_most" and bound <= lowest:
            return f"no interval lies wholly at or below {bound:g}; choose a bound above {lowest:g}"
        if key.startswith("no_worse") and (bound < 0 or (metric == "prompts.pass_rate" and bound >= 1)):
            most = "below 1, 0.05 being 5 points" if metric == "prompts.pass_rate" else "0.05 being 5% more"
            return f"{key} {bound:g}: the margin should be 0 or more, {most}"
    return ""
