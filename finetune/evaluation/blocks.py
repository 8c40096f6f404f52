"""From scores and graded answers to the parts of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from finetune.evaluation.bootstrap import paired_bootstrap
from finetune.evaluation.power import DISCORDANT, detectable_drop
from finetune.evaluation.repeats import flaky_prompts, mean_pass_all, mean_pass_any, repeated_rate, variance
from finetune.evaluation.report import (
    Answers,
    AtK,
    Estimate,
    FlakyPrompt,
    Gain,
    PassRate,
    PerplexityPair,
    PerplexityScore,
    Prompts,
    Repeats,
    Rival,
    RowScores,
    Sample,
    SampleAnswer,
    SampleOutcome,
    SampleTurn,
    ScoreTable,
    TagTally,
    Tally,
    share,
    storable,
)
from finetune.evaluation.statistics import (
    Interval,
    Scores,
    mcnemar,
    paired_gain,
    perplexity_interval,
    perplexity_ratio_interval,
    wilson,
)
from finetune.evaluation.suite import Attempt, Graded
from finetune.evaluation.tasks import TaskScore

SEED = 0  # of the bootstrap: an interval is a function of the answers alone


class Opponent(NamedTuple):
    """A rival's name and what it did on the same rows and prompts."""

    name: str
    kind: Literal["adapter", "report"]
    created: str | None


def perplexity_block(base: Scores, adapter: Scores) -> PerplexityPair:
    """Compare two models on the same completion tokens."""
    return PerplexityPair(base=_perplexity(base), adapter=_perplexity(adapter), ratio=_ratio(base, adapter))


def row_scores(base: Scores, adapter: Scores, rivals: Mapping[str, Scores]) -> RowScores:
    """Keep the scores of each row, for a later paired comparison."""
    others = {name: scores.nll for name, scores in rivals.items()}
    return RowScores(tokens=base.tokens, bytes=base.bytes, base=base.nll, adapter=adapter.nll, rivals=others)


def prompts_block(samples: Sequence[Sample]) -> Prompts:
    """Compare base and adapter on the same prompts."""
    base, adapter = [s.base for s in samples], [s.adapter for s in samples]
    tags = dict.fromkeys(tag for sample in samples for tag in sample.tags)
    return Prompts(
        base=_pass_rate(base),
        adapter=_pass_rate(adapter),
        gain=_gain(base, adapter),
        by_tag={tag: _tag_tally([s for s in samples if tag in s.tags]) for tag in tags},
        repeats=_repeats(samples),
        detectable_drop=detectable_drop(len(samples), DISCORDANT),
    )


def samples_of(
    base: Sequence[Graded], adapter: Sequence[Graded], rivals: Mapping[str, Sequence[Graded]] | None = None
) -> tuple[Sample, ...]:
    """Put all models' answers to each prompt side by side. Raises ValueError if the prompts differ."""
    rivals = rivals or {}
    asked = [g.prompt.id for g in base]
    if any([g.prompt.id for g in other] != asked for other in (adapter, *rivals.values())):
        raise ValueError("base and adapter answered different prompts")
    return tuple(
        Sample(
            id=storable(graded.prompt.id),
            tags=tuple(storable(tag) for tag in graded.prompt.tags),
            messages=tuple(SampleTurn(role=m.role, content=storable(m.content)) for m in graded.prompt.messages),
            base=_answers(graded),
            adapter=_answers(adapter[place]),
            rivals={name: _answers(other[place]) for name, other in rivals.items()},
        )
        for place, graded in enumerate(base)
    )


def rival_block(
    who: Opponent, scores: ScoreTable, samples: Sequence[Sample], tasks: tuple[TaskScore, ...] = ()
) -> Rival:
    """Compare the report's adapter with a rival whose rows and answers stand in `scores` and `samples`."""
    theirs, ours = [s.rivals[who.name] for s in samples], [s.adapter for s in samples]
    pairs = [(s.id, share(t), share(o)) for s, t, o in zip(samples, theirs, ours, strict=True)]
    heldout, general = (_against(rows, who.name) if rows else None for rows in (scores.heldout, scores.general))
    assert heldout is not None
    return Rival(
        name=who.name,
        kind=who.kind,
        created=who.created,
        heldout=heldout[0],
        heldout_ratio=heldout[1],
        general=general[0] if general else None,
        general_ratio=general[1] if general else None,
        prompts=_pass_rate(theirs) if samples else None,
        gain=_gain(theirs, ours) if samples else None,
        fixed=tuple(name for name, then, now in pairs if now > then),
        broken=tuple(name for name, then, now in pairs if now < then),
        tasks=tasks,
    )


def _against(rows: RowScores, name: str) -> tuple[PerplexityScore, Estimate]:
    theirs = Scores(rows.rivals[name], rows.tokens, rows.bytes)
    return _perplexity(theirs), _ratio(theirs, Scores(rows.adapter, rows.tokens, rows.bytes))


def _perplexity(scores: Scores) -> PerplexityScore:
    nll, size = math.fsum(scores.nll), sum(scores.bytes)
    interval = perplexity_interval(scores.nll, scores.tokens)
    bits = nll / (math.log(2) * size) if size else math.inf
    return PerplexityScore(**interval._asdict(), nll=nll, tokens=sum(scores.tokens), bits_per_byte=bits)


def _ratio(first: Scores, second: Scores) -> Estimate:
    if first.tokens != second.tokens or first.bytes != second.bytes:
        raise ValueError("base and adapter were scored on different tokens")
    return _estimate(perplexity_ratio_interval(first.nll, second.nll, first.tokens))


def _pass_rate(answers: Sequence[Answers]) -> PassRate:
    outcomes = _outcomes(answers)
    tally = _tally(answers)
    once = all(len(given) == 1 for given in outcomes)
    interval = wilson(tally.passed, tally.total) if once else repeated_rate(outcomes)
    return PassRate(passed=tally.passed, total=tally.total, low=interval.low, high=interval.high)


def _gain(before: Sequence[Answers], after: Sequence[Answers]) -> Gain:
    if all(len(given) == 1 for given in (*before, *after)):
        then, now = ([given[0].passed for given in side] for side in (before, after))
        return Gain(**paired_gain(then, now)._asdict(), p_value=mcnemar(then, now))
    gain = paired_bootstrap([share(given) for given in before], [share(given) for given in after], SEED)
    return Gain(**gain._asdict(), p_value=None)


def _repeats(samples: Sequence[Sample]) -> Repeats | None:
    several = [sample for sample in samples if len(sample.adapter) > 1]
    if not several:
        return None
    k = min(len(sample.adapter) for sample in several)
    base, adapter = _outcomes([s.base for s in several]), _outcomes([s.adapter for s in several])

    def at_k(measure: Callable[[Sequence[Sequence[bool]], int], Interval]) -> AtK:
        return AtK(base=_estimate(measure(base, k)), adapter=_estimate(measure(adapter, k)))

    return Repeats(
        k=k,
        prompts=len(several),
        pass_any=at_k(mean_pass_any),
        pass_all=at_k(mean_pass_all),
        flaky=tuple(
            FlakyPrompt(
                id=several[flaky.prompt].id,
                passed=flaky.passed,
                total=flaky.repeats,
                low=flaky.rate.low,
                high=flaky.rate.high,
                variance=variance(flaky.passed, flaky.repeats),
            )
            for flaky in flaky_prompts(adapter)
        ),
    )


def _tag_tally(samples: Sequence[Sample]) -> TagTally:
    return TagTally(base=_tally([s.base for s in samples]), adapter=_tally([s.adapter for s in samples]))


def _tally(answers: Sequence[Answers]) -> Tally:
    outcomes = _outcomes(answers)
    return Tally(passed=sum(map(sum, outcomes)), total=sum(map(len, outcomes)))


def _outcomes(answers: Sequence[Answers]) -> list[list[bool]]:
    return [[answer.passed for answer in given] for given in answers]


def _estimate(interval: Interval) -> Estimate:
    return Estimate(**interval._asdict())


def _answers(graded: Graded) -> Answers:
    return tuple(_answer(attempt) for attempt in graded.attempts)


def _answer(attempt: Attempt) -> SampleAnswer:
    outcomes = tuple(
        SampleOutcome(check=storable(o.check), passed=o.passed, detail=storable(o.detail), error=o.error)
        for o in attempt.outcomes
    )
    text, stopped, tokens = attempt.answer
    return SampleAnswer(text=storable(text), stopped=stopped, tokens=tokens, passed=attempt.passed, outcomes=outcomes)
