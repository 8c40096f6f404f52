"""No worse than the base, or than an earlier report's adapter: decided by pairs, within a margin.

A pass says that the loss is smaller than the margin, a fail that it is larger, each with the gate's
confidence; inconclusive says what more data would take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from finetune.evaluation.blocks import SEED
from finetune.evaluation.bootstrap import scores_no_worse
from finetune.evaluation.power import POWER, detectable_drop, discordant_rate
from finetune.evaluation.report import Answers, Evaluation, GateResult, RowScores, Sample, share
from finetune.evaluation.statistics import Decision, Interval, no_worse, perplexity_no_worse
from finetune.recipe import Metric

HOPELESS = 100  # times as much data: closer to the margin than that, no number is worth printing
MAX_NAMED = 5  # prompts in one reason
COMPARED: tuple[Metric, ...] = ("prompts.pass_rate", "perplexity.heldout", "perplexity.general")


def judge_no_worse(
    metric: Metric,
    found: Evaluation,
    *,
    than: Literal["base", "baseline"],
    rival: str | None,
    margin: float,
    confidence: float,
) -> GateResult:
    """Decide one gate; `rival` is the baseline's name in the evaluation, None for the base."""
    if metric == "prompts.pass_rate":
        decision = _pass_rate(found.samples, rival, margin, confidence)
    else:
        rows = found.scores.heldout if metric == "perplexity.heldout" else found.scores.general
        assert rows is not None  # check_gates has refused it otherwise
        decision = _perplexity(rows, rival, margin, confidence)
    against = f" ({rival})" if rival is not None else ""
    return GateResult(
        metric=metric,
        bound=f"no_worse_than_{than} {margin:g}{against}",
        **decision.drop._asdict(),
        verdict=decision.verdict,
        reason=decision.reason,
    )


def _pass_rate(samples: Sequence[Sample], rival: str | None, margin: float, confidence: float) -> Decision:
    theirs = [sample.base if rival is None else sample.rivals[rival] for sample in samples]
    ours = [sample.adapter for sample in samples]
    before, after = [share(a) for a in theirs], [share(a) for a in ours]
    once = all(len(answers) == 1 for answers in (*theirs, *ours))
    if once:
        decision = no_worse([b == 1 for b in before], [a == 1 for a in after], margin, confidence)
    else:
        decision = scores_no_worse(before, after, margin, SEED, confidence)
    reason = decision.reason
    if decision.verdict == "inconclusive":
        reason += _more_prompts(decision.drop, margin, theirs, ours, confidence)
    broken = [s.id for s, b, a in zip(samples, before, after, strict=True) if a < b]
    if broken and decision.verdict != "pass":
        more = f" and {len(broken) - MAX_NAMED:,} more" if len(broken) > MAX_NAMED else ""
        reason += f"; worse now: {', '.join(broken[:MAX_NAMED])}{more}"
    return decision._replace(reason=reason)


def _perplexity(rows: RowScores, rival: str | None, margin: float, confidence: float) -> Decision:
    theirs = rows.base if rival is None else rows.rivals[rival]
    decision = perplexity_no_worse(theirs, rows.adapter, rows.tokens, margin, confidence)
    if decision.verdict != "inconclusive":
        return decision
    factor = _factor(Interval(*(math.log1p(x) if x > -1 else -math.inf for x in decision.drop)), math.log1p(margin))
    rest = _close() if factor > HOPELESS else f"it would need roughly {max(factor, 1.1):.1f} times as many rows"
    return decision._replace(reason=f"{decision.reason}; {rest}")


def _more_prompts(
    drop: Interval, margin: float, theirs: Sequence[Answers], ours: Sequence[Answers], confidence: float
) -> str:
    """Say how many prompts would decide if they showed the same, and what so many can show at all."""
    total, factor = len(ours), _factor(drop, margin)
    needed = max(total + 1, math.ceil(min(factor, HOPELESS) * total))
    rest = _close() if factor > HOPELESS else f"it would need roughly {needed:,} prompts instead of {total:,}"
    differ = discordant_rate([share(a) > 0.5 for a in theirs], [share(a) > 0.5 for a in ours])
    least = detectable_drop(total, differ.value, confidence)
    shown = f"the smallest drop that {total:,} prompts show {POWER:.0%} of the time is {100 * least:.1f} points"
    return f"; {rest}; {shown if least <= 1 else f'{total:,} prompts cannot show any drop'}"


def _factor(drop: Interval, margin: float) -> float:
    """Estimate how many times as much data would decide: a bound nears the value with the root of the data."""
    gap, reach = margin - drop.value, (drop.high if drop.value <= margin else drop.low) - drop.value
    if not math.isfinite(reach) or abs(gap) < 1e-12:
        return math.inf
    return (reach / gap) ** 2


def _close() -> str:
    return "the margin is about what was measured: more data may not decide it"
