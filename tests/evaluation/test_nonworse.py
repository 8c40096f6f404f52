"""Gates against the base and against a baseline: decided by pairs, and honest about what the data can show."""

from __future__ import annotations

import re

import pytest

from finetune.evaluation.baseline import beside, scores_beside
from finetune.evaluation.gates import apply_gates
from finetune.evaluation.report import Evaluation, GateResult
from finetune.recipe import Gate, Metric
from tests.evaluation.builders import Texts, an_evaluation

OLD = "pizza of 2026-01-02"


def against_baseline(before: Texts, after: Texts, gate: Gate, metric: Metric = "prompts.pass_rate") -> Evaluation:
    earlier = {OLD: an_evaluation(["no"] * len(before), before)}
    now = an_evaluation(["no"] * len(after), after)
    samples, scores = beside(now.samples, earlier), scores_beside(now.scores, earlier)
    return apply_gates({metric: gate}, now.model_copy(update={"samples": samples, "scores": scores}), OLD)


def against_base(base: Texts, adapter: Texts, gate: Gate, metric: Metric = "prompts.pass_rate") -> GateResult:
    return apply_gates({metric: gate}, an_evaluation(base, adapter)).report.gates[0]


def answers(passed: int, total: int) -> list[str]:
    return ["pizza"] * passed + ["no"] * (total - passed)


@pytest.mark.parametrize(
    ("before", "after", "margin", "verdict"),
    [(180, 180, 0.05, "pass"), (180, 130, 0.05, "fail"), (180, 171, 0.05, "inconclusive"), (100, 180, 0.0, "pass")],
)
def test_a_drop_is_decided_by_pairs(before: int, after: int, margin: float, verdict: str) -> None:
    then, now = answers(before, 200), answers(after, 200)
    made = against_baseline(then, now, Gate(no_worse_than_baseline=margin)).report
    (gate,) = made.gates
    assert (gate.verdict, made.verdict) == (verdict, verdict)
    assert gate.value == pytest.approx((before - after) / 200)
    assert gate.bound == f"no_worse_than_baseline {margin:g} ({OLD})"
    assert against_base(then, now, Gate(no_worse_than_base=margin)).verdict == verdict
    if verdict == "fail":
        assert f"worse now: p-{after}, p-{after + 1}," in gate.reason
        assert "and 45 more" in gate.reason


def test_an_open_gate_says_what_would_close_it() -> None:
    gate = against_base(answers(180, 200), answers(171, 200), Gate(no_worse_than_base=0.06))
    assert gate.verdict == "inconclusive"
    found = re.search(r"roughly ([\d,]+) prompts instead of 200", gate.reason)
    assert found is not None, gate.reason
    times = int(found.group(1).replace(",", "")) / 200
    assert 1 < times < 20
    more = round(times) + 1
    closed = against_base(
        answers(180 * more, 200 * more), answers(171 * more, 200 * more), Gate(no_worse_than_base=0.06)
    )
    assert closed.verdict == "pass"
    shown = re.search(r"the smallest drop that 200 prompts show 90% of the time is ([\d.]+) points", gate.reason)
    assert shown is not None, gate.reason
    assert 2 < float(shown.group(1)) < 10
    few = against_base(answers(3, 3), answers(2, 3), Gate(no_worse_than_base=0.06)).reason
    assert "3 prompts cannot show any drop" in few
    even = against_base(answers(180, 200), answers(170, 200), Gate(no_worse_than_base=0.05)).reason
    assert "more data may not decide it" in even


def test_a_higher_confidence_asks_for_more() -> None:
    verdicts = [
        against_base(answers(150, 200), answers(149, 200), Gate(no_worse_than_base=0.05, confidence=confidence)).verdict
        for confidence in (0.8, 0.9999999)
    ]
    assert verdicts == ["pass", "inconclusive"]


def test_prompts_that_are_answered_several_times_count_by_their_share() -> None:
    steady, wavering = [["pizza"] * 4] * 60, [["pizza", "no"] * 2] * 60
    assert against_base(steady, steady, Gate(no_worse_than_base=0.1)).verdict == "pass"
    worse = against_base(steady, wavering, Gate(no_worse_than_base=0.1))
    assert (worse.verdict, worse.value) == ("fail", 0.5)
    assert against_base(wavering, steady, Gate(no_worse_than_base=0.0)).verdict == "pass"


@pytest.mark.parametrize(
    ("metric", "margin", "verdict"),
    [
        ("perplexity.heldout", 0.0, "pass"),
        ("perplexity.general", 0.0, "inconclusive"),
        ("perplexity.general", 0.02, "pass"),
    ],
)
def test_perplexity_may_not_rise_beyond_the_margin(metric: Metric, margin: float, verdict: str) -> None:
    """In the builder the adapter's held-out perplexity is e^-0.8 of the base's, its general one about the same."""
    gate = against_base([], [], Gate(no_worse_than_base=margin), metric)
    assert gate.verdict == verdict
    assert gate.value == pytest.approx(2.718**-0.8 - 1 if metric == "perplexity.heldout" else 0.005, abs=0.02)
    assert ("roughly 3.7 times as many rows" in gate.reason) == (verdict == "inconclusive")
    assert "the rise" in gate.reason


def test_a_rise_beyond_the_margin_fails() -> None:
    made = an_evaluation()
    swapped = made.scores.heldout.model_copy(
        update={"base": made.scores.heldout.adapter, "adapter": made.scores.heldout.base}
    )
    worse = made.model_copy(update={"scores": made.scores.model_copy(update={"heldout": swapped})})
    gate = apply_gates({"perplexity.heldout": Gate(no_worse_than_base=0.5)}, worse).report.gates[0]
    assert (gate.verdict, round(gate.value, 1)) == ("fail", 1.2)


def test_perplexity_is_held_against_the_baseline_row_by_row() -> None:
    made = against_baseline(["no"], ["no"], Gate(no_worse_than_baseline=0.0), "perplexity.heldout").report.gates[0]
    assert (made.verdict, made.value) == ("pass", 0.0)
    assert made.bound.endswith(f"({OLD})")
