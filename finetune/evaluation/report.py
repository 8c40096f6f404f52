"""The report: what an evaluation found, as it stands in report.json, and the folder around it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from finetune.errors import DataError
from finetune.evaluation.junit import render_junit
from finetune.evaluation.render import render_html, render_markdown
from finetune.evaluation.statistics import (
    Interval,
    Scores,
    mcnemar,
    paired_gain,
    perplexity_interval,
    perplexity_ratio_interval,
    wilson,
)
from finetune.evaluation.suite import Graded
from finetune.files import recover_folder, replace_folder
from finetune.recipe import GenerationSection

Verdict = Literal["pass", "fail", "inconclusive"]


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_json(value: object) -> object:
    return math.inf if value is None else value


# JSON has no infinity: an upper end without bound is null in the file and math.inf in memory.
Number = Annotated[float, BeforeValidator(_from_json), PlainSerializer(_to_json, return_type=float | None)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """Strict, so that a file of another version is refused and not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Estimate(Part):
    value: Number
    low: Number  # of the 95% interval
    high: Number

    @property
    def interval(self) -> Interval:
        """The three numbers as they come from statistics."""
        return Interval(self.value, self.low, self.high)


class PerplexityScore(Estimate):
    nll: float  # sum over the tokens, nats
    tokens: Count
    bits_per_byte: Number  # nll / (ln 2 * bytes), comparable between tokenizers


class PerplexityPair(Part):
    base: PerplexityScore
    adapter: PerplexityScore
    ratio: Estimate  # adapter / base, paired by example


class Perplexity(Part):
    heldout: PerplexityPair
    general: PerplexityPair | None


class Tally(Part):
    passed: Count
    total: Count


class PassRate(Tally):
    low: float
    high: float


class Gain(Estimate):
    p_value: float  # exact McNemar, two-sided


class TagTally(Part):
    base: Tally
    adapter: Tally


class Prompts(Part):
    base: PassRate
    adapter: PassRate
    gain: Gain  # pass rate of the adapter minus that of the base, paired by prompt
    by_tag: dict[str, TagTally]


class GateResult(Part):
    metric: str
    bound: str  # "at_least 0.9"
    value: Number
    low: Number
    high: Number
    verdict: Verdict
    reason: str


class Versions(Part):
    python: str
    torch: str
    transformers: str
    peft: str
    bitsandbytes: str | None  # null if the base was not quantised and it is not installed
    finetune: str


class Report(Part):
    schema_version: Literal[1] = 1
    verdict: Verdict | Literal["none"] = "none"
    name: str
    base: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
    versions: Versions
    seed: int
    generation: GenerationSection
    data: dict[str, Sha256]
    conditions: dict[str, str] = {}  # what must be equal for another report to be compared with this one
    perplexity: Perplexity
    prompts: Prompts | None
    gates: tuple[GateResult, ...] = ()


class SampleOutcome(Part):
    check: str
    passed: bool
    detail: str


class SampleAnswer(Part):
    text: str
    stopped: bool
    tokens: Count
    passed: bool
    outcomes: tuple[SampleOutcome, ...]


class SampleTurn(Part):
    role: str
    content: str


class Sample(Part):
    id: str
    tags: tuple[str, ...]
    messages: tuple[SampleTurn, ...]
    base: SampleAnswer
    adapter: SampleAnswer


def perplexity_block(base: Scores, adapter: Scores) -> PerplexityPair:
    """Compare two models on the same completion tokens."""
    if base.tokens != adapter.tokens or base.bytes != adapter.bytes:
        raise ValueError("base and adapter were scored on different tokens")
    ratio = perplexity_ratio_interval(base.nll, adapter.nll, base.tokens)
    return PerplexityPair(base=_perplexity(base), adapter=_perplexity(adapter), ratio=Estimate(**ratio._asdict()))


def prompts_block(base: Sequence[Graded], adapter: Sequence[Graded]) -> Prompts:
    """Compare two models' answers to the same prompts."""
    _same_prompts(base, adapter)
    before, after = [g.passed for g in base], [g.passed for g in adapter]
    tags = dict.fromkeys(tag for graded in base for tag in graded.prompt.tags)
    return Prompts(
        base=_pass_rate(before),
        adapter=_pass_rate(after),
        gain=Gain(**paired_gain(before, after)._asdict(), p_value=mcnemar(before, after)),
        by_tag={tag: TagTally(base=_tally(base, tag), adapter=_tally(adapter, tag)) for tag in tags},
    )


def samples_of(base: Sequence[Graded], adapter: Sequence[Graded]) -> tuple[Sample, ...]:
    """Put both models' answers to each prompt side by side, for the report folder."""
    _same_prompts(base, adapter)
    return tuple(
        Sample(
            id=_valid(b.prompt.id),
            tags=b.prompt.tags,
            messages=tuple(SampleTurn(role=m.role, content=_valid(m.content)) for m in b.prompt.messages),
            base=_answer(b),
            adapter=_answer(a),
        )
        for b, a in zip(base, adapter, strict=True)
    )


def write_report(folder: Path, report: Report, samples: Sequence[Sample], loss_png: Path | None = None) -> None:
    """Write report.json, report.md, report.html, junit.xml and samples.jsonl, all or none.

    An earlier report in `folder` is replaced as a whole.
    """
    curve = loss_png.read_bytes() if loss_png else None
    with replace_folder(folder) as new:
        (new / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (new / "report.md").write_text(render_markdown(report, samples), encoding="utf-8")
        (new / "report.html").write_text(render_html(report, samples, curve), encoding="utf-8")
        (new / "junit.xml").write_text(render_junit(report, samples), encoding="utf-8")
        with (new / "samples.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for sample in samples:
                file.write(json.dumps(sample.model_dump(mode="json"), ensure_ascii=False) + "\n")


def read_report(folder: Path) -> Report:
    """Read a report folder back. Raises DataError if it is missing or of another version."""
    recover_folder(folder)
    path = folder / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read ({error})", where=str(path), fix="run finetune eval") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"is no report of version 1: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(what, where=str(path), fix="run finetune eval again") from None


def _perplexity(scores: Scores) -> PerplexityScore:
    nll, size = math.fsum(scores.nll), sum(scores.bytes)
    interval = perplexity_interval(scores.nll, scores.tokens)
    bits = nll / (math.log(2) * size) if size else math.inf
    return PerplexityScore(**interval._asdict(), nll=nll, tokens=sum(scores.tokens), bits_per_byte=bits)


def _same_prompts(base: Sequence[Graded], adapter: Sequence[Graded]) -> None:
    if [g.prompt.id for g in base] != [g.prompt.id for g in adapter]:
        raise ValueError("base and adapter answered different prompts")


def _pass_rate(passed: Sequence[bool]) -> PassRate:
    interval = wilson(sum(passed), len(passed))
    return PassRate(passed=sum(passed), total=len(passed), low=interval.low, high=interval.high)


def _tally(graded: Sequence[Graded], tag: str) -> Tally:
    passed = [g.passed for g in graded if tag in g.prompt.tags]
    return Tally(passed=sum(passed), total=len(passed))


def _answer(graded: Graded) -> SampleAnswer:
    outcomes = tuple(
        SampleOutcome(check=_valid(o.check), passed=o.passed, detail=_valid(o.detail)) for o in graded.outcomes
    )
    text, stopped, tokens = graded.answer
    return SampleAnswer(text=_valid(text), stopped=stopped, tokens=tokens, passed=graded.passed, outcomes=outcomes)


def _valid(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
