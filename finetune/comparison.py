"""Everybody on the same rows and prompts: the base, the adapter, further adapters and earlier reports.

What has been computed is kept in journals, one per model, by everything that could change it: a killed
evaluation goes on where it was, and the base is not asked again for the next adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from finetune.data.encoding import Encoded
from finetune.data.tokens import tokenizer_sha256
from finetune.errors import AdapterError
from finetune.evaluation.baseline import beside, refuse_mismatch, scores_beside
from finetune.evaluation.blocks import (
    Opponent,
    perplexity_block,
    prompts_block,
    rival_block,
    row_scores,
    samples_of,
)
from finetune.evaluation.perplexity import score_model
from finetune.evaluation.report import (
    Evaluation,
    Heading,
    Perplexity,
    PerplexityPair,
    Report,
    RowScores,
    Sample,
    ScoreTable,
    storable,
)
from finetune.evaluation.statistics import Scores
from finetune.evaluation.suite import Graded, Prompt, grade
from finetune.evaluation.tasks import TaskScore, run_tasks
from finetune.files import cache_folder, sha256_file
from finetune.journal import Journal, open_journal
from finetune.model.base import Base, weight_files
from finetune.provenance import code_sha256, versions
from finetune.recipe import BaseSection, Recipe
from finetune.serving.assistant import Assistant
from finetune.store.folders import CONFIG, WEIGHTS, StoredAdapter
from finetune.training.budget import SCORING_TOKENS

Tasks = Mapping[str, tuple[TaskScore, ...]]
MAX_WINDOW = 1024  # tokens of general text that are scored at a time


@dataclass(frozen=True)
class Field:
    """Who takes part; the first adapter is the one that is judged, None stands for the base."""

    bot: Assistant
    adapters: tuple[StoredAdapter, ...]
    earlier: Mapping[str, Evaluation]  # earlier reports by the names they get here
    journals: Mapping[str | None, Journal]

    @property
    def own(self) -> str:
        """The name of the adapter that is judged."""
        return self.adapters[0].name

    @property
    def who(self) -> str:
        """The models, for a person."""
        return f"base and {', '.join(adapter.name for adapter in self.adapters)}"


def make_field(
    section: BaseSection,
    base: Base,
    adapters: Sequence[StoredAdapter],
    earlier: Mapping[str, Evaluation],
    *,
    fresh: bool = False,
) -> Field:
    """Load all adapters beside each other onto the base; `fresh` forgets what earlier evaluations computed.

    Raises AdapterError if one was trained on another base.
    """
    names = [adapter.name for adapter in adapters]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise AdapterError(f"adapter {double!r} is to be compared with itself", fix="give another name or folder")
    bot = Assistant(base, [adapter.folder for adapter in adapters])
    shared = _conditions(section, base)
    journals: dict[str | None, Journal] = {None: _journal({**shared, "adapter": None}, fresh)}
    for adapter in adapters:
        digests = [sha256_file(adapter.folder / name) for name in (WEIGHTS, CONFIG)]
        journals[adapter.name] = _journal({**shared, "adapter": digests}, fresh)
    return Field(bot, tuple(adapters), earlier, journals)


def recalled(field: Field) -> str:
    """Say how much was not computed now; empty if everything was."""
    kept = sum(journal.recalled for journal in field.journals.values())
    total = kept + sum(journal.computed for journal in field.journals.values())
    what = f"{kept:,} of {total:,} batches come from an earlier evaluation, kept in {cache_folder('answers')}"
    return f"{what} (--fresh computes them again)" if kept else ""


def window_of(base: Base) -> int:
    """Tokens that general text is scored in at a time."""
    return min(MAX_WINDOW, base.max_positions or MAX_WINDOW)


def score_all(field: Field, heldout: Sequence[Encoded], general: Sequence[Encoded] | None, budget: int) -> ScoreTable:
    """Score the same rows with every model, `budget` tokens per forward pass; earlier reports bring their own."""
    table = ScoreTable(
        heldout=_score(field, heldout, budget, None),
        general=_score(field, general, budget, window_of(field.bot.base)) if general else None,
    )
    return scores_beside(table, field.earlier)


def answer_all(field: Field, prompts: Sequence[Prompt], recipe: Recipe, repeat: int) -> tuple[Sample, ...]:
    """Have every model answer every prompt, as often as the prompt or else `repeat` says, and check the answers."""
    verdicts = open_journal(cache_folder("judge"), "what judges said holds for the next evaluation, too")
    graded: dict[str | None, tuple[Graded, ...]] = {}
    for name, journal in field.journals.items():
        times = [prompt.samples or repeat for prompt in prompts]
        asked = [(prompt.messages, recipe.seed + i) for prompt, n in zip(prompts, times, strict=True) for i in range(n)]
        seeds = [seed for _, seed in asked]
        answers = iter(field.bot.answer([talk for talk, _ in asked], name, recipe.generation, seeds, journal))
        graded[name] = grade(prompts, [[next(answers) for _ in range(n)] for n in times], verdicts)
    others = {adapter.name: graded[adapter.name] for adapter in field.adapters[1:]}
    return beside(samples_of(graded[None], graded[field.own], others), field.earlier)


def run_all_tasks(field: Field, recipe: Recipe) -> Tasks:
    """Run the recipe's lm-eval tasks with every model; return each adapter's scores beside the base's."""
    if not recipe.eval.tasks:
        return {}
    models = {name: partial(field.bot.adapted, name) for name in field.journals}
    return run_tasks(field.bot.base, models, recipe.eval.tasks, seed=recipe.seed, budget=SCORING_TOKENS)


def evaluation_of(
    field: Field, heading: Heading, scores: ScoreTable, samples: tuple[Sample, ...], tasks: Tasks
) -> Evaluation:
    """Make the report of what was measured, without gates yet."""
    opponents = [Opponent(adapter.name, "adapter", None) for adapter in field.adapters[1:]]
    opponents += [Opponent(name, "report", found.report.created) for name, found in field.earlier.items()]
    report = Report(
        **dict(heading),
        perplexity=Perplexity(
            heldout=_block(scores.heldout), general=_block(scores.general) if scores.general else None
        ),
        prompts=prompts_block(samples) if samples else None,
        rivals=tuple(rival_block(who, scores, samples, _tasks_of(field, who.name, tasks)) for who in opponents),
        tasks=tasks.get(field.own, ()),
    )
    return Evaluation(report=report, samples=samples, scores=scores)


def _tasks_of(field: Field, name: str, tasks: Tasks) -> tuple[TaskScore, ...]:
    return field.earlier[name].report.tasks if name in field.earlier else tasks.get(name, ())


def name_earlier(
    found: Mapping[str, Evaluation], conditions: Mapping[str, str], prompts: Sequence[Prompt]
) -> dict[str, Evaluation]:
    """Name earlier reports, given by their folders, after adapter and day.

    Raises DataError if one was made under other conditions or with other prompts.
    """
    named: dict[str, Evaluation] = {}
    for folder, earlier in found.items():
        refuse_mismatch(earlier, folder, conditions, prompts)
        name = f"{earlier.report.name} of {earlier.report.created[:10]}"
        named[name if name not in named else storable(f"{name} in {folder}")] = earlier
    return named


def _score(field: Field, rows: Sequence[Encoded], budget: int, window: int | None) -> RowScores:
    found: dict[str | None, Scores] = {}
    for name, journal in field.journals.items():
        with field.bot.adapted(name) as base:
            found[name] = score_model(base, rows, budget, window, journal=journal)
    others = {adapter.name: found[adapter.name] for adapter in field.adapters[1:]}
    return row_scores(found[None], found[field.own], others)


def _block(rows: RowScores) -> PerplexityPair:
    return perplexity_block(*(Scores(nll, rows.tokens, rows.bytes) for nll in (rows.base, rows.adapter)))


def _journal(conditions: Mapping[str, object], fresh: bool) -> Journal:
    return open_journal(cache_folder("answers"), conditions, fresh=fresh)


def _conditions(section: BaseSection, base: Base) -> dict[str, object]:
    """Everything but the adapter, the prompt and the sampling that could change an answer or a score."""
    return {
        "base": base.fingerprint,
        "weight files": weight_files(section),
        "tokenizer": tokenizer_sha256(base.tokenizer),
        "template": str(base.template.tokenizer.chat_template),
        "quantization": section.quantization,
        "dtype": str(base.model.dtype),
        "device": _device(base.device),
        "code": code_sha256(Path(__file__).parent),
        "versions": versions(),
    }


def _device(device: torch.device) -> list[str]:
    """Processors of other kinds round differently."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [device.type, kind]
