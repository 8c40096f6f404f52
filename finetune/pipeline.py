"""READ THIS FIRST. Train and evaluate as short compositions; the only library code that sees a
whole Recipe.

    recipe -> data -> 4-bit base -> LoRA -> loop -> adapter folder        train
    recipe + adapter -> perplexity, held-out prompts -> gates -> report   evaluate
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel

from finetune.comparison import (
    answer_all,
    evaluation_of,
    make_field,
    name_earlier,
    recalled,
    run_all_tasks,
    score_all,
    window_of,
)
from finetune.data.batches import TrainingRows
from finetune.data.dataset import Dataset, Rows, load_dataset, load_rows
from finetune.data.examples import ANY_LENGTH, general_source
from finetune.errors import AdapterError, FinetuneError, RecipeError
from finetune.evaluation.folder import is_report, read_evaluation, write_report
from finetune.evaluation.gates import apply_gates, gates_of
from finetune.evaluation.report import Evaluation, Report
from finetune.evaluation.suite import load_prompts, refuse_equal_answers
from finetune.evaluation.tasks import check_tasks
from finetune.files import atomic_write_text
from finetune.model.base import Base, assert_trainable_through, load_base
from finetune.model.device import make_accelerator, pick_device
from finetune.model.lora import Parameters, attach, count_parameters
from finetune.model.readme import render_readme
from finetune.model.shapes import shape_of
from finetune.model.store import CARD, Card, StoredAdapter, find_adapter, metrics_of, save_folder
from finetune.model.tokenizer import load_chat_template
from finetune.planning.load import measure_load, workload
from finetune.recipe import EvalSection, Recipe, dump_recipe
from finetune.records import card_of, heading_of, hyperparameters, run_key
from finetune.training.budget import SCORING_TOKENS, plan_memory
from finetune.training.loop import TrainingJob, TrainResult
from finetune.training.loop import train as run_loop
from finetune.training.telemetry import Emit, Event, NoticeEvent, plot_loss, write_log


def train(
    recipe: Recipe,
    *,
    emit: Emit | None = None,
    fresh: bool = False,
    checkpoint_every: int = 100,
    trackers: Sequence[str] = (),
    memory: int | None = None,
) -> StoredAdapter:
    """Train the recipe's adapter and write its folder; resumes an interrupted run of the same recipe.

    `fresh` discards what an interrupted run left. `checkpoint_every`: optimizer steps between checkpoints to resume
    from. `trackers`: accelerate's names, such as tensorboard. `memory`: bytes of the device that may be used;
    default: what is free. Raises FinetuneError; see finetune.errors.
    """
    if checkpoint_every < 1:
        raise FinetuneError(f"checkpoint_every is {checkpoint_every}", fix="give 1 step or more")
    emit = emit or _silent
    accelerator = make_accelerator(trackers, Path(recipe.output) / "trackers")
    target = Path(recipe.output) / recipe.name
    checkpoint = Path(recipe.output) / f"{recipe.name}.checkpoint"
    _check_writable(target)
    template = load_chat_template(recipe.base)
    with accelerator.main_process_first():  # the others read what it has put into the cache
        dataset = load_dataset(recipe.data, template)
    base = load_base(recipe.base, accelerator.device, template)
    job = _job(recipe, base, dataset, _Run(checkpoint, checkpoint_every, memory), emit)
    if fresh and accelerator.is_main_process:
        shutil.rmtree(checkpoint, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("finetune", hyperparameters(recipe))
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


def evaluate(  # noqa: PLR0913 (each is an option of finetune eval)
    recipe: Recipe,
    adapter: StoredAdapter | str | None = None,
    *,
    baseline: str | Path | None = None,
    compare: Sequence[str | Path] = (),
    repeat: int = 1,
    fresh: bool = False,
    emit: Emit | None = None,
) -> tuple[Report, Path]:
    """Compare an adapter with its base, write the report and return it with its folder.

    `adapter` is a name in the recipe's output folder or a folder; default: the recipe's own.
    `baseline`: an earlier report folder that gates hold the adapter against. `compare`: further adapters
    or report folders to set beside it. `repeat`: answers to each prompt that does not say itself how many.
    What an earlier or interrupted evaluation has computed is not computed again, unless `fresh`.
    """
    emit = emit or _silent
    gates = gates_of(recipe.eval, baseline=baseline is not None)
    stored = adapter if isinstance(adapter, StoredAdapter) else find_adapter(adapter or recipe.name, recipe.output)
    prompts = load_prompts(recipe.eval.prompts, recipe.data.system) if recipe.eval.prompts else ()
    refuse_equal_answers(prompts, repeat, recipe.generation.temperature)
    if recipe.eval.tasks:
        check_tasks(recipe.eval.tasks)
    others, earlier = _opponents(recipe.output, baseline, compare)
    template = load_chat_template(recipe.base)
    dataset = load_dataset(recipe.data, template)
    base = load_base(recipe.base, pick_device(), template)
    heading = heading_of(recipe, stored.name, base, dataset)
    named = name_earlier(earlier, heading.conditions, prompts)
    field = make_field(recipe.base, base, [stored, *others], named, fresh=fresh)
    heldout, general = dataset.heldout, _general_rows(recipe.eval, base, emit)
    if heldout.dropped:
        emit(NoticeEvent(f"{heldout.dropped} held-out rows are longer than data.max_length and were left out"))
    emit(NoticeEvent(f"scoring {len(heldout)} held-out and {len(general or ())} general rows: {field.who}"))
    scores = score_all(field, heldout, general, SCORING_TOKENS)
    if prompts:
        emit(NoticeEvent(f"answering {len(prompts)} prompts: {field.who}"))
    samples = answer_all(field, prompts, recipe, repeat)
    if kept := recalled(field):
        emit(NoticeEvent(kept))
    if recipe.eval.tasks:
        emit(NoticeEvent(f"running {', '.join(recipe.eval.tasks)}: {field.who}"))
    tasks = run_all_tasks(field, recipe)
    if cut := [score.task for score in tasks.get(stored.name, ()) if score.truncated]:
        emit(NoticeEvent(f"{', '.join(dict.fromkeys(cut))}: prompts that do not fit the model were cut on the left"))
    found = apply_gates(gates, evaluation_of(field, heading, scores, samples, tasks), next(iter(named), None))
    curve, folder = stored.folder / "loss.png", stored.folder / "report"
    write_report(folder, found, loss_png=curve if curve.exists() else None, recipe=dump_recipe(recipe))
    _publish_metrics(stored, found.report)
    return found.report, folder


def _opponents(
    store: str, baseline: str | Path | None, compare: Sequence[str | Path]
) -> tuple[list[StoredAdapter], dict[str, Evaluation]]:
    """Find the adapters and read the reports that take part, the baseline first."""
    reports = [str(baseline)] if baseline is not None else []
    reports += [str(place) for place in compare if is_report(place)]
    adapters = [find_adapter(str(place), store) for place in compare if not is_report(place)]
    return adapters, {place: read_evaluation(place) for place in reports}


class _Run(NamedTuple):
    checkpoint: Path
    every: int  # steps between checkpoints
    memory: int | None  # bytes of the device that may be used


def _job(recipe: Recipe, base: Base, dataset: Dataset, run: _Run, emit: Emit) -> TrainingJob:
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
    shape, load = shape_of(base.model, recipe.adapter), measure_load(recipe, dataset)
    model = attach(base, recipe.adapter, recipe.seed, rows)
    work = workload(recipe, load, cpu=base.device.type == "cpu")
    plan = plan_memory(base, model, shape, work, load.step_tokens, run.memory)
    emit(NoticeEvent(plan.describe()))
    key = run_key(recipe, base, dataset)
    return TrainingJob(
        base,
        model,
        rows,
        dataset.heldout,
        recipe.train,
        recipe.seed,
        run.checkpoint,
        run.every,
        key,
        plan,
        recipe.adapter.methods,
    )


def _report_dropped(dataset: Dataset, limit: int, emit: Emit) -> None:
    parts = [("training", dataset.train), ("held-out", dataset.heldout), *(("mixed-in", m.rows) for m in dataset.mix)]
    for name, rows in parts:
        if rows.dropped:
            what = f"{rows.dropped} of {len(rows.tokens)} {name} rows"
            emit(NoticeEvent(f"{what} exceed {limit} tokens and were dropped"))


def _general_rows(section: EvalSection, base: Base, emit: Emit) -> Rows | None:
    if section.general is None:
        return None
    rows, window = load_rows(general_source(section.general), base.template, ANY_LENGTH), window_of(base)
    if long := int((rows.tokens.lengths > window).sum()):
        what = f"{long} general rows are longer than {window} tokens and are scored in windows of so many"
        emit(NoticeEvent(f"{what}, each with half a window of context"))
    return rows


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
