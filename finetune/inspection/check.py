"""What can be said before a run, without the weights: check a recipe and its data, show what the
model will see, write a recipe for a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.encoding import encode_prompt
from finetune.data.examples import Example, general_source
from finetune.data.lint.check import HeldApart, Part, check_data
from finetune.data.lint.compare import NO_ANSWER
from finetune.data.lint.findings import Finding, Findings
from finetune.data.messages import Message
from finetune.errors import DataError, FinetuneError, ModelError, RecipeError
from finetune.evaluation.gates import check_gates
from finetune.evaluation.suite import load_prompts
from finetune.model.hub import TINY
from finetune.model.tokenizer import load_chat_template, max_positions, read_config
from finetune.recipe import Recipe

if TYPE_CHECKING:
    from finetune.data.template import ChatTemplate

FEW_STEPS, FEW_HELDOUT = 20, 50
_PLACE = re.compile(r"(\S+?:\d+(?::\d+)?): ")
_COMMIT = re.compile("[0-9a-f]{40}")
USUAL_STRENGTH, USUAL_RATE = (0.25, 8.0), (1e-5, 5e-3)


@dataclass(frozen=True)
class CheckReport:
    findings: list[Finding]  # errors first
    parts: list[Part]  # empty if the data could not be read
    max_length: int

    @property
    def sound(self) -> bool:
        """Whether nothing was found that is an error."""
        return all(finding.severity != "error" for finding in self.findings)


def check(recipe: Recipe, origins: Mapping[str, str] | None = None) -> CheckReport:
    """Look for what would ruin a run: in the recipe, every row of the data, their tokens and the tokenizer.

    `origins`: where each dotted key of the recipe was set, for the findings' places. Never loads weights.
    """
    findings = Findings()
    at = _places(origins or {})
    _check_recipe(recipe, findings, at)
    prompts = _check_evaluation(recipe, findings, at)
    parts: list[Part] = []
    try:
        template, config = load_chat_template(recipe.base), read_config(recipe.base)
        _check_model(recipe, config, findings, at)
        _check_tokenizer(template, findings, at)
        general = general_source(recipe.eval.general) if recipe.eval.general else None
        measured = HeldApart(prompts, general)
        parts = check_data(recipe.data, template, findings, measured)
    except ModelError as error:
        findings.add("M001", at("base.model"), str(error))
    except DataError as error:
        findings.add("R010", error.where or at("data.path"), "; ".join(filter(None, (error.what, error.fix))))
    if parts:
        _check_sizes(recipe, parts, findings, at)
    return CheckReport(findings.all(), parts, recipe.data.max_length)


def _places(origins: Mapping[str, str]) -> Callable[[str], str]:
    def at(key: str) -> str:
        """file:line of a key, or nothing where its default holds."""
        return "" if origins.get(key, "default") == "default" else origins[key]

    return at


def _check_recipe(recipe: Recipe, findings: Findings, at: Callable[[str], str]) -> None:
    adapter, train = recipe.adapter, recipe.train
    strength = adapter.alpha / (sqrt(adapter.r) if "rslora" in adapter.methods else adapter.r)
    if not USUAL_STRENGTH[0] <= strength <= USUAL_STRENGTH[1]:
        findings.add("R005", at("adapter.alpha"), f"adapter.alpha {adapter.alpha:g} with r {adapter.r} is {strength:g}")
    if not USUAL_RATE[0] <= train.learning_rate <= USUAL_RATE[1]:
        findings.add("R006", at("train.learning_rate"), f"train.learning_rate is {train.learning_rate:g}")
    if recipe.base.trust_remote_code:
        findings.add("R009", at("base.trust_remote_code"), "base.trust_remote_code is true")


def _check_evaluation(recipe: Recipe, findings: Findings, at: Callable[[str], str]) -> tuple[Example, ...]:
    """Return the held-out prompts as examples without an answer."""
    try:
        check_gates(recipe.eval)
    except RecipeError as error:
        findings.add("R001", at("eval.gates"), str(error))
    if recipe.eval.prompts is None:
        return ()
    try:
        prompts = load_prompts(recipe.eval.prompts, recipe.data.system)
    except FinetuneError as error:
        for line in str(error).splitlines():
            findings.add("R010", at("eval.prompts"), line)
        return ()
    return tuple(Example((*prompt.messages, NO_ANSWER), prompt.where) for prompt in prompts)


def _check_model(recipe: Recipe, config: Mapping[str, Any], findings: Findings, at: Callable[[str], str]) -> None:
    base, limit = recipe.base, max_positions(config)
    if limit is not None and recipe.data.max_length > limit:
        what = f"data.max_length is {recipe.data.max_length}, {base.model} was made for {limit} tokens"
        findings.add("M002", at("data.max_length"), what)
    if (already := config.get("quantization_config")) and base.quantization == "nf4":
        method = already.get("quant_method", "unknown") if isinstance(already, Mapping) else "unknown"
        findings.add("M005", at("base.model"), f"{base.model} says quantization_config: {method}")
    on_the_hub = base.model != TINY and not Path(base.model).expanduser().is_dir()
    if on_the_hub and not _COMMIT.fullmatch(base.revision or ""):
        findings.add("R008", at("base.model"), f"{base.model} is read at {base.revision or 'main'}, whatever that is")


def _check_tokenizer(template: ChatTemplate, findings: Findings, at: Callable[[str], str]) -> None:
    tokenizer = template.tokenizer
    start = encode_prompt([Message("user", "Hello")], template)[:2]
    if tokenizer.bos_token_id is not None and start == [tokenizer.bos_token_id] * 2:
        findings.add("M003", at("base.model"), f"conversations begin with {tokenizer.bos_token!r} twice")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id in template.stop_ids:
        findings.add("M004", at("base.model"), f"{tokenizer.pad_token!r} is both")


def _check_sizes(recipe: Recipe, parts: list[Part], findings: Findings, at: Callable[[str], str]) -> None:
    by_name = {part.name: part for part in parts}
    rows, heldout = by_name["train"].accepted, by_name["held-out"].accepted
    batch, epochs = recipe.train.batch_size, recipe.train.epochs
    if not rows or not heldout:
        sides = f"{rows} rows to train on and {heldout} held out"
        findings.add("R010", at("data.heldout") or at("data.path"), f"{sides} are left of {recipe.data.path}")
        return
    mixed = sum(round(source.weight * rows) for source in recipe.data.mix)
    steps = ceil(epochs * ceil((rows + mixed) / batch))
    steps = min(steps, recipe.train.max_steps or steps)
    if rows < batch:
        findings.add("R002", at("train.batch_size"), f"train.batch_size is {batch}, there are {rows} training rows")
    if steps < FEW_STEPS:
        findings.add(
            "R003", at("train.epochs"), f"{steps} optimizer steps: {epochs:g} epochs of {rows} rows by {batch}"
        )
    if heldout < FEW_HELDOUT:
        findings.add("R007", at("data.heldout"), f"{heldout} held-out rows")


def invalid_recipe(error: RecipeError) -> CheckReport:
    """The report on a recipe that cannot be loaded: a finding for each of its mistakes."""
    findings = Findings()
    for line in str(error).splitlines():
        place = _PLACE.match(line)
        findings.add("R001", place[1] if place else "", line[place.end() :] if place else line)
    return CheckReport(findings.all(), [], 0)
