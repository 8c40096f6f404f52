"""report.html: what a person finds in it, in which order, and how much of it there is."""

from __future__ import annotations

import base64
import hashlib
import re
import time

import pytest
from selectolax.lexbor import LexborHTMLParser, LexborNode

from finetune.evaluation.gates import apply_gates
from finetune.evaluation.render import render_html
from finetune.evaluation.report import Evaluation, Sample, SampleAnswer
from finetune.recipe import Gate, Metric
from tests.evaluation.builders import PNG, Texts, an_evaluation


def page_of(found: Evaluation, **given: object) -> LexborNode:
    root = LexborHTMLParser(render_html(found.report, found.samples, **given)).root  # type: ignore[arg-type]
    assert root is not None
    return root


def a_page(base: Texts = (), adapter: Texts = (), rivals: dict[str, Texts] | None = None) -> LexborNode:
    return page_of(an_evaluation(base, adapter, rivals))


def card(page: LexborNode, name: str) -> LexborNode:
    (found,) = page.css(f"article[id='{name}']")
    return found


def texts(node: LexborNode, selector: str) -> list[str]:
    return [" ".join(found.text().split()) for found in node.css(selector)]


def test_a_person_sees_the_verdict_and_the_numbers() -> None:
    gates: dict[Metric, Gate] = {"prompts.gain": Gate(at_least=0.5), "prompts.pass_rate": Gate(at_least=0.95)}
    page = page_of(apply_gates(gates, an_evaluation(["x"] * 40, ["pizza"] * 39 + ["x"])))
    text = " ".join(page.text().split())
    assert "? Inconclusive 1 of 2 gates is undecided: too little data (prompts.pass_rate)." in text
    assert "0 → 39 of 40" in text
    assert "prompts instead of 40" in text
    assert re.search(
        r"So many prompts show a drop of \d+ points or more from one adapter to the next 9 times out of 10, if 20% of",
        text,
    )
    assert text.index("Inconclusive") < text.index("Held-out perplexity") < text.index("Comparison")


def test_regressions_come_first_and_what_passed_is_folded_away() -> None:
    page = a_page(["x", "pizza", "x", "pizza"], ["x", "pizza", "pizza", "x"])
    assert texts(page, ".sample h3") == ["p-3", "p-0", "p-1", "p-2"]
    assert [one.attributes["data-outcome"] for one in page.css(".sample")] == [
        "failed regressed",
        "failed",
        "passed",
        "gained passed",
    ]
    assert texts(page, "details.passed .sample h3") == ["p-1", "p-2"]
    assert texts(page, "details.passed > summary") == ["2 prompts that the adapter passed"]


def test_the_deepest_fall_comes_first() -> None:
    base = [["pizza"] * 4] * 3
    adapter = [["pizza", "pizza", "pizza", "x"], ["x"] * 4, ["pizza", "x", "x", "x"]]
    assert texts(a_page(base, adapter), ".sample h3") == ["p-1", "p-2", "p-0"]


def test_words_are_marked_against_the_base_or_else_an_earlier_report() -> None:
    answers = {"base": ["I have two pizzas here."], "adapter": ["I have three small pizzas here."]}
    page = a_page(*answers.values(), {"other": ["I have nine pizzas here."]})
    assert texts(page, ".sample del") == ["two"]
    assert texts(page, ".sample ins") == ["three small"]
    found = an_evaluation(*answers.values(), {"other": ["I have nine pizzas here."]})
    earlier = found.report.rivals[0].model_copy(update={"kind": "report", "created": "2026-01-01T00:00:00Z"})
    page = page_of(found.model_copy(update={"report": found.report.model_copy(update={"rivals": (earlier,)})}))
    assert texts(page, ".sample del") == ["nine"]
    assert texts(page, ".side:nth-child(1) del") == []
    assert "that are not in the answer of other" in page.text()


@pytest.mark.parametrize(
    ("base", "adapter", "note"),
    [
        ("two pizzas", "two pizzas", "same as the base"),
        ("one two three four five", "six seven eight nine ten", "all of it other than the base"),
        ("pizza " * 3000, "pizza " * 3001, "too long to mark"),
        ("", "two pizzas", ""),
    ],
)
def test_what_cannot_be_marked_is_shown_plainly(base: str, adapter: str, note: str) -> None:
    page = a_page([base], [adapter])
    assert texts(page, ".sample ins, .sample del") == []
    assert texts(page, "h4 small") == ([f"({note})"] if note else [])


def test_rivals_stand_beside_and_in_the_comparison() -> None:
    page = a_page(["x", "pizza", "x"], ["pizza", "pizza", "x"], {"first": ["x", "pizza", "pizza"], "second": ["x"] * 3})
    assert texts(page, ".standings tbody th") == ["tinybase", "pizzathis adapter", "firstadapter", "secondadapter"]
    gains = [row.css("td")[3].text() for row in page.css(".standings tbody tr")]
    assert [gain.split(" points")[0] for gain in gains] == ["+33.3", "–", "+0.0", "+66.7"]
    sides = [title.split(" (")[0] for title in texts(card(page, "p-0"), ".side h4")]
    assert sides == ["Base", "Adapter", "first", "second"]
    said = " ".join(page.text().split())
    assert "Against first, this adapter passes 1 prompt less often (p-2) and 1 more often (p-0)." in said
    assert [link.attributes["href"] for link in page.css("main > p a")] == ["#p-2", "#p-0", "#p-0", "#p-1"]


def test_many_rivals_are_counted_where_they_are_not_shown() -> None:
    page = a_page(["x"], ["pizza"], {f"rival-{place}": ["x"] for place in range(9)})
    assert len(page.css(".standings tbody tr")) == 11
    assert len(page.css(".side")) == 8
    assert "3 more models' answers are in samples.jsonl." in page.text()


def test_several_answers_failed_ones_first_and_the_rest_folded() -> None:
    page = a_page([["x"] * 5], [["pizza", "pizza", "no", "pizza", "pizza"]])
    side = card(page, "p-0").css(".side")[1]
    assert side.css_first("h4").text().startswith("Adapter · 4 of 5 answers passed")
    assert [title.split(" · ")[0] for title in texts(side, ".side > .answer h5")] == [
        "Answer 3 ✗ failed",
        "Answer 1 ✓ passed",
    ]
    assert texts(side, "details > summary") == ["3 more answers"]
    assert len(side.css("details .answer")) == 3
    assert card(page, "p-0").attributes["data-outcome"] == "failed gained flaky"
    text = " ".join(page.text().split())
    assert "pass@5 0.0%" in text
    assert "1 of 1 prompts are flaky" in text
    assert texts(page, "td a") == ["p-0"]


def test_a_check_that_could_not_be_carried_out_is_told_from_a_failure() -> None:
    found = an_evaluation(["pizza"], ["no"])
    page = page_of(found.model_copy(update={"samples": (with_error(found.samples[0]),)}))
    assert card(page, "p-0").attributes["data-outcome"] == "failed regressed error"
    assert "⚠ not carried out" in card(page, "p-0").text()
    assert "not carried out" not in a_page(["pizza"], ["no"]).text()


def with_error(sample: Sample) -> Sample:
    """The same, but the check of the adapter's answers broke down."""

    def broken(answer: SampleAnswer) -> SampleAnswer:
        outcomes = (answer.outcomes[0].model_copy(update={"error": True}), *answer.outcomes[1:])
        return answer.model_copy(update={"outcomes": outcomes})

    return sample.model_copy(update={"adapter": tuple(map(broken, sample.adapter))})


def test_every_state_of_the_report_renders() -> None:
    for found in (an_evaluation(general=False), an_evaluation()):
        page = page_of(found)
        assert "not measured" in page.text()
        assert not page.css("script, .filters, .sample")
    assert "The adapter passed every prompt." not in a_page(["pizza"], ["x"]).text()
    assert "The adapter passed every prompt." in a_page(["pizza"], ["pizza"]).text()


def test_gates_colour_the_tiles() -> None:
    """Who wrote a gate has said what is acceptable; without one, the interval decides."""
    plain = an_evaluation()
    assert page_of(plain).css(".tile.good")
    strict = apply_gates({"perplexity.heldout.ratio": Gate(at_most=0.01)}, plain)
    assert page_of(strict).css(".tile.bad")
    assert "1 of 1 gate failed (perplexity.heldout.ratio)." in page_of(strict).text()


def test_the_policy_allows_this_script_and_this_style_alone_and_nothing_is_loaded() -> None:
    found = an_evaluation(["x"], ["pizza"])
    html = render_html(found.report, found.samples, PNG, "name: pizza")
    page = LexborHTMLParser(html).root
    assert page is not None
    policy = page.css_first("meta[http-equiv]").attributes["content"] or ""
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("img-src data:; base-uri 'none'; form-action 'none'")
    assert "unsafe" not in policy
    assert not page.css("[style], [onclick], [onload], iframe, object, embed, form")
    addresses = [node.attributes.get("src") or node.attributes.get("href") or "" for node in page.css("[src], [href]")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import", html)
    assert "name: pizza" in [pre.text() for pre in page.css("details pre")]


def test_ten_thousand_prompts_fit_and_take_linear_time() -> None:
    lengths = (12, 12, 200)
    base = [" ".join(f"word{(place * i) % 97}" for i in range(lengths[place % 3])) for place in range(300)]
    adapter = [f"{text} pizza" if place % 3 else f"<&'\"> {text}" for place, text in enumerate(base)]
    found = an_evaluation(base, adapter)
    samples = tuple(
        sample.model_copy(update={"id": f"{sample.id}-{copy}"}) for copy in range(34) for sample in found.samples
    )[:10_000]
    start = time.process_time()
    html = render_html(found.report, samples)
    assert time.process_time() - start < 12  # about 1.2 s on a quiet core
    assert len(html.encode()) < 5_000_000
    page = LexborHTMLParser(html).root
    assert page is not None
    cards = len(page.css(".sample"))
    assert cards > 500
    assert f"{10_000 - cards:,} more prompts are in samples.csv and samples.jsonl" in page.text()
    assert not page.css("details.passed")  # failures fill the page, the worst first


def test_no_prompt_is_so_large_that_the_page_is() -> None:
    huge = an_evaluation([["&" * 50_000] * 300] * 3, [["<'\"\u202e" * 10_000] * 300] * 3)
    html = render_html(huge.report, huge.samples, recipe="x" * 10**6)
    assert len(html.encode()) < 5_000_000
    assert html.count("<article") == 3
    assert "290 more are in samples.jsonl." in html
