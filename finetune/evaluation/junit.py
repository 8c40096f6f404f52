"""A report as JUnit XML, which CI systems show as tests: each held-out prompt is one, each gate is one.

A prompt whose answer misses a check is a failure. A gate that is inconclusive is skipped with its
reason, because nothing is known to be wrong. There is no single standard; this keeps to what Jenkins,
GitLab and GitHub's test reporters read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

if TYPE_CHECKING:  # report.py writes what this module renders
    from finetune.evaluation.report import GateResult, Report, Sample

MAX_TEXT = 20_000  # characters of one answer
# Everything that XML 1.0 has no way to say, section 2.2.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report, samples: Sequence[Sample]) -> str:
    """Render the adapter's answers and the gates as one XML document."""
    root = Element("testsuites", name=_legal(f"finetune eval {report.name}"))
    if samples:
        prompts = SubElement(root, "testsuite", name="prompts", timestamp=report.created)
        for sample in samples:
            _prompt(prompts, sample)
        _count(prompts)
    if report.gates:
        gates = SubElement(root, "testsuite", name="gates", timestamp=report.created)
        for gate in report.gates:
            _gate(gates, gate)
        _count(gates)
    _sum_up(root)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _prompt(suite: Element, sample: Sample) -> None:
    case = SubElement(suite, "testcase", name=_legal(sample.id), classname="prompts")
    missed = [outcome for outcome in sample.adapter.outcomes if not outcome.passed]
    if missed:
        text = "\n".join(f"{outcome.check}: {outcome.detail}" for outcome in missed)
        failure = SubElement(case, "failure", message=_legal(text.splitlines()[0]), type="check")
        failure.text = _legal(text)
    asked = "\n".join(f"{turn.role}: {turn.content}" for turn in sample.messages)
    said = f"{asked}\n\nadapter: {sample.adapter.text}\n\nbase: {sample.base.text}"
    SubElement(case, "system-out").text = _legal(said)


def _gate(suite: Element, gate: GateResult) -> None:
    case = SubElement(suite, "testcase", name=_legal(f"{gate.metric} {gate.bound}"), classname="gates")
    said = f"{gate.value:.6g} ({gate.low:.6g} to {gate.high:.6g}): {gate.reason}"
    if gate.verdict == "fail":
        SubElement(case, "failure", message=_legal(said), type="gate")
    elif gate.verdict == "inconclusive":
        SubElement(case, "skipped", message=_legal(said))


def _count(suite: Element) -> None:
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("errors", "0")


def _sum_up(root: Element) -> None:
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))


def _legal(text: str) -> str:
    """Replace what XML cannot hold, and cut what no CI system would show."""
    text = _ILLEGAL.sub("\ufffd", text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT:,} more characters)"
