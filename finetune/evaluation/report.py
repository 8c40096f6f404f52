"""The report: what an evaluation found, as it stands in report.json, samples.jsonl and scores.json."""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from finetune.evaluation.statistics import Interval
from finetune.evaluation.tasks import TaskScore
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


def storable(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
    passed: Count  # answers; as many as prompts unless prompts are answered several times
    total: Count


class PassRate(Tally):
    low: float  # of the 95% interval, prompts being the unit
    high: float


class Gain(Estimate):
    p_value: float | None  # exact McNemar, two-sided; null where prompts were answered several times


class TagTally(Part):
    base: Tally
    adapter: Tally


class AtK(Part):
    """Of k answers to a prompt, the mean over the prompts that were answered several times."""

    base: Estimate
    adapter: Estimate


class FlakyPrompt(Part):
    id: str
    passed: Count
    total: Count
    low: float  # of the 95% interval of its pass rate
    high: float
    variance: float  # of one answer's outcome, unbiased: 0 steady, 0.25 a fair coin


class Repeats(Part):
    """Prompts that were answered several times."""

    k: Annotated[int, Field(ge=2)]  # the fewest answers that one of them has
    prompts: Count
    pass_any: AtK  # pass@k: at least one of k answers passes
    pass_all: AtK  # pass^k: all of k answers pass
    flaky: tuple[FlakyPrompt, ...]  # the adapter passed in some answers but not in all; most uncertain first


class Prompts(Part):
    base: PassRate
    adapter: PassRate
    gain: Gain  # pass rate of the adapter minus that of the base, paired by prompt
    by_tag: dict[str, TagTally]
    repeats: Repeats | None
    detectable_drop: Number  # from one adapter to the next, if they differ on 20% of the prompts; null: none is shown


class Rival(Part):
    """Another adapter, evaluated beside this one, or one of an earlier report; every comparison is paired."""

    name: str
    kind: Literal["adapter", "report"]
    created: str | None  # of the earlier report
    heldout: PerplexityScore
    heldout_ratio: Estimate  # this report's adapter / rival
    general: PerplexityScore | None
    general_ratio: Estimate | None
    prompts: PassRate | None
    gain: Gain | None  # pass rate of this report's adapter minus that of the rival
    fixed: tuple[str, ...] = ()  # ids of prompts that this report's adapter passes more often than the rival
    broken: tuple[str, ...] = ()  # and less often
    tasks: tuple[TaskScore, ...] = ()  # its scores beside those of the base


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


class Heading(Part):
    """What is known before anything is measured."""

    schema_version: Literal[2] = 2
    name: str
    base: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
    versions: Versions
    seed: int
    generation: GenerationSection
    data: dict[str, Sha256]
    conditions: dict[str, str] = {}  # what must be equal for another report to be compared with this one


class Report(Heading):
    verdict: Verdict | Literal["none"] = "none"
    perplexity: Perplexity
    prompts: Prompts | None
    rivals: tuple[Rival, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    gates: tuple[GateResult, ...] = ()


class SampleOutcome(Part):
    check: str
    passed: bool
    detail: str
    error: bool = False  # the check itself could not be carried out; it counts as not passed


class SampleAnswer(Part):
    text: str
    stopped: bool
    tokens: Count
    passed: bool
    outcomes: tuple[SampleOutcome, ...]


class SampleTurn(Part):
    role: str
    content: str


Answers = tuple[SampleAnswer, ...]  # one, or as many as the prompt was answered times


class Sample(Part):
    id: str
    tags: tuple[str, ...]
    messages: tuple[SampleTurn, ...]
    base: Answers
    adapter: Answers
    rivals: dict[str, Answers] = {}

    @property
    def passed(self) -> bool:
        """Whether every answer of the adapter passed."""
        return all(answer.passed for answer in self.adapter)

    @property
    def regressed(self) -> bool:
        """Whether the adapter passes less often than the base."""
        return share(self.adapter) < share(self.base)


def share(answers: Answers) -> float:
    """Return the share of answers that passed."""
    return sum(answer.passed for answer in answers) / len(answers)


class RowScores(Part):
    """Per row of one data set: what a later report needs for a paired comparison."""

    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    base: tuple[float, ...]  # NLL, summed over a row's tokens, nats
    adapter: tuple[float, ...]
    rivals: dict[str, tuple[float, ...]] = {}


class ScoreTable(Part):
    heldout: RowScores
    general: RowScores | None


class Evaluation(Part):
    """A report with all that stands behind its numbers."""

    report: Report
    samples: tuple[Sample, ...]
    scores: ScoreTable


def render_schema() -> str:
    """Return the JSON Schema of report.json."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=2) + "\n"
