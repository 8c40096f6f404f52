"""Prompts -> answers: batched decoding with any causal language model, adapter or not.

generate    many prompts; rows leave the batch as they finish
stream      one prompt, piece by piece

Both run the same loop, so the pieces of a stream add up to the answer that `generate` gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.evaluation.checks import Answer
from finetune.journal import Journal
from finetune.serving.sampling import NOT_FINITE, Sampler, advise_not_finite
from finetune.serving.settings import SamplingSettings
from finetune.serving.text import AnswerReader

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
    forward, reader = _Forward(model), AnswerReader(tokenizer, settings.stop)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    rows, ends, journal = (
        _rows(forward, prompts, settings.max_new_tokens, seeds),
        sorted(stop_ids),
        journal or Journal(),
    )
    said = settings.model_dump(mode="json")
    with _evaluating(model):
        for batch in _batches(rows, max_batch_tokens):
            asked = [(list(row.prompt), row.seed) for row in batch]
            kept = journal.once(
                ["answers", asked, ends, said], partial(_finish, forward, reader, batch, ends, settings)
            )
            for row, (ids, tokens, stopped) in zip(batch, kept, strict=True):
                row.ids, row.tokens, row.stopped = ids, tokens, stopped
    return [row.answer(reader) for row in rows]


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
    forward, reader = _Forward(model), AnswerReader(tokenizer, settings.stop)
    rows = _rows(forward, [prompt], settings.max_new_tokens, [seed])
    return _pieces(model, reader, rows[0], _decode(forward, reader, rows, frozenset(stop_ids), settings))


def _pieces(model: nn.Module, reader: AnswerReader, row: _Row, steps: Iterator[None]) -> Iterator[str]:
    sent = ""
    with _evaluating(model):
        for _ in steps:
            text = "" if row.finished else reader.settled(row.ids)
            if len(text) > len(sent) and text.startswith(sent):
                yield text[len(sent) :]
                sent = text
    if rest := row.answer(reader).text[len(sent) :]:
        yield rest


@dataclass
class _Row:
    """One prompt and its answer so far."""

    prompt: Sequence[int]
    seed: int
    limit: int  # tokens the answer may have
    ids: list[int] = field(default_factory=list)  # the answer, without a stop token
    tokens: int = 0  # generated, the stop token included
    stopped: bool = False

    @property
    def finished(self) -> bool:
        return self.stopped or self.tokens >= self.limit

    def answer(self, reader: AnswerReader) -> Answer:
        return Answer(reader.text(self.ids, self.stopped), self.stopped, self.tokens)


def _rows(forward: _Forward, prompts: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int]) -> list[_Row]:
    """Check every prompt against the model and work out how long its answer may get."""
    problems: list[str] = []
    for number, prompt in enumerate(prompts):
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
    room = [max_new_tokens if forward.context is None else forward.context - len(prompt) for prompt in prompts]
    parts = zip(prompts, seeds, room, strict=True)
    return [_Row(prompt, seed, min(max_new_tokens, left)) for prompt, seed, left in parts]


def _batches(rows: Sequence[_Row], max_tokens: int) -> Iterator[list[_Row]]:
    """Cut rows, longest prompt first, into batches whose padded size stays within `max_tokens` if it can."""
    batch: list[_Row] = []
    longest_answer = 0
    for row in sorted(rows, key=lambda row: len(row.prompt), reverse=True):
        longest_answer = max(longest_answer, row.limit)
        if batch and (len(batch[0].prompt) + longest_answer) * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest_answer = [], row.limit
        batch.append(row)
    if batch:
        yield batch


def _finish(
    forward: _Forward, reader: AnswerReader, rows: Sequence[_Row], stop_ids: Collection[int], settings: SamplingSettings
) -> list[tuple[list[int], int, bool]]:
    """Answer one batch: the ids of each answer, how many were generated, and whether it ended by itself."""
    for _ in _decode(forward, reader, rows, frozenset(stop_ids), settings):
        pass
    return [(row.ids, row.tokens, row.stopped) for row in rows]


def _decode(
    forward: _Forward, reader: AnswerReader, rows: Sequence[_Row], stop_ids: frozenset[int], settings: SamplingSettings
) -> Iterator[None]:
    """Generate one token per unfinished row and step, until all rows are finished."""
    sampler = Sampler(settings, [(row.seed, row.prompt) for row in rows])
    state, ids = _padded(rows, forward.device)
    running = list(rows)
    while running:
        tokens = sampler.choose(forward(ids, state))
        if NOT_FINITE in tokens:
            raise ModelError(
                f"the model returned NaN or infinite logits at token {running[0].tokens + 1} of an answer",
                fix=advise_not_finite(forward.model),
            )
        for row, token in zip(running, tokens, strict=True):
            _append(row, token, stop_ids, reader)
        yield
        kept = [place for place, row in enumerate(running) if not row.finished]
        ids = torch.tensor([[tokens[place]] for place in kept], device=forward.device)
        if 0 < len(kept) < len(running):
            state.keep(kept)
            sampler.keep(kept)
        running = [running[place] for place in kept]


def _append(row: _Row, token: int, stop_ids: frozenset[int], reader: AnswerReader) -> None:
    row.tokens += 1
    if token in stop_ids:
        row.stopped = True
        return
    row.ids.append(token)
    row.stopped = reader.ends_in_stop(row.ids)


@dataclass
class _State:
    """What a forward pass needs beside the new tokens; the first dimension of all is the running rows."""

    mask: Tensor  # (B, longest prompt + longest answer), 1 = token, 0 = padding on the left
    positions: Tensor  # (B, new tokens)
    seen: int = 0  # columns of the mask already in the cache
    cache: DynamicCache | None = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[index], self.positions[index]
        if self.cache is not None:
            # Not batch_select_indices: it leaves out the state of recurrent and convolution layers.
            self.cache.reorder_cache(cast(torch.LongTensor, index))


def _padded(rows: Sequence[_Row], device: torch.device) -> tuple[_State, Tensor]:
    """Pad prompts on the left, so that every row's next token is in the same column; ids are (B, T)."""
    width = max(len(row.prompt) for row in rows)
    ids = [[0] * (width - len(row.prompt)) + list(row.prompt) for row in rows]
    mask = torch.ones(len(rows), width + max(row.limit for row in rows), dtype=torch.long)
    for place, row in enumerate(rows):
        mask[place, : width - len(row.prompt)] = 0
    positions = (mask[:, :width].cumsum(dim=1) - 1).clamp(min=0)
    return _State(mask.to(device), positions.to(device)), torch.tensor(ids, device=device)


class _Forward:
    """A causal model's forward pass, with whichever arguments its architecture takes."""

    def __init__(self, model: nn.Module) -> None:
        # The wrapper is called (some adapters act there), but only the base says what it accepts.
        base = cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)  # type: ignore[operator]
        self.model, self.device = model, base.device
        self.vocabulary = cast(nn.Embedding, base.get_input_embeddings()).weight.shape[0]
        self._config = base.config.get_text_config(decoder=True)
        self.context: int | None = getattr(self._config, "max_position_embeddings", None)  # ALiBi and RNNs have none
        self._accepts = frozenset(inspect.signature(base.forward).parameters)
        self._cache_name = "past_key_values" if "past_key_values" in self._accepts else "cache_params"
        if self._cache_name not in self._accepts:
            raise ModelError(f"{type(base).__name__} takes no key-value cache", fix="use another base to generate text")

    @torch.no_grad()  # not inference_mode: its tensors could not take part in later training
    def __call__(self, ids: Tensor, state: _State) -> Tensor:
        """Run ids (B, T) and move the state on; return the logits after the last of them, (B, V)."""
        prefill = state.cache is None
        if state.cache is None:
            state.cache = DynamicCache(config=self._config)
        state.seen += ids.shape[1]
        arguments: dict[str, Any] = {
            "position_ids": state.positions,
            "logits_to_keep": 1,
            "use_cache": True,
            self._cache_name: state.cache,
        }
        if self._cache_name == "past_key_values" or prefill:  # recurrent models would mask the state itself
            arguments["attention_mask"] = state.mask[:, : state.seen]
        accepted = {name: value for name, value in arguments.items() if name in self._accepts}
        logits = cast(Tensor, self.model(input_ids=ids, **accepted).logits)
        state.positions = state.positions[:, -1:] + 1
        return logits[:, -1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, then back on in exactly those modules that had it on."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
