"""A report as JUnit XML, which CI systems show as tests: each held-out prompt is one, each gate is one.

A prompt is a failure if any of its answers misses a check, and the message says how many passed: a
prompt that is answered right now and then is not one to rely on. If nothing but checks that could not
be carried out stands in the way, it is an error: nobody knows whether the answer is right. A gate that
is inconclusive is skipped with its reason, because nothing is known to be wrong. There is no single
standard; this keeps to what Jenkins, GitLab and GitHub's test reporters read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from finetune.evaluation.escaping import clip, visible
from finetune.evaluation.page import missed_checks, state
from finetune.evaluation.report import Answers, GateResult, Report, Sample

MAX_TEXT, MAX_NAME = 20_000, 1_000  # characters of the answers to a prompt; of its name or a message
# Everything that XML 1.0 has no way to say, section 2.2.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report, samples: Sequence[Sample]) -> str:
    """Render the adapter's answers and the gates as one XML document."""
    root = Element("testsuites", name=_legal(f"finetune eval {report.name}", MAX_NAME))
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
    case = SubElement(suite, "testcase", name=_legal(sample.id, MAX_NAME), classname="prompts")
    if not sample.passed:
        missed = [outcome for answer in sample.adapter for outcome in missed_checks(answer)]
        unknown = all(outcome.error for outcome in missed) and bool(missed)
        lines = list(dict.fromkeys(f"{outcome.check}: {outcome.detail}" for outcome in missed))
        message = "; ".join([state(sample.adapter)] * (len(sample.adapter) > 1) + lines[:1])
        found = SubElement(case, "error" if unknown else "failure", message=_legal(message, MAX_NAME), type="check")
        found.text = _legal("\n".join(lines))
    asked = "\n".join(f"{turn.role}: {turn.content}" for turn in sample.messages)
    said = "\n\n".join([asked, *_said("adapter", sample.adapter), *_said("base", sample.base)])
    SubElement(case, "system-out").text = _legal(said)


def _said(name: str, answers: Answers) -> list[str]:
    if len(answers) == 1:
        return [f"{name}: {answers[0].text}"]
    numbered = enumerate(answers, start=1)
    return [f"{name}, answer {n}, {'passed' if a.passed else 'failed'}: {a.text}" for n, a in numbered]


def _gate(suite: Element, gate: GateResult) -> None:
    case = SubElement(suite, "testcase", name=_legal(f"{gate.metric} {gate.bound}", MAX_NAME), classname="gates")
    said = f"{gate.value:.6g} ({gate.low:.6g} to {gate.high:.6g}): {gate.reason}"
    if gate.verdict == "fail":
        SubElement(case, "failure", message=_legal(said, MAX_NAME), type="gate")
    elif gate.verdict == "inconclusive":
        SubElement(case, "skipped", message=_legal(said, MAX_NAME))


def _count(suite: Element) -> None:
    suite.set("tests", str(len(suite)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))


def _sum_up(root: Element) -> None:
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))


def _legal(text: str, limit: int = MAX_TEXT) -> str:
    """Make visible what is not seen, replace what XML cannot hold, and cut what no CI system would show."""
    return _ILLEGAL.sub("\ufffd", visible(clip(text, limit, "more characters")))
