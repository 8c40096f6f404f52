"""What a recipe asks of training: tokens, steps, and the micro-batches that its data leads to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from finetune.data.dataset import Dataset, Rows
from finetune.model.memory import LATER, OWN, Workload, estimate
from finetune.model.shapes import ModelShape, rank
from finetune.recipe import Recipe


@dataclass(frozen=True)
class Load:
    """Tokens and steps of a whole run."""

    examples: int  # of an epoch
    steps: int
    tokens: float  # of the run, expected
    trained: float  # of these, with a label
    squares: float  # sum of squared lengths over the run: what attention costs
    longest: int  # tokens of the longest example
    step_tokens: int  # of the largest optimizer step that could come


def measure_load(recipe: Recipe, dataset: Dataset) -> Load:
    """Count what is trained on; the rows of a mixed-in source are drawn evenly, so their mean counts."""
    section = recipe.train
    parts = [(dataset.train, len(dataset.train))]
    parts += [(mixed.rows, round(mixed.weight * len(dataset.train))) for mixed in dataset.mix]
    examples = sum(drawn for _, drawn in parts)
    per_epoch = ceil(examples / section.batch_size)
    steps = ceil(section.epochs * per_epoch)
    steps = min(steps, section.max_steps or steps)
    share = steps / per_epoch  # epochs that are really run
    lengths = np.concatenate([_lengths(rows) for rows, drawn in parts if drawn])
    largest = np.sort(lengths)[::-1][: section.batch_size]
    return Load(
        examples=examples,
        steps=steps,
        tokens=share * sum(_mean(_lengths(rows)) * drawn for rows, drawn in parts),
        trained=share * sum(_mean(rows.tokens.trained[rows.kept]) * drawn for rows, drawn in parts),
        squares=share * sum(_mean(_lengths(rows).astype(float) ** 2) * drawn for rows, drawn in parts),
        longest=int(lengths.max()),
        step_tokens=int(largest.sum()),
    )


def workload(recipe: Recipe, load: Load, *, cpu: bool) -> Workload:
    """The workload of a micro-batch that holds a whole step."""
    section = recipe.base
    return Workload(
        r=rank(recipe.adapter),
        tokens=load.step_tokens,
        longest=load.longest,
        precision="nf4" if section.quantization == "nf4" else "none",
        width=4 if section.dtype == "float32" else 2,
        optimizer=recipe.train.optimizer,
        cpu=cpu,
    )


class Need(NamedTuple):
    """What one adapter takes."""

    shape: ModelShape
    work: Workload  # of a micro-batch that holds a whole step
    load: Load


class Shared(NamedTuple):
    """What adapters that are trained at once take, their steps sharing rows."""

    most: Need  # of the one that needs most, with room for the longest example of any
    tokens: int  # of the steps of all
    others: int  # bytes of the other adapters
    reserved: int  # of these, those that are not there before the first step


def share(needs: Sequence[Need]) -> Shared:
    """Put together what several adapters of one base need."""
    most = max(needs, key=lambda need: estimate(need.shape, need.work).of(LATER))
    work = replace(most.work, longest=max(need.work.longest for need in needs))
    others = [estimate(need.shape, need.work) for need in needs if need is not most]
    reserved = sum(found.of(OWN) for found in others)
    return Shared(
        most=most._replace(work=work),
        tokens=sum(need.load.step_tokens for need in needs),
        others=reserved + sum(found.of(["adapter"]) for found in others),
        reserved=reserved,
    )


def _lengths(rows: Rows) -> Any:
    return rows.tokens.lengths[rows.kept]


def _mean(values: Iterable[float]) -> float:
    found = np.asarray(values)
    return float(found.mean()) if found.size else 0.0
