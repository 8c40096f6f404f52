from __future__ import annotations

import math
import random
import re
from typing import get_args

import pytest
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.evaluation.gates import METRICS, apply_gates, check_gates, gates_of, judge, overall
from finetune.evaluation.report import (
    Estimate,
    Evaluation,
    Gain,
    GateResult,
    PassRate,
    Perplexity,
    PerplexityPair,
    PerplexityScore,
    Prompts,
    Report,
    RowScores,
    ScoreTable,
    Verdict,
    Versions,
)
from finetune.evaluation.statistics import Interval, mcnemar, paired_gain, wilson
from finetune.recipe import EvalSection, Gate, GenerationSection, Metric

HALVED = Interval(0.5, 0.4, 0.625)


def pair(ratio: Interval) -> PerplexityPair:
    score = PerplexityScore(value=10.0, low=8.0, high=12.5, nll=1.0, tokens=1, bits_per_byte=1.0)
    return PerplexityPair(base=score, adapter=score, ratio=Estimate(**ratio._asdict()))


def rate(passed: int, total: int) -> PassRate:
    interval = wilson(passed, total)
    return PassRate(passed=passed, total=total, low=interval.low, high=interval.high)


def a_report(base: int = 10, adapter: int = 90, total: int = 100, ratio: Interval = HALVED) -> Report:
    before, after = ([i < passed for i in range(total)] for passed in (base, adapter))
    gain = Gain(**paired_gain(before, after)._asdict(), p_value=mcnemar(before, after))
    return Report(
        name="a",
        base="b",
        created="2026-01-02T03:04:05Z",
        versions=Versions(python="", torch="", transformers="", peft="", bitsandbytes="", finetune=""),
        seed=0,
        generation=GenerationSection(),
        data={},
        perplexity=Perplexity(heldout=pair(ratio), general=pair(ratio)),
        prompts=Prompts(
            base=rate(base, total),
            adapter=rate(adapter, total),
            gain=gain,
            by_tag={},
            repeats=None,
            detectable_drop=0.1,
        ),
    )


def found(report: Report) -> Evaluation:
    row = RowScores(tokens=(1,), bytes=(1,), base=(1.0,), adapter=(1.0,))
    return Evaluation(report=report, samples=(), scores=ScoreTable(heldout=row, general=row))


def decide(metric: Metric, report: Report | None = None, **bound: float | None) -> GateResult:
    gate = Gate(at_least=bound.get("at_least"), at_most=bound.get("at_most"))
    return judge({metric: gate}, found(report or a_report()))[0]


@pytest.mark.parametrize(
    ("metric", "bound", "verdict"),
    [
        ("prompts.pass_rate", {"at_least": 0.80}, "pass"),
        ("prompts.pass_rate", {"at_least": 0.90}, "inconclusive"),
        ("prompts.pass_rate", {"at_least": 0.97}, "fail"),
        ("prompts.pass_rate", {"at_most": 0.97}, "pass"),
        ("prompts.pass_rate", {"at_most": 0.80}, "fail"),
        ("prompts.gain", {"at_least": 0.5}, "pass"),
        ("prompts.gain", {"at_least": 0.78}, "inconclusive"),
        ("prompts.gain", {"at_least": 0.95}, "fail"),
        ("perplexity.heldout", {"at_most": 13.0}, "pass"),
        ("perplexity.heldout", {"at_most": 12.5}, "pass"),
        ("perplexity.heldout", {"at_most": 12.0}, "inconclusive"),
        ("perplexity.heldout", {"at_most": 8.0}, "inconclusive"),
        ("perplexity.heldout", {"at_most": 7.9}, "fail"),
        ("perplexity.heldout.ratio", {"at_most": 0.7}, "pass"),
        ("perplexity.heldout.ratio", {"at_least": 0.7}, "fail"),
        ("perplexity.general", {"at_most": 9.0}, "inconclusive"),
        ("perplexity.general.ratio", {"at_most": 0.3}, "fail"),
    ],
)
def test_only_a_whole_interval_decides(metric: Metric, bound: dict[str, float], verdict: str) -> None:
    result = decide(metric, None, **bound)
    assert result.verdict == verdict
    assert result.metric == metric
    assert result.bound == f"{next(iter(bound))} {next(iter(bound.values())):g}"
    assert result.low <= result.value <= result.high
    assert result.reason


def test_every_metric_of_the_recipe_is_known() -> None:
    assert set(METRICS) == set(get_args(Metric))


def test_stated_number_of_prompts_would_decide_the_pass_rate() -> None:
    for passed, bound in ((20, 0.9), (17, 0.8), (12, 0.5), (3, 0.2)):
        result = decide("prompts.pass_rate", a_report(0, passed, 20), at_least=bound)
        assert result.verdict == "inconclusive"
        found = re.search(r"roughly ([\d,]+) prompts instead of 20", result.reason)
        assert found is not None, result.reason
        needed = int(found.group(1).replace(",", ""))
        value = passed / 20
        z2 = 1.959963984540054**2

        def excludes(n: float, value: float = value, bound: float = bound, z2: float = z2) -> bool:
            return (value - bound) ** 2 >= z2 * bound * (1 - bound) / n

        assert excludes(needed)
        assert not excludes(needed - 2)


def test_stated_number_of_prompts_would_decide_the_gain() -> None:
    report = a_report(8, 12, 20)
    result = decide("prompts.gain", report, at_least=0.05)
    found = re.search(r"roughly ([\d,]+) prompts instead of 20", result.reason)
    assert found is not None, result.reason
    times = math.ceil(int(found.group(1).replace(",", "")) / 20) + 1
    assert decide("prompts.gain", a_report(8 * times, 12 * times, 20 * times), at_least=0.05).verdict == "pass"


def test_reason_states_the_half_width_and_the_examples() -> None:
    reason = decide("perplexity.heldout", at_most=11.0).reason
    assert "±2.25" in reason
    # log(12.5/10) / log(11/10) = 2.341; squared
    assert "roughly 5.5 times as many examples" in reason


def test_bound_at_the_measured_value_promises_nothing() -> None:
    for bound in (0.9, 0.9001, 0.8999):
        assert "may not decide" in decide("prompts.pass_rate", at_least=bound).reason
        assert "may not decide" in decide("prompts.gain", at_least=bound - 0.1).reason
    assert "may not decide" in decide("perplexity.heldout", at_most=10.01).reason


def test_single_example_is_inconclusive() -> None:
    report = a_report(ratio=Interval(0.5, 0.0, math.inf))
    result = decide("perplexity.heldout.ratio", report, at_most=1.0)
    assert result.verdict == "inconclusive"
    assert "a single example" in result.reason


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "none"),
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_overall(verdicts: list[Verdict], expected: str) -> None:
    results = [
        GateResult(metric="m", bound="at_least 1", value=1.0, low=1.0, high=1.0, verdict=verdict, reason="")
        for verdict in verdicts
    ]
    assert overall(results) == expected


def test_apply_gates_fills_the_report() -> None:
    report = apply_gates({"prompts.gain": Gate(at_least=0.5)}, found(a_report())).report
    assert report.verdict == "pass"
    assert len(report.gates) == 1


@pytest.mark.parametrize(
    ("metric", "key"), [("prompts.gain", "eval.prompts"), ("perplexity.general.ratio", "eval.general")]
)
def test_gate_without_its_data_names_the_missing_key(metric: Metric, key: str) -> None:
    gate = Gate(at_least=0.5)
    with pytest.raises(RecipeError, match=f"eval.gates.{metric}.*set {key}"):
        check_gates(EvalSection(gates={metric: gate}))
    report = a_report().model_copy(update={"prompts": None})
    report = report.model_copy(update={"perplexity": report.perplexity.model_copy(update={"general": None})})
    with pytest.raises(RecipeError, match=f"eval.gates.{metric}.*set {key}"):
        judge({metric: gate}, found(report))


@pytest.mark.parametrize(
    ("metric", "bound"),
    [
        ("prompts.pass_rate", {"at_least": 1.0}),
        ("prompts.pass_rate", {"at_most": 0.0}),
        ("prompts.gain", {"at_least": 5.0}),
        ("perplexity.heldout", {"at_most": 0.9}),
        ("perplexity.heldout.ratio", {"at_most": math.nan}),
        ("prompts.pass_rate", {"at_least": 0.5, "no_worse_than_base": 1.0}),
        ("perplexity.heldout", {"no_worse_than_base": -0.1}),
        ("perplexity.general", {"no_worse_than_baseline": math.inf}),
        ("prompts.gain", {"no_worse_than_base": 0.1}),
        ("perplexity.heldout.ratio", {"no_worse_than_baseline": 0.1}),
    ],
)
def test_gates_that_could_never_pass_are_refused_early(metric: Metric, bound: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"eval.gates.{metric}"):
        check_gates(EvalSection(prompts="p.yaml", general="g.jsonl", gates={metric: Gate(**bound)}))


def test_all_bad_gates_are_named_at_once_and_good_ones_pass() -> None:
    good = EvalSection(gates={"perplexity.heldout.ratio": Gate(at_most=0.9)})
    check_gates(good)
    bad = EvalSection(gates={"prompts.gain": Gate(at_least=0.1), "perplexity.general": Gate(at_most=9.0)})
    with pytest.raises(RecipeError) as error:
        check_gates(bad)
    assert len(str(error.value).splitlines()) == 2


def test_a_gate_against_a_baseline_needs_one_and_a_baseline_always_has_a_gate() -> None:
    without = EvalSection(prompts="p.yaml", gates={"prompts.pass_rate": Gate(at_least=0.5)})
    assert gates_of(without, baseline=False) == without.gates
    gates = gates_of(without, baseline=True)
    assert gates["prompts.pass_rate"].bounds() == {"at_least": 0.5, "no_worse_than_baseline": 0.05}
    assert list(gates_of(EvalSection(), baseline=True)) == ["perplexity.heldout"]
    own = EvalSection(general="g", gates={"perplexity.general": Gate(no_worse_than_baseline=0.02)})
    assert gates_of(own, baseline=True) == own.gates
    check_gates(own)
    with pytest.raises(RecipeError, match=r"eval.gates.perplexity.general: .* give one with --baseline FOLDER"):
        gates_of(own, baseline=False)


def test_every_bound_of_a_gate_is_a_result_of_its_own() -> None:
    results = judge({"prompts.pass_rate": Gate(at_least=0.8, at_most=0.85)}, found(a_report()))
    assert [(r.bound, r.verdict) for r in results] == [("at_least 0.8", "pass"), ("at_most 0.85", "inconclusive")]
    with pytest.raises(ValidationError, match="give one of at_least, at_most, no_worse_than_base"):
        Gate()


def test_false_alarms_are_rare_and_real_gains_are_caught() -> None:
    """A gate on the gain, 200 prompts: a real gain of 30 points passes, no gain hardly ever does."""
    rng, caught, false = random.Random(0), 0, 0
    for _ in range(200):
        base = [rng.random() < 0.5 for _ in range(200)]
        same = [rng.random() < 0.5 for _ in range(200)]
        better = [rng.random() < 0.8 for _ in range(200)]
        caught += paired_gain(base, better).low > 0.1
        false += paired_gain(base, same).low > 0.0
    assert caught >= 0.95 * 200
    assert false <= 0.05 * 200
