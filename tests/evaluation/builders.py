"""Small reports with known numbers, and texts that try to break out of where they are shown."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping, Sequence

from finetune.data.messages import Message
from finetune.evaluation.blocks import Opponent, perplexity_block, prompts_block, rival_block, row_scores, samples_of
from finetune.evaluation.checks import Answer, make_check
from finetune.evaluation.report import Evaluation, Perplexity, Report, ScoreTable, Versions
from finetune.evaluation.statistics import Scores
from finetune.evaluation.suite import Graded, Prompt, grade
from finetune.recipe import GenerationSection

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></article><img src=x onerror=alert(1)>",
    '"><a href="https://example.com">x</a>',
    "' onmouseover='alert(1)",
    "| a | b |\n|---|---|\n| forged | ✅ pass |",
    "```\n# Heading\n```",
    "`code` **bold** _it_ [x](https://example.com) ![i](http://example.com/i.png) <!-- -->",
    "]]>", "{{ 7 * 7 }} {% raw %}", "\x00\x07\x1b[31mred\x1b[0m\r\nnext", "a\u202egnp.exe", "\ud800 lone", "",
    "</details>", "www.example.com", "&lt;b&gt;",
]  # fmt: skip
Texts = Sequence[str | Sequence[str]]  # per prompt one answer, or several


def scores(seed: int, examples: int = 40, shift: float = 0.0) -> Scores:
    rng = random.Random(seed)
    tokens = [rng.randint(5, 40) for _ in range(examples)]
    rates = [rng.uniform(1.5, 3.0) for _ in range(examples)]
    noise = random.Random(shift)
    nll = [n * (r - shift + noise.gauss(0, 0.02)) for n, r in zip(tokens, rates, strict=True)]
    return Scores(tuple(nll), tuple(tokens), tuple(4 * n for n in tokens))


def prompts(count: int, wanted: str = "pizza") -> list[Prompt]:
    checks = (make_check("contains", wanted), make_check("stops", True))
    return [
        Prompt(
            f"p-{i}",
            (Message("system", "Be kind."), Message("user", f"question {i}")),
            ("all", "odd" if i % 2 else "even"),
            checks,
            f"f:{i}",
        )
        for i in range(count)
    ]


def graded(texts: Texts, wanted: str = "pizza") -> tuple[Graded, ...]:
    answers = [[Answer(text, True, 5) for text in ([given] if isinstance(given, str) else given)] for given in texts]
    return grade(prompts(len(texts), wanted), answers)


def an_evaluation(
    base: Texts = (), adapter: Texts = (), rivals: Mapping[str, Texts] | None = None, *, general: bool = True
) -> Evaluation:
    """An evaluation whose base and adapter gave these answers; rivals gave theirs."""
    rivals = rivals or {}
    samples = samples_of(graded(base), graded(adapter), {name: graded(texts) for name, texts in rivals.items()})
    pairs = [(scores(1), scores(1, shift=0.8)), (scores(2), scores(2, shift=-0.01))]
    rows = [
        row_scores(before, after, {name: scores(place + 1, shift=0.3) for name in rivals})
        for place, (before, after) in enumerate(pairs)
    ]
    table = ScoreTable(heldout=rows[0], general=rows[1] if general else None)
    blocks = [perplexity_block(*pair) for pair in pairs]
    report = Report(
        name="pizza",
        base="tiny",
        created="2026-01-02T03:04:05Z",
        versions=Versions(
            python="3.11.7", torch="2.13.0", transformers="5.5", peft="0.21", bitsandbytes=None, finetune="1"
        ),
        seed=0,
        generation=GenerationSection(),
        data={"data/pizza/heldout.jsonl": "0" * 64},
        perplexity=Perplexity(heldout=blocks[0], general=blocks[1] if general else None),
        prompts=prompts_block(samples) if samples else None,
        rivals=tuple(rival_block(Opponent(name, "adapter", None), table, samples) for name in rivals),
    )
    return Evaluation(report=report, samples=samples, scores=table)


def a_report(base: Texts = (), adapter: Texts = (), *, general: bool = True) -> Report:
    return an_evaluation(base, adapter, general=general).report
