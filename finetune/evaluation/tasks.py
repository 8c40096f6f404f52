"""Tasks of lm-eval by name, base and adapter on the same questions: `arc_easy`, `mmlu`, or a task file of one's own.

The prompts are lm-eval's, with its defaults: without the chat template and with the few-shot examples that a task
asks for. So a score can be held against published ones, and answers of a chat adapter, which has seen the template
in training, may look worse than they are; what the adapter is for is measured by prompts (finetune.evaluation.suite).

lm-eval is an optional extra and slow to import: nothing here loads it before a task is named.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from finetune.errors import DataError, RecipeError
from finetune.evaluation.bootstrap import paired_bootstrap

if TYPE_CHECKING:
    from types import ModuleType

    from finetune.evaluation.harness import Outcome
    from finetune.model.base import Base

Activate = Callable[[], AbstractContextManager[object]]
"""Gives a block in which the base runs with one adapter, or with none."""

ENDINGS = (".yaml", ".yml")
_DEFINED = re.compile(
    r"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*(.*?)[ \t]*(?:#.*)?$((?:\n[ \t]*-[ \t]+.*$)*)""", re.MULTILINE
)


class TaskPart(BaseModel):
    """Strict, so that a file of another version is refused and not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskDifference(TaskPart):
    value: float  # adapter - base
    low: float  # of the 95% interval, paired by question
    high: float


class TaskScore(TaskPart):
    task: str
    metric: str  # with its filter behind a comma, unless that is "none": acc, or exact_match,strict-match
    base: float
    adapter: float
    difference: TaskDifference | None  # None where a score is no mean over questions, or there is but one
    stderr_base: float | None  # as lm-eval estimates it; None where it does not
    stderr_adapter: float | None
    samples: int  # questions
    shots: int | None  # solved examples before each question; None for a group that mixes them
    truncated: int  # prompts that were cut on the left to fit the model
    version: str  # of the task's definition
    higher_is_better: bool | None


class _Named(NamedTuple):
    name: str
    source: Path | None  # the file that defines it, if that is all there is to read
    group: bool


def check_tasks(names: Sequence[str]) -> None:
    """Refuse what cannot be run, before a model is loaded: no extra, unknown names, files that are no task.

    A name is a task, group or tag of lm-eval, or the path of a task's .yaml file. Raises RecipeError naming every
    mistake. Whether the data can be reached is seen when the tasks run.
    """
    _resolve(names)


def run_tasks(
    base: Base,
    models: Mapping[str | None, Activate],
    names: Sequence[str],
    *,
    seed: int,
    budget: int,
    limit: int | None = None,
) -> dict[str, tuple[TaskScore, ...]]:
    """Score every model on every task and return, by adapter, its scores beside those of the base.

    `models`: None for the base as it is, and adapters by name. `budget`: tokens per forward pass; memory, never the
    result. `limit`: only the first so many questions of a task. A group gives a row for itself and for each of its
    tasks. Equal seeds give equal scores. Raises RecipeError as check_tasks does, DataError if a task's data cannot
    be had or its own code fails.
    """
    harness = _harness()
    loaded = [harness.load(named.name, named.source, named.group, seed) for named in _resolve(names)]
    _refuse_twice([(task, entry.name) for entry in loaded for task in (*entry.groups, *entry.tasks)])
    outcomes: dict[str | None, list[Outcome]] = {}
    for model, activate in models.items():
        with activate():
            outcomes[model] = [harness.score(base, entry, seed=seed, limit=limit, budget=budget) for entry in loaded]
    plain = outcomes.pop(None)
    leaves = [{**_members(entry.group_map), **{task: [task] for task in entry.tasks}} for entry in loaded]
    return {
        str(adapter): tuple(
            row
            for before, after, parts in zip(plain, scored, leaves, strict=True)
            for row in _rows(before, after, parts, seed)
        )
        for adapter, scored in outcomes.items()
    }


def _harness() -> ModuleType:
    try:
        from finetune.evaluation import harness  # here: slow to import, and an optional extra
    except ImportError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise RecipeError(
            f"eval.tasks needs lm-eval: {missing!r} is missing", fix="pip install 'finetune[tasks]'"
        ) from None
    return harness


def _resolve(names: Sequence[str]) -> tuple[_Named, ...]:
    harness = _harness()
    found: dict[str, _Named] = {}
    mistakes = []
    for name in names:
        try:
            named = _own(name, harness) if name.endswith(ENDINGS) else _built_in(name)
        except RecipeError as error:
            mistakes.append(str(error))
            continue
        if named.name in found:
            mistakes.append(f"eval.tasks: {named.name!r} is named twice")
        found[named.name] = named
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return tuple(found.values())


def _own(path: str, harness: ModuleType) -> _Named:
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"eval.tasks: no such file: {path}", fix=f"looked for {file.resolve()}")
    try:
        name, group = harness.task_of_file(file)
    except Exception as error:  # what reading foreign YAML raises is no one class
        text = " ".join(str(error).split())[:300]
        fix = "see docs/tasks.md for what stands in one"
        raise RecipeError(f"eval.tasks: {path} is no task file: {text}", fix=fix) from error
    return _Named(name, file.resolve(), group)


def _built_in(name: str) -> _Named:
    known = _catalogue()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        fix = (
            f"did you mean {close[0]!r}?"
            if close
            else "`lm-eval ls tasks` lists them all; a file of your own ends in .yaml"
        )
        raise RecipeError(f"eval.tasks: lm-eval has no task {name!r}", fix=fix)
    files = known[name]
    return _Named(name, files[0] if len(files) == 1 else None, False)


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, list[Path]]:
    """Every name that lm-eval comes with, and for tasks their files: none for groups and tags.

    Found by the lines that define them, in one second: lm-eval's own index reads 14,000 files of YAML and takes ten.
    """
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    names: dict[str, list[Path]] = {}
    for file in sorted((Path(spec.origin).parent / "tasks").rglob("*")):
        if file.suffix in (".py", ".pyc", ".md") or not file.is_file():
            continue  # templates that task files include have no ending, and tags
        for kind, name in _definitions(file.read_text(encoding="utf-8", errors="replace")):
            files = names.setdefault(name, [])
            if kind == "task":
                files.append(file)
    return names


def _definitions(text: str) -> Iterator[tuple[str, str]]:
    for kind, value, items in _DEFINED.findall(text):
        listed = value.strip("[]").split(",") if value else re.findall(r"-[ \t]+(.*)", items) if kind == "tag" else []
        yield from ((kind, name.strip().strip("\"'")) for name in listed)


def _refuse_twice(found: Sequence[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for task, name in found:
        if first.setdefault(task, name) != name:
            raise RecipeError(
                f"eval.tasks: {task!r} is part of both {first[task]!r} and {name!r}", fix="drop one of them"
            )


def _members(group_map: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every group's tasks, those of its groups included."""

    def tasks(name: str) -> list[str]:
        return [leaf for child in group_map[name] for leaf in tasks(child)] if name in group_map else [name]

    return {group: tasks(group) for group in group_map}


def _rows(before: Outcome, after: Outcome, leaves: Mapping[str, Sequence[str]], seed: int) -> Iterator[TaskScore]:
    for task, parts in leaves.items():
        plain, adapted = before.found["results"].get(task, {}), after.found["results"].get(task, {})
        for key, value in plain.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or metric == "bypass" or not isinstance(value, Real):
                continue
            values = float(value), float(adapted[key])
            if not all(map(math.isfinite, values)):
                raise DataError(f"task {task!r}: {metric} is {values[0]} for the base and {values[1]} for the adapter")
            errors = [_number(scores.get(f"{metric}_stderr,{kind}")) for scores in (plain, adapted)]
            shots = before.found["n-shot"].get(task)
            yield TaskScore(
                task=task,
                metric=metric if kind == "none" else key,
                base=values[0],
                adapter=values[1],
                difference=_difference(
                    values, _graded(before, parts, metric, kind), _graded(after, parts, metric, kind), seed
                ),
                stderr_base=errors[0],
                stderr_adapter=errors[1],
                samples=int(plain["sample_len"]),
                shots=None if shots is None else int(shots),
                truncated=sum(before.truncated[part] for part in parts),
                version=str(before.found["versions"].get(task, "")),
                higher_is_better=before.found["higher_is_better"].get(task, {}).get(metric),
            )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _graded(outcome: Outcome, tasks: Sequence[str], metric: str, kind: str) -> list[float] | None:
    """The metric of each question; None where a question has none that is a number."""
    values = [
        sample[metric]
        for task in tasks
        for sample in outcome.found["samples"][task]
        if sample["filter"] == kind and metric in sample
    ]
    return [float(value) for value in values] if all(isinstance(value, (Real, np.bool_)) for value in values) else None


def _difference(
    scores: tuple[float, float], base: list[float] | None, adapter: list[float] | None, seed: int
) -> TaskDifference | None:
    """The paired difference, where both scores are nothing but the means of what the questions scored."""
    if base is None or adapter is None or not len(base) == len(adapter) >= 2:
        return None
    for score, values in zip(scores, (base, adapter), strict=True):
        if not math.isclose(score, math.fsum(values) / len(values), rel_tol=1e-9, abs_tol=1e-9):
            return None
    return TaskDifference(**paired_bootstrap(base, adapter, seed)._asdict())
