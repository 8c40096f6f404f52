"""A report as a page for people: one HTML file, and Markdown for a job summary.

What a model wrote is hostile until proved otherwise. Both templates escape every value they print,
not only those somebody thought of: HTML by autoescape, Markdown by `finalize`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from markupsafe import escape

from finetune.evaluation.statistics import Interval

if TYPE_CHECKING:  # report.py writes what this module renders
    from finetune.evaluation.report import PerplexityPair, Report, Sample

MARKDOWN_SAMPLES, MARKDOWN_ROWS, MARKDOWN_TEXT = 20, 50, 240  # a job summary may have 1 MiB
HTML_TEXT, HTML_BUDGET = 4_000, 3_000_000  # characters of one text, and of all samples together
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
# Markdown reads a numeric reference as text, never as markup; an underscore inside a word is text already.
_MARKUP = re.compile(r"[&<>|`*\[\]\\~#$@]|(?<!\w)_|_(?!\w)|(?<=http):|(?<=https):|(?<=www)\.", re.IGNORECASE)


@dataclass(frozen=True)
class Tile:
    """One headline: a title, the number, what it means, and where its interval lies on an axis."""

    title: str
    number: str
    meaning: str
    detail: str
    tone: str  # good, bad, unclear or none
    band: tuple[float, float, float, float] | None = None  # low, value, high, mark: percent of the axis
    ends: tuple[str, str, str] = ("", "", "")  # labels of the axis: left, mark, right


@dataclass(frozen=True)
class Page:
    """What both templates show, in words."""

    report: Report
    headline: str
    tiles: tuple[Tile, ...]
    failed: tuple[Sample, ...]  # by the adapter, regressions first
    passed: tuple[Sample, ...]
    omitted: int
    curve: str | None = None  # data: URI


def render_html(report: Report, samples: Sequence[Sample], loss_png: bytes | None = None) -> str:
    """Render one self-contained page: no script, nothing loaded from anywhere."""
    curve = f"data:image/png;base64,{base64.b64encode(loss_png).decode()}" if loss_png else None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clip": _clip_html, "number": _number}
    environment.finalize = visible
    return environment.from_string(_template("report.html.j2")).render(page=_page(report, samples, HTML_BUDGET, curve))


def render_markdown(report: Report, samples: Sequence[Sample]) -> str:
    """Render a job summary: the table first, then the worst samples, always under 900 kB."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number}
    environment.finalize = markdown_text
    page = _page(report, samples, HTML_BUDGET, None)
    total = sum(not sample.adapter.passed for sample in samples)
    template = environment.from_string(_template("report.md.j2"))
    text = template.render(page=page, rows=MARKDOWN_ROWS, failing=page.failed[:MARKDOWN_SAMPLES], failed_total=total)
    return text.strip() + "\n"


def visible(value: object) -> object:
    """Make control characters, and those that turn the direction of text, visible and harmless."""
    if not isinstance(value, str):
        return value
    return type(value)(_UNSEEN.sub(_symbol, value))


def markdown_text(value: object) -> str:
    """Escape a value for one Markdown table cell or list item: one line, no markup, no links."""
    text = str(value)
    text = (
        text if len(text) <= MARKDOWN_TEXT else f"{text[:MARKDOWN_TEXT]}… (+{len(text) - MARKDOWN_TEXT:,} characters)"
    )
    text = re.sub(r"\s*[\n\x85\u2028\u2029]\s*", " ↵ ", text.replace("\r\n", "\n").replace("\t", " "))
    return _MARKUP.sub(lambda m: f"&#{ord(m.group())};", str(visible(text)))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match.group())
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def _template(name: str) -> str:
    return files("finetune.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _page(report: Report, samples: Sequence[Sample], budget: int, curve: str | None) -> Page:
    # A regression is the worst: the base could do it. Python's sort keeps the file's order otherwise.
    ranked = sorted(samples, key=lambda s: (s.adapter.passed, not s.base.passed))
    shown: list[Sample] = []
    for sample in ranked:
        budget -= _weight(sample)
        if budget < 0:
            break
        shown.append(sample)
    return Page(
        report=report,
        headline=_headline(report),
        tiles=(_heldout_tile(report), _general_tile(report), _prompts_tile(report)),
        failed=tuple(s for s in shown if not s.adapter.passed),
        passed=tuple(s for s in shown if s.adapter.passed),
        omitted=len(samples) - len(shown),
        curve=curve,
    )


def _weight(sample: Sample) -> int:
    """Count roughly the characters a sample takes on the page."""
    texts = [m.content for m in sample.messages] + [sample.base.text, sample.adapter.text]
    texts += [o.check + o.detail for o in (*sample.base.outcomes, *sample.adapter.outcomes)]
    return 1_000 + sum(60 + len(escape(text[:HTML_TEXT])) for text in texts)


def _headline(report: Report) -> str:
    total = len(report.gates)
    if report.verdict == "none":
        return "No gates in the recipe: these are the numbers, without a verdict."
    if report.verdict == "pass":
        return "The gate passed." if total == 1 else f"All {total} gates passed."
    named = [gate.metric for gate in report.gates if gate.verdict == report.verdict]
    verb = (
        "failed" if report.verdict == "fail" else ("is" if len(named) == 1 else "are") + " undecided: too little data"
    )
    return f"{len(named)} of {total} gates {verb} ({', '.join(named)})."


def _heldout_tile(report: Report) -> Tile:
    pair = report.perplexity.heldout
    ratio = pair.ratio.interval
    return Tile(
        "Held-out perplexity",
        f"{_short(pair.base.value)} → {_short(pair.adapter.value)}",
        _meaning(ratio, "the adapter predicts held-out answers"),
        f"adapter {_range(pair.adapter.interval, _short)}; ratio {_number(ratio.value)}, {_range(ratio, _number)}",
        _gate_tone(report, "perplexity.heldout") or _tone(ratio),
        *_ratio_axis(pair),
    )


def _general_tile(report: Report) -> Tile:
    pair = report.perplexity.general
    title = "Forgetting (perplexity of general text)"
    if pair is None:
        return Tile(title, "not measured", "set eval.general to see what the adapter forgot", "", "none")
    ratio = pair.ratio.interval
    return Tile(
        title,
        f"× {_number(ratio.value)}",
        _meaning(ratio, "the adapter predicts general text"),
        f"ratio {_range(ratio, _number)}; {_short(pair.base.value)} → {_short(pair.adapter.value)}",
        _gate_tone(report, "perplexity.general") or _tone(ratio),
        *_ratio_axis(pair),
    )


def _prompts_tile(report: Report) -> Tile:
    if report.prompts is None:
        return Tile("Prompts passed", "not measured", "set eval.prompts to check answers", "", "none")
    base, adapter, gain = report.prompts.base, report.prompts.adapter, report.prompts.gain
    p_value = "p < 0.001" if gain.p_value < 0.001 else f"p = {gain.p_value:.3f}"
    return Tile(
        "Prompts passed",
        f"{base.passed} → {adapter.passed} of {adapter.total}",
        f"{100 * gain.value:+.1f} points, {100 * gain.low:+.1f} to {100 * gain.high:+.1f}; {p_value}",
        f"adapter {adapter.passed / adapter.total:.1%}, {adapter.low:.1%} to {adapter.high:.1%}",
        # Of a gain more is better, unlike of a perplexity.
        _gate_tone(report, "prompts") or _tone(Interval(-gain.value, -gain.high, -gain.low), 0.0),
        (50 + 50 * gain.low, 50 + 50 * gain.value, 50 + 50 * gain.high, 50),
        ("−100", "no change", "+100 points"),
    )


def _ratio_axis(pair: PerplexityPair) -> tuple[tuple[float, float, float, float], tuple[str, str, str]]:
    """Place a ratio on a logarithmic axis with 1 in the middle, wide enough for its interval."""
    interval = pair.ratio.interval
    finite = [max(x, 1 / x) for x in interval if 0 < x < math.inf]
    reach = next((r for r in (1.05, 1.2, 1.5, 2, 4, 10, 100, 1_000, 1e6) if r >= max(finite, default=1.0)), 1e12)
    return (_log_place(interval.low, reach), _log_place(interval.value, reach), _log_place(interval.high, reach), 50), (
        f"÷ {reach:g} better",
        "1",
        f"× {reach:g} worse",
    )


def _log_place(x: float, reach: float) -> float:
    if x <= 0:
        return 0.0
    return max(0.0, min(100.0, 50 + 50 * math.log(x) / math.log(reach))) if x < math.inf else 100.0


def _gate_tone(report: Report, prefix: str) -> str | None:
    """Colour a tile by the worst of its gates: who wrote a gate has said what is acceptable."""
    verdicts = {gate.verdict for gate in report.gates if gate.metric.startswith(prefix)}
    tones = {"fail": "bad", "inconclusive": "unclear", "pass": "good"}
    return next((tone for verdict, tone in tones.items() if verdict in verdicts), None)


def _tone(interval: Interval, neutral: float = 1.0) -> str:
    """Judge an interval where less is better."""
    return "good" if interval.high < neutral else "bad" if interval.low > neutral else "unclear"


def _meaning(ratio: Interval, claim: str) -> str:
    """Say in words what the ratio of two perplexities means."""
    change = f"{abs(ratio.value - 1):.1%} {'lower' if ratio.value < 1 else 'higher'}"
    if _tone(ratio) == "unclear":
        return "unchanged" if ratio.value == 1 else f"{change}, which may be chance"
    return f"{change}: {claim} {'better' if _tone(ratio) == 'good' else 'worse'}"


def _range(interval: Interval, write: Callable[[float], str]) -> str:
    return f"{write(interval.low)} to {write(interval.high)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else _short(value)


def _short(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _clip_html(text: str) -> str:
    rest = len(text) - HTML_TEXT
    return text if rest <= 0 else f"{text[:HTML_TEXT]}… ({rest:,} more characters in samples.jsonl)"
