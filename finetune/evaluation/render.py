"""A report as a page for people: one HTML file, and Markdown for a job summary.

What a model wrote is hostile until proved otherwise. Both templates escape every value they print,
not only those somebody thought of: HTML by autoescape, Markdown by `finalize`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from finetune.evaluation.escaping import clip, one_line, visible
from finetune.evaluation.page import (
    MORE,
    NAME,
    TEXT,
    TURNS,
    card_of,
    counts,
    missed_checks,
    ranked,
    reference_of,
    state,
)
from finetune.evaluation.report import PerplexityScore, Repeats, Report, Sample, SampleAnswer, SampleOutcome, TagTally
from finetune.evaluation.standings import Standing, TaskRow, standings, task_rows
from finetune.evaluation.tiles import Tile, detectable, headline, number, percent, tiles_of

MARKDOWN_SAMPLES, MARKDOWN_ROWS, MARKDOWN_TEXT = 20, 50, 240  # a job summary may have 1 MiB
HTML_BUDGET, HTML_ROWS, RECIPE = 4_200_000, 200, 100_000  # bytes of all answers; rows of a table; characters
LISTED = 12  # names in one sentence
# A numeric reference is read as text, never as markup. After some a space of no width keeps a link, an address, a
# mention or a shortcode from being recognised once references are resolved; an underscore in a word is text already.
_MARKUP = re.compile(r"[&<>|`*\[\]\\~#$@]|(?<![^\W_])_|_(?![^\W_])|(?<=\w)[.](?=[^\W\d])|:(?=//|[\w+-]+:)|/(?=/)")
_BREAKS = "@#:/"


@dataclass(frozen=True)
class Page:
    """What both templates show, in words."""

    report: Report
    headline: str
    detectable: str
    tiles: tuple[Tile, ...]
    standings: tuple[Standing, ...]
    tasks: tuple[TaskRow, ...]
    repeats: Repeats | None
    tags: Mapping[str, TagTally]
    scores: tuple[tuple[str, str, PerplexityScore], ...]
    total: int
    counts: Mapping[str, int]
    reference: str | None
    failed: tuple[Markup, ...] = ()  # cards, regressions first
    passed: tuple[Markup, ...] = ()
    omitted: int = 0
    curve: str | None = None  # data: URI
    recipe: str = ""


@dataclass(frozen=True)
class Failing:
    """A row of the job summary: a prompt, and the adapter's first answer that failed."""

    sample: Sample
    answer: SampleAnswer
    missed: tuple[SampleOutcome, ...]
    several: bool
    state: str
    base: str


class Ready(str):
    """Markdown that is escaped already."""


def render_html(report: Report, samples: Sequence[Sample], loss_png: bytes | None = None, recipe: str = "") -> str:
    """Render one self-contained page, below 5 MB: nothing is loaded from anywhere, and it reads without its script.

    `recipe` is the text to show, `loss_png` the curve of training.
    """
    style, script = Markup(_source("report.css")), Markup(_source("report.js"))
    template, card = _html_templates()
    page = _page(report, samples, HTML_ROWS)
    failed, passed = _cards(card, page, samples)
    page = replace(
        page,
        failed=failed,
        passed=passed,
        omitted=len(samples) - len(failed) - len(passed),
        curve=f"data:image/png;base64,{base64.b64encode(loss_png).decode()}" if loss_png else None,
        recipe=clip(recipe, RECIPE),
    )
    policy = _policy(style, script)
    return template.render(page=page, policy=policy, style=style, script=script, rows=HTML_ROWS, listed=LISTED)


def render_markdown(report: Report, samples: Sequence[Sample]) -> str:
    """Render a job summary: the table first, then the worst samples, always under 1 MB."""
    failed = [sample for sample in ranked(samples) if not sample.passed]
    text = _markdown_template().render(
        page=_page(report, samples, MARKDOWN_ROWS),
        rows=MARKDOWN_ROWS,
        listed=LISTED,
        failing=[_failing(sample) for sample in failed[:MARKDOWN_SAMPLES]],
        failed_total=len(failed),
    )
    return text.strip() + "\n"


def markdown_text(value: object) -> str:
    """Escape a value for one Markdown table cell or list item: one line, no markup, no links."""
    if isinstance(value, Ready):
        return value
    return _MARKUP.sub(_reference, one_line(clip(str(value), MARKDOWN_TEXT)))


def markdown_code(text: str) -> Ready:
    """Write text as a code span, in which nothing at all is markup, a link or a mention: one line, for a table too."""
    text = one_line(clip(text, MARKDOWN_TEXT))
    if not text.strip():
        return Ready("(nothing)")
    parts = re.split(r"([`|])", text)  # what would end the span or the cell stands outside, as a reference
    return Ready("".join(f"&#{ord(part)};" if part in ("`", "|") else f"`{part}`" if part else "" for part in parts))


def _reference(match: re.Match[str]) -> str:
    sign = match.group()
    www = sign == "." and match.string[: match.start()].lower().endswith("www")
    return f"&#{ord(sign)};" + ("&#8203;" if www or sign in _BREAKS else "")


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "percent": percent}
    return environment


@cache
def _html_templates() -> tuple[Template, Template]:
    """The page, and the card of one prompt."""
    environment = _environment(autoescape=True)
    environment.filters |= {
        "clip": lambda text: clip(text, TEXT, MORE),
        "name": lambda text: clip(text, NAME, "more"),
        "anchor": lambda text: visible(text)[:NAME],
    }
    environment.finalize = lambda value: type(value)(visible(value)) if isinstance(value, str) else value
    return environment.from_string(_source("report.html.j2")), environment.from_string(_source("card.html.j2"))


@cache
def _markdown_template() -> Template:
    environment = _environment(autoescape=False)
    environment.filters |= {"code": markdown_code, "ready": Ready}
    environment.finalize = markdown_text
    return environment.from_string(_source("report.md.j2"))


def _source(name: str) -> str:
    return files("finetune.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Allow this very script and style sheet, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _page(report: Report, samples: Sequence[Sample], rows: int) -> Page:
    by_tag = report.prompts.by_tag if report.prompts else {}
    return Page(
        report=report,
        headline=headline(report),
        detectable=detectable(report),
        tiles=tiles_of(report),
        standings=standings(report),
        tasks=task_rows(report),
        repeats=report.prompts.repeats if report.prompts else None,
        tags=dict(list(by_tag.items())[:rows]),
        scores=tuple(_scores(report)),
        total=len(samples),
        counts=counts(samples),
        reference=reference_of(report),
    )


def _scores(report: Report) -> list[tuple[str, str, PerplexityScore]]:
    found = []
    for data, pair in (("held-out", report.perplexity.heldout), ("general", report.perplexity.general)):
        if pair:
            rivals = [(rival.name, rival.heldout if data == "held-out" else rival.general) for rival in report.rivals]
            models = [("base", pair.base), ("adapter", pair.adapter), *rivals]
            found += [(data, name, score) for name, score in models if score]
    return found


def _cards(template: Template, page: Page, samples: Sequence[Sample]) -> tuple[tuple[Markup, ...], ...]:
    """Render prompts, the worst first, until the page is full."""
    tags = {tag: place for place, tag in enumerate(page.tags)}
    failed: list[Markup] = []
    passed: list[Markup] = []
    left = HTML_BUDGET
    for sample in ranked(samples):
        numbers = [tags[tag] for tag in sample.tags if tag in tags]
        card = Markup(template.render(card=card_of(sample, page.reference), tags=numbers, turns=TURNS))
        left -= len(card.encode())
        if left < 0:
            break
        (passed if sample.passed else failed).append(card)
    return tuple(failed), tuple(passed)


def _failing(sample: Sample) -> Failing:
    answer = next(answer for answer in sample.adapter if not answer.passed)
    several = len(sample.adapter) > 1
    return Failing(sample, answer, missed_checks(answer), several, state(sample.adapter), state(sample.base))
