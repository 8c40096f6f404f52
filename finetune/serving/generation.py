"""Prompts -> answers: batched decoding with any causal language model, adapter or not.

generate    many prompts; rows leave the batch as they finish
stream      one prompt, piece by piece

Both run the same loop, so the pieces of a stream add up to the answer that `generate` gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.evaluation.checks import Answer
from finetune.journal import Journal
from finetune.serving.forward import Forward, evaluating
from finetune.serving.rows import Row
from finetune.serving.sampling import NOT_FINITE, Draws, advise_not_finite
from finetune.serving.scheduler import Scheduler
from finetune.serving.settings import SamplingSettings
from finetune.serving.text import AnswerReader, RunningText

MAX_REPORTED = 5  # wrong prompts named in one message


def generate(  # noqa: PLR0913 (six of them say what to answer, the last one only how fast)
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    settings: SamplingSettings,
    seed: int | Sequence[int],
    max_batch_tokens: int = 65536,
    journal: Journal | None = None,
) -> list[Answer]:
    """Answer prompts given as token ids, in the caller's order.

    An answer depends on its own prompt, the settings and the seed (one for all prompts, or one each);
    batches (at most `max_batch_tokens`, prompts and room for the answers together) change it only as
    far as rounding does. `journal`: of this very model; a batch that it holds is not answered again.

    Raises:
        ModelError: a prompt does not fit the model, or the model returned NaN or infinite logits.
    """
    forward, reader = Forward(model), AnswerReader(tokenizer, settings.stop)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    draws = [Draws(settings, number, prompt) for prompt, number in zip(prompts, seeds, strict=True)]
    rows, ends, journal = make_rows(forward, draws, stop_ids, reader), sorted(stop_ids), journal or Journal()
    said = settings.model_dump(mode="json")
    for batch in _batches(rows, max_batch_tokens):
        asked = [(list(row.prompt), row.draws.seed) for row in batch]
        kept = journal.once(["answers", asked, ends, said], partial(_finish, forward, batch))
        for row, (ids, tokens, stopped) in zip(batch, kept, strict=True):
            row.ids, row.tokens, row.stopped = ids, tokens, stopped
    return [Answer(row.text(), row.stopped, row.tokens) for row in rows]


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    stop_ids: Collection[int],
    settings: SamplingSettings,
    seed: int,
) -> Iterator[str]:
    """Return an iterator over the pieces of one answer: whole characters, never part of a stop string.

    The model is in evaluation mode until the iterator is exhausted or closed.
    Raises ModelError as `generate` does; what is wrong with the prompt is raised at once.
    """
    forward, reader = Forward(model), AnswerReader(tokenizer, settings.stop)
    (row,) = make_rows(forward, [Draws(settings, seed, prompt)], stop_ids, reader)
    return _pieces(forward, row)


def _pieces(forward: Forward, row: Row) -> Iterator[str]:
    running = RunningText(row.reader)
    with evaluating(forward.model):
        for _ in _decode(forward, [row]):
            if not row.finished and (text := running.more(row.ids)):
                yield text
    if rest := running.rest(row.text()):
        yield rest


def make_rows(forward: Forward, draws: Sequence[Draws], stop_ids: Collection[int], reader: AnswerReader) -> list[Row]:
    """Check every prompt against the model and work out how long its answer may get. Raises ModelError."""
    problems: list[str] = []
    for number, prompt in enumerate(row.prompt for row in draws):
        if not prompt:
            problems.append(f"prompt {number} is empty")
        elif forward.context is not None and len(prompt) >= forward.context:
            problems.append(f"prompt {number} has {len(prompt)} tokens, the model's context has {forward.context}")
        elif not 0 <= min(prompt) <= max(prompt) < forward.vocabulary:
            # On a GPU such an id would not raise but break the process's CUDA context.
            problems.append(f"prompt {number} has a token id outside the model's {forward.vocabulary} embeddings")
    if problems:
        more = f"; and {len(problems) - MAX_REPORTED} more" if len(problems) > MAX_REPORTED else ""
        fix = "shorten the prompts, and use the tokenizer that belongs to the model"
        raise ModelError("; ".join(problems[:MAX_REPORTED]) + more, fix=fix)
    return [
        Row(row.prompt, forward.room(row.prompt, row.settings.max_new_tokens), row, frozenset(stop_ids), reader)
        for row in draws
    ]


def _batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Cut rows, longest prompt first, into batches whose padded size stays within `max_tokens` if it can."""
    batch: list[Row] = []
    longest_answer = 0
    for row in sorted(rows, key=lambda row: len(row.prompt), reverse=True):
        longest_answer = max(longest_answer, row.limit)
        if batch and (len(batch[0].prompt) + longest_answer) * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest_answer = [], row.limit
        batch.append(row)
    if batch:
        yield batch


def _finish(forward: Forward, rows: Sequence[Row]) -> list[tuple[list[int], int, bool]]:
    """Answer one batch: the ids of each answer, how many were generated, and whether it ended by itself."""
    with evaluating(forward.model):  # here: what a journal holds needs no model
        for _ in _decode(forward, rows):
            pass
    return [(row.ids, row.tokens, row.stopped) for row in rows]


def _decode(forward: Forward, rows: Sequence[Row]) -> Iterator[None]:
    """Generate one token per unfinished row and step, until all rows are finished."""
    scheduler = Scheduler(forward)
    scheduler.waiting.extend(rows)
    while scheduler.busy:
        found = scheduler.step()
        if broken := next((row for row, choice in found if choice.token == NOT_FINITE), None):
            raise ModelError(
                f"the model returned NaN or infinite logits at token {broken.tokens + 1} of an answer",
                fix=advise_not_finite(forward.model),
            )
        for row, choice in found:
            row.append(choice.token)
        yield
        scheduler.leave([row for row, _ in found if row.finished])
