"""READ THIS FIRST. Train and evaluate as short compositions; the only library code that sees a
whole Recipe.

    recipe -> data -> 4-bit base -> LoRA -> loop -> adapter folder        train
    recipe + adapter -> perplexity, held-out prompts -> gates -> report   evaluate
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from finetune.data.batches import TrainingRows
from finetune.data.dataset import Dataset, Rows, load_dataset, load_rows
from finetune.data.encoding import Encoded
from finetune.data.examples import ANY_LENGTH, general_source
from finetune.data.tokens import cache_folder
from finetune.errors import AdapterError, RecipeError
from finetune.evaluation.baseline import MARGIN, hold_against, read_baseline, refuse_mismatch
from finetune.evaluation.gates import apply_gates, check_gates
from finetune.evaluation.perplexity import score_pair
from finetune.evaluation.report import (
    Perplexity,
    Report,
    Sample,
    Versions,
    perplexity_block,
    prompts_block,
    samples_of,
    write_report,
)
from finetune.evaluation.suite import Prompt, grade, load_prompts
from finetune.files import atomic_write_text
from finetune.model.base import Base, assert_trainable_through, load_base
from finetune.model.device import make_accelerator, pick_device
from finetune.model.lora import Parameters, attach, count_parameters
from finetune.model.readme import render_readme
from finetune.model.store import CARD, Card, StoredAdapter, find_adapter, metrics_of, save_folder
from finetune.model.tokenizer import load_chat_template
from finetune.provenance import now, versions
from finetune.recipe import EvalSection, Recipe, dump_recipe
from finetune.records import card_of, conditions_of, evaluated_files, run_key
from finetune.serving.assistant import Assistant
from finetune.training.loop import TrainingJob, TrainResult
from finetune.training.loop import train as run_loop
from finetune.training.telemetry import Emit, Event, NoticeEvent, plot_loss, write_log

MAX_WINDOW = 1024  # tokens of general text that are scored at a time


def train(recipe: Recipe, *, emit: Emit | None = None, fresh: bool = False) -> StoredAdapter:
    """Train the recipe's adapter and write its folder; resumes an interrupted run of the same recipe.

    `fresh` discards what an interrupted run left. Raises FinetuneError; see finetune.errors.
    """
    emit = emit or _silent
    accelerator = make_accelerator(recipe.base, recipe.train.trackers, Path(recipe.output) / "trackers")
    target = Path(recipe.output) / recipe.name
    checkpoint = Path(recipe.output) / f"{recipe.name}.checkpoint"
    _check_writable(target)
    template = load_chat_template(recipe.base)
    with accelerator.main_process_first():  # the others read what it has put into the cache
        dataset = load_dataset(recipe.data, template)
    base = load_base(recipe.base, accelerator.device, template)
    job = _job(recipe, base, dataset, checkpoint, emit)
    if fresh and accelerator.is_main_process:
        shutil.rmtree(checkpoint, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("finetune", json.loads(recipe.model_dump_json(exclude={"eval"})))
    parameters = count_parameters(job.model)
    emit(NoticeEvent(_describe(parameters, job)))
    result = run_loop(job, accelerator, emit)
    accelerator.end_training()
    if accelerator.is_main_process:
        card = card_of(recipe, base, dataset, job, result, parameters)
        save_folder(target, lambda folder: _write_adapter(folder, recipe, job.model, card, result))
        shutil.rmtree(checkpoint, ignore_errors=True)
    accelerator.wait_for_everyone()
    return find_adapter(str(target))


def evaluate(
    recipe: Recipe,
    adapter: StoredAdapter | str | None = None,
    *,
    baseline: str | Path | None = None,
    margin: float = MARGIN,
    emit: Emit | None = None,
) -> tuple[Report, Path]:
    """Compare an adapter with its base, write the report and return it with its folder.

    `adapter` is a name in the recipe's output folder or a folder; default: the recipe's own.
    `baseline`: an earlier report folder; a pass rate more than `margin` below its own fails.
    """
    emit = emit or _silent
    check_gates(recipe.eval)
    stored = adapter if isinstance(adapter, StoredAdapter) else find_adapter(adapter or recipe.name, recipe.output)
    template = load_chat_template(recipe.base)
    dataset = load_dataset(recipe.data, template)
    prompts = load_prompts(recipe.eval.prompts, recipe.data.system) if recipe.eval.prompts else ()
    bar = read_baseline(baseline) if baseline is not None else None
    base = load_base(recipe.base, pick_device(recipe.base), template)
    conditions = conditions_of(recipe, base, dataset)
    if bar is not None:
        refuse_mismatch(bar, conditions, prompts)
    bot = Assistant(base, [stored.folder])
    heldout, ordinary = dataset.heldout, _general_rows(recipe.eval, base, emit)
    if heldout.dropped:
        emit(NoticeEvent(f"{heldout.dropped} held-out rows are longer than data.max_length and were left out"))
    emit(NoticeEvent(f"scoring {len(heldout)} held-out and {len(ordinary or ())} general rows, base and adapter"))
    perplexity = _perplexity(bot, stored, heldout, ordinary, recipe.train.micro_batch_tokens)
    report = Report(
        name=stored.name,
        base=base.name,
        created=now(),
        versions=Versions(**versions()),
        seed=recipe.seed,
        generation=recipe.generation,
        data=evaluated_files(dataset, recipe.eval),
        conditions=conditions,
        perplexity=perplexity,
        prompts=None,
    )
    samples: tuple[Sample, ...] = ()
    if prompts:
        emit(NoticeEvent(f"answering {len(prompts)} prompts with the base and with {stored.name}"))
        report, samples = _answer_prompts(report, bot, stored, prompts, recipe)
    report = apply_gates(recipe.eval.gates, report)
    if bar is not None:
        report = hold_against(bar, report, samples, margin)
    folder = stored.folder / "report"
    curve = stored.folder / "loss.png"
    write_report(folder, report, samples, curve if curve.exists() else None)
    _publish_metrics(stored, report)
    return report, folder


def _job(recipe: Recipe, base: Base, dataset: Dataset, checkpoint: Path, emit: Emit) -> TrainingJob:
    limit = recipe.data.max_length
    if base.max_positions is not None and limit > base.max_positions:
        raise RecipeError(
            f"data.max_length {limit} is more than the {base.max_positions} positions of {base.name}",
            fix=f"set data.max_length to {base.max_positions} or less",
        )
    _report_dropped(dataset, limit, emit)
    rows = TrainingRows(dataset.train, tuple((mixed.rows, mixed.weight) for mixed in dataset.mix))
    if not base.packs:
        emit(NoticeEvent(f"{base.name} cannot keep packed examples apart: one example per row, which is slower"))
    model = attach(base, recipe.adapter, recipe.seed)
    key = run_key(recipe, base, dataset)
    return TrainingJob(base, model, rows, dataset.heldout, recipe.train, recipe.seed, checkpoint, key)


def _report_dropped(dataset: Dataset, limit: int, emit: Emit) -> None:
    parts = [("training", dataset.train), ("held-out", dataset.heldout), *(("mixed-in", m.rows) for m in dataset.mix)]
    for name, rows in parts:
        if rows.dropped:
            what = f"{rows.dropped} of {len(rows.tokens)} {name} rows"
            emit(NoticeEvent(f"{what} exceed {limit} tokens and were dropped"))


def _general_rows(section: EvalSection, base: Base, emit: Emit) -> Rows | None:
    if section.general is None:
        return None
    rows, window = load_rows(general_source(section.general), base.template, ANY_LENGTH), _window(base)
    if long := int((rows.tokens.lengths > window).sum()):
        what = f"{long} general rows are longer than {window} tokens and are scored in windows of so many"
        emit(NoticeEvent(f"{what}, each with half a window of context"))
    return rows


def _window(base: Base) -> int:
    """Tokens that general text is scored in at a time."""
    return min(MAX_WINDOW, base.max_positions or MAX_WINDOW)


def _write_adapter(folder: Path, recipe: Recipe, model: PeftModel, card: Card, result: TrainResult) -> None:
    assert_trainable_through(model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = recipe.base.model, recipe.base.revision
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")
    write_log(folder / "log.jsonl", result.log)
    plot_loss(result.log, folder / "loss.png", f"{recipe.name}: loss on {recipe.base.model}")


def _perplexity(
    bot: Assistant, stored: StoredAdapter, heldout: Sequence[Encoded], general: Sequence[Encoded] | None, budget: int
) -> Perplexity:
    with bot.adapted(stored.name) as model:
        return Perplexity(
            heldout=perplexity_block(*score_pair(bot.base, model, heldout, budget)),
            general=perplexity_block(*score_pair(bot.base, model, general, budget, _window(bot.base)))
            if general
            else None,
        )


def _answer_prompts(
    report: Report, bot: Assistant, stored: StoredAdapter, prompts: tuple[Prompt, ...], recipe: Recipe
) -> tuple[Report, tuple[Sample, ...]]:
    conversations = [prompt.messages for prompt in prompts]
    verdicts = cache_folder() / "judge"  # what a judge said of an answer holds for the next evaluation, too
    before = grade(prompts, bot.answer(conversations, None, recipe.generation, recipe.seed), verdicts)
    after = grade(prompts, bot.answer(conversations, stored.name, recipe.generation, recipe.seed), verdicts)
    return report.model_copy(update={"prompts": prompts_block(before, after)}), samples_of(before, after)


def _publish_metrics(stored: StoredAdapter, report: Report) -> None:
    """Put the headline numbers into the adapter's card and model card."""
    card = stored.card.model_copy(update={"metrics": metrics_of(report.model_dump(mode="json"))})
    atomic_write_text(stored.folder / CARD, card.model_dump_json(indent=2) + "\n")
    atomic_write_text(stored.folder / "README.md", render_readme(card))


def _check_writable(target: Path) -> None:
    """Find out before hours of training whether the adapter can be written at the end."""
    probe = target.parent / ".writable"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(20, "a file stands where the adapter folder belongs")
    except OSError as error:
        raise AdapterError(
            f"output folder cannot be written ({error.strerror or error})", where=str(target), fix="set output: FOLDER"
        ) from None


def _describe(parameters: Parameters, job: TrainingJob) -> str:
    mega = 1024 * 1024
    return (
        f"training {parameters.trained:,} of {parameters.total:,} parameters ({parameters.share:.2%}); model in memory "
        f"{parameters.bytes_now / mega:,.1f} MiB (16-bit {parameters.bytes_16bit / mega:,.1f}, "
        f"32-bit {parameters.bytes_32bit / mega:,.1f}); {len(job.rows):,} examples an epoch, {job.steps:,} steps"
    )


def _silent(event: Event) -> None:
    return None
