"""lm-eval around a model of ours: quiet, seeded, with a budget of tokens, and its errors in words.

The one module that imports lm-eval, which takes seconds; finetune.evaluation.tasks imports it where a task runs.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from huggingface_hub import constants
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers.utils import logging as transformers_logging

from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.hubs import find_cause, reachable
from finetune.model.base import Base

RESAMPLES = 1000  # of lm-eval's own bootstrap, for metrics whose standard error has no formula
LOGITS = 1 << 28  # in one forward pass; lm-eval keeps all of them, in fp32 1 GiB
SHOWN = 300  # characters of a foreign error

# Exception class (anywhere in the chain) -> what is wrong, what to do.
_NO_CACHE = "its data set is not in the local cache and the Hub cannot be reached"
_CAUSES: dict[str, tuple[str, str]] = {
    "GatedRepoError": (
        "its data set is gated: the owner must grant access first",
        "accept its terms on the Hub, then run `hf auth login`",
    ),
    "OfflineModeIsEnabled": (_NO_CACHE, "run it once with a network, or write a task file over a local file"),
}
_CAUSES["LocalEntryNotFoundError"] = _CAUSES["ConnectionError"] = _CAUSES["OfflineModeIsEnabled"]


class Loaded(NamedTuple):
    """What one name stands for: tasks by their names, and the groups that hold them."""

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]
    group_map: dict[str, list[str]]


class Outcome(NamedTuple):
    """What one model scored on what one name stands for."""

    found: dict[str, Any]  # as lm-eval returns it
    truncated: Counter[str]  # task -> requests that were cut to the model's length


class Scorer(HFLM):  # type: ignore[misc]
    """lm-eval's own model class over the loaded base, `budget` tokens per forward pass.

    Log-likelihoods are taken in fp32, where lm-eval's default is the precision of the model: near ties between
    answers are no ties then.
    """

    def __init__(self, base: Base, budget: int) -> None:
        # A copy: lm-eval gives a tokenizer without padding token one.
        tokenizer = copy.deepcopy(base.tokenizer)
        super().__init__(base.model, tokenizer=tokenizer, batch_size="auto", softmax_dtype="float32")
        self.budget: int = max(1, min(budget, LOGITS // base.model.config.get_text_config().vocab_size))
        self.truncated: Counter[str] = Counter()
        self._longest, self._rows, self._next = int(self.max_length), 1, 0

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
        for request in requests:
            self._note(request, len(self.tok_encode("".join(request.args))), self.max_length + 1)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
        longest = max(len(self.tok_encode(request.args[0])) for request in requests)
        self._longest = min(longest, self.max_length)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
        sizes = []
        for request in requests:
            new = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            length = len(self.tok_encode(request.args[0]))
            self._note(request, length, self.max_length - new)
            sizes.append(min(length + new, self.max_length))
        self._longest = max(sizes)
        return super().generate_until(requests, disable_tqdm=True)

    def _note(self, request: Any, length: int, room: int) -> None:
        if length > room:
            self.truncated[request.task_name] += 1

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Rows per forward pass, where lm-eval would try sizes until the memory overflows."""
        longest: int = len(requests[pos][1]) + len(requests[pos][2]) if requests else self._longest
        return max(1, self.budget // longest)

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        """Size of the batch that position `pos` falls into; its first request is its longest."""
        if pos in (0, self._next):
            self._rows = self._detect_batch_size(n_reordered_requests, pos)
            self._next = pos + self._rows
        return self._rows


def task_of_file(path: Path) -> tuple[str, bool]:
    """Return the name that a task file defines, and whether it is a group's. Raises whatever reading YAML raises."""
    content = load_yaml(path, resolve_func=False)
    group = "group" in content and "class" not in content
    name = content.get("group" if group else "task")
    if not isinstance(name, str):
        raise ValueError("it has neither `task: NAME` nor `group: NAME`")
    return name, group


def load(name: str, source: Path | None, group: bool, seed: int) -> Loaded:
    """Load what a name stands for, with its data. `source`: its file, if known. Raises DataError, RecipeError."""
    with _explained(name, "loaded"), _quiet(), _seeded(seed), _offline():
        found = _manager(source, group).load([name if group or source is None else str(source)])
    for task_name, task in found["tasks"].items():
        _refuse_unsupported(task_name, task)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return Loaded(name, found["tasks"], found.get("groups", {}), found.get("group_map", {}))


def score(base: Base, loaded: Loaded, *, seed: int, limit: int | None, budget: int) -> Outcome:
    """Score the base as it stands, with or without an active adapter. Raises DataError with lm-eval's cause."""
    with _explained(loaded.name, "scored"), _quiet(), _seeded(seed, base):
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed=seed)  # anew: the generator moves on with every prompt
        scorer = Scorer(base, budget)
        found = evaluate(
            scorer,
            loaded._asdict(),
            limit=limit,
            log_samples=True,
            bootstrap_iters=RESAMPLES,
            apply_chat_template=False,
        )
    return Outcome(dict(found), scorer.truncated)


def _refuse_unsupported(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(f"task {name!r} runs code that the model writes, which is not supported", fix="leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(f"task {name!r} asks about images or sound, not about text alone", fix="leave it out")


def _manager(source: Path | None, group: bool) -> Any:
    if source is None:
        return _everything(None)
    if not group:
        return TaskManager(include_defaults=False)
    own = TaskManager(include_defaults=False, include_path=source.parent)
    listed = [member for name in own.all_groups for member in (own.task_index[name].cfg or {}).get("task", [])]
    names = {member if isinstance(member, str) else member.get("task", member.get("group")) for member in listed}
    return own if names <= set(own.all_tasks) else _everything(source.parent)


@lru_cache(maxsize=1)
def _everything(folder: Path | None) -> Any:
    """The index of all built-in tasks, groups and tags, and of one's own folder: some ten seconds of reading YAML."""
    return TaskManager(include_path=folder)


@contextmanager
def _explained(name: str, doing: str) -> Iterator[None]:
    """Turn whatever lm-eval, a data set or a task's own code raises into a DataError."""
    try:
        yield
    except (FinetuneError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a task may run any code
        text = " ".join(str(error).split())[:SHOWN]
        what, fix = find_cause(error, _CAUSES) or (f"{type(error).__name__}: {text}", None)
        raise DataError(f"task {name!r} cannot be {doing}: {what}", fix=fix) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval, which prints, logs and draws bars, off both streams."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, verbosity = [logger.level for logger in loggers], transformers_logging.get_verbosity()
    alone = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork a process with a model in it
    transformers_logging.set_verbosity_error()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone


@contextmanager
def _seeded(seed: int, base: Base | None = None) -> Iterator[None]:
    """Seed what tasks and generation draw from, and put it back."""
    states = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([base.device] if base and base.device.type == "cuda" else []))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _offline() -> Iterator[None]:
    """Without a network take data sets from the cache at once: `datasets` would retry for half a minute."""
    modules: tuple[Any, ...] = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    if not reachable():
        for module in modules:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
