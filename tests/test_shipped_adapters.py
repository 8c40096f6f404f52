"""The adapters that come with the repository work on the built-in base, and their reports are theirs."""

from __future__ import annotations

import pytest
import torch

from finetune.evaluation.folder import read_report
from finetune.evaluation.suite import grade, load_prompts
from finetune.files import sha256_file
from finetune.model.base import load_base
from finetune.recipe import load_recipe
from finetune.serving.assistant import Assistant
from finetune.store.folders import find_adapter, list_adapters

NAMES = ["cheerful", "grumpy", "pizza"]


@pytest.fixture(scope="module")
def bot() -> Assistant:
    recipe = load_recipe("recipes/pizza.yaml")
    return Assistant(load_base(recipe.base, torch.device("cpu")), NAMES)


def test_all_three_are_listed() -> None:
    assert [adapter.name for adapter in list_adapters("adapters")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_passes_held_out_prompts_where_the_base_passes_none(bot: Assistant, name: str) -> None:
    recipe = load_recipe(f"recipes/{name}.yaml")
    assert recipe.eval.prompts is not None
    prompts = load_prompts(recipe.eval.prompts, recipe.data.system)[:24]
    conversations = [prompt.messages for prompt in prompts]
    passed = {}
    for model in (name, None):
        answers = bot.answer(conversations, model, recipe.generation, recipe.seed)
        graded = grade(prompts, [[answer] for answer in answers])
        passed[model] = sum(given.attempts[0].passed for given in graded)
    assert passed[name] >= 15
    assert passed[None] <= 2


@pytest.mark.parametrize("name", NAMES)
def test_report_card_and_recipe_belong_together(name: str) -> None:
    stored = find_adapter(name)
    report = read_report(stored.folder / "report")
    assert report.prompts is not None
    assert report.verdict == "pass"
    rate = report.prompts.adapter.passed / report.prompts.adapter.total
    assert stored.card.metrics["prompts.pass_rate"]["value"] == pytest.approx(rate)
    assert load_recipe(stored.folder / "recipe.yaml").data == load_recipe(f"recipes/{name}.yaml").data
    for path, digest in {**stored.card.data, **report.data}.items():
        assert sha256_file(path) == digest, f"{path} changed after {name} was trained"
