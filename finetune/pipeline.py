"""READ THIS FIRST. Train and evaluate as short compositions; the only library code that sees a
whole Recipe.

    recipe -> data -> 4-bit base -> LoRA -> loop -> adapter folder        train
    recipe + adapter -> perplexity, held-out prompts -> gates -> report   evaluate
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

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
from finetune.data.dataset import Dataset, Rows, load_dataset, load_rows
from finetune.data.examples import ANY_LENGTH, general_source
from finetune.errors import AdapterError, FinetuneError
from finetune.evaluation.folder import is_report, read_evaluation, write_report
from finetune.evaluation.gates import apply_gates, gates_of
from finetune.evaluation.report import Evaluation, Report
from finetune.evaluation.suite import load_prompts, refuse_equal_answers
from finetune.evaluation.tasks import check_tasks
from finetune.files import atomic_write_text
from finetune.jobs import RunOptions, check_together, make_jobs
from finetune.model.base import Base, assert_trainable_through, load_base
from finetune.model.compiled import require_compiler
from finetune.model.device import make_accelerator, pick_device
from finetune.model.lora import Parameters, count_parameters
from finetune.model.tokenizer import load_chat_template
from finetune.recipe import EvalSection, Recipe, dump_recipe
from finetune.records import card_of, described, heading_of
from finetune.store.cards import RECIPE, steady_files
from finetune.store.folders import CARD, Card, StoredAdapter, find_adapter, metrics_of, save_folder
from finetune.store.readme import render_readme
from finetune.training.budget import SCORING_TOKENS
from finetune.training.loop import train_together as run_loop
from finetune.training.run import TrainingJob, TrainResult
from finetune.training.telemetry import Emit, Event, NoticeEvent, plot_loss, write_log


def train(  # noqa: PLR0913 (each is an option of finetune train)
    recipe: Recipe,
    *,
    emit: Emit | None = None,
    fresh: bool = False,
    checkpoint_every: int = 100,
    trackers: Sequence[str] = (),
    memory: int | None = None,
    compiled: bool = False,
) -> StoredAdapter:
    """Train the recipe's adapter and write its folder; resumes an interrupted run of the same recipe.

    `fresh` discards what an interrupted run left. `checkpoint_every`: optimizer steps between checkpoints to resume
    from. `trackers`: accelerate's names, such as tensorboard. `memory`: bytes of the device that may be used;
    default: what is free. `compiled`: torch.compile for what lies between a layer's matrix products, which changes
    speed and nothing else. Raises FinetuneError; see finetune.errors.
    """
    options = RunOptions(checkpoint_every, memory, compiled)
    return train_together([recipe], options, emit=emit, fresh=fresh, trackers=trackers)[0]


def train_together(
    recipes: Sequence[Recipe],
    options: RunOptions | None = None,
    *,
    emit: Emit | None = None,
    fresh: bool = False,
    trackers: Sequence[str] = (),
) -> list[StoredAdapter]:
    """Train the adapters of several recipes at once over one base, each as `train` would, and write their folders."""
    options = options or RunOptions()
    if options.checkpoint_every < 1:
        raise FinetuneError(f"checkpoint_every is {options.checkpoint_every}", fix="give 1 step or more")
    check_together(recipes)
    emit, first = emit or _silent, recipes[0]
    accelerator = make_accelerator(trackers, Path(first.output) / "trackers")
    if options.compiled:
        require_compiler(accelerator.device)
    for recipe in recipes:
        _check_writable(Path(recipe.output) / recipe.name)
    template = load_chat_template(first.base)
    with accelerator.main_process_first():  # the others read what it has put into the cache
        datasets = [load_dataset(recipe.data, template) for recipe in recipes]
    base = load_base(first.base, accelerator.device, template)
    jobs = make_jobs(recipes, base, datasets, options, emit)
    if fresh and accelerator.is_main_process:
        for job in jobs.values():
            shutil.rmtree(job.checkpoint, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("finetune", described(recipes))
    for job in jobs.values():
        emit(NoticeEvent(_describe(count_parameters(job.model, job.adapter), job)))
    results = run_loop(jobs, accelerator, emit)
    accelerator.end_training()
    if accelerator.is_main_process:
        for recipe, dataset, result in zip(recipes, datasets, results, strict=True):
            _save(recipe, dataset, jobs[recipe.name], result)
    accelerator.wait_for_everyone()
    return [find_adapter(str(Path(recipe.output) / recipe.name)) for recipe in recipes]


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


def _general_rows(section: EvalSection, base: Base, emit: Emit) -> Rows | None:
    if section.general is None:
        return None
    rows, window = load_rows(general_source(section.general), base.template, ANY_LENGTH), window_of(base)
    if long := int((rows.tokens.lengths > window).sum()):
        what = f"{long} general rows are longer than {window} tokens and are scored in windows of so many"
        emit(NoticeEvent(f"{what}, each with half a window of context"))
    return rows


def _save(recipe: Recipe, dataset: Dataset, job: TrainingJob, result: TrainResult) -> None:
    """Write the adapter's folder, and remove the checkpoint."""
    card = card_of(recipe, job.base, dataset, job, result, count_parameters(job.model, job.adapter))
    target = Path(recipe.output) / recipe.name
    save_folder(target, lambda folder: _write_adapter(folder, recipe, job, card, result))
    shutil.rmtree(job.checkpoint, ignore_errors=True)


def _write_adapter(folder: Path, recipe: Recipe, job: TrainingJob, card: Card, result: TrainResult) -> None:
    assert_trainable_through(job.base.model)
    config = job.model.peft_config[job.adapter]
    config.base_model_name_or_path, config.revision = recipe.base.model, recipe.base.revision
    job.model.save_pretrained(str(folder), selected_adapters=[job.adapter], save_embedding_layers=False)
    if (own := folder / job.adapter).is_dir():  # where PEFT puts all but its default adapter
        for file in own.iterdir():
            file.rename(folder / file.name)
        own.rmdir()
    (folder / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")
    write_log(folder / "log.jsonl", result.log)
    plot_loss(result.log, folder / "loss.png", f"{recipe.name}: loss on {recipe.base.model}")
    card = card.model_copy(update={"files": steady_files(folder)})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


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
