"""Overrides on the command line: one more layer, which goes through the same schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.recipe import load_recipe
from tests.recipe.helpers import REQUIRED, refusal, written

LISTED = REQUIRED.replace("rows.jsonl", "rows.jsonl, mix: [{path: a, weight: 1}, {path: b, weight: 2}]")


def test_overrides_go_through_the_same_schema(tmp_path: Path) -> None:
    path = written(tmp_path, REQUIRED)
    overrides = ["train.epochs=1", "data.mix=[{path: b, weight: 0.5}]", "data.system=Be = short.", "base.revision="]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.data.system, recipe.base.revision) == (1.0, "Be = short.", None)
    assert recipe.data.mix[0].weight == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "is no assignment; write it as section.key=value"),
        ("=1", "is no assignment"),
        ("train..epochs=1", "is no assignment"),
        ("train.epochs=[1", "the value is not valid YAML"),
        ("train.epochs=2001-99-99", "'2001-99-99' should be a number"),
        ("base.model=\ud800", "override 'base.model=\\\\ud800' is not UTF-8 text"),
        ("extends=other.yaml", "only a recipe file can extend another"),
        ("a" * 50 + ".b" * 40 + "=1", "names 41 levels"),
        ("base.model=&a [*a]", "the value is not valid YAML: no anchor '&a' ends before this alias"),
        ("data.mix.0.weight=1", "should be a list"),
        ("train.epochs=" + "[" * 400, "the value is not valid YAML"),
        ("name.first=x", "'name' is no section of the recipe"),
        ("train.epochs=two", "override train.epochs=two: train.epochs: 'two' should be a number"),
        ("train.epoch=2", "train.epoch: no such key; did you mean 'epochs'?"),
        ("data.mix=[{path: b, weigth: 1}]", "override data.mix=[{path: b, weigth: 1}]: data.mix.0.weigth: no such key"),
        ("trian.epochs=2", "did you mean 'train'?"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, words: str) -> None:
    assert words in refusal(tmp_path, REQUIRED, override)


def test_an_override_reaches_into_lists_gates_and_sections(tmp_path: Path) -> None:
    text = LISTED + "train: {epochs: 9, batch_size: 4}\neval: {gates: {perplexity.heldout: {at_most: 9}}}\n"
    gate = "eval.gates.perplexity.heldout.ratio.at_most=0.5"
    recipe = load_recipe(written(tmp_path, text), ["data.mix.1.weight=3", "train={epochs: 1}", gate])
    assert [m.weight for m in recipe.data.mix] == [1.0, 3.0]
    assert (recipe.train.epochs, recipe.train.batch_size) == (1.0, 4)
    assert {name: bound.at_most for name, bound in recipe.eval.gates.items()} == {
        "perplexity.heldout": 9.0,
        "perplexity.heldout.ratio": 0.5,
    }
    whole = load_recipe(written(tmp_path, text), ["eval.gates={prompts.gain: {at_least: 0}}"])
    assert list(whole.eval.gates) == ["prompts.gain"]


@pytest.mark.parametrize("index", ["2", "-1", "x", "01"])
def test_an_override_of_an_item_that_is_not_there_says_how_many_there_are(tmp_path: Path, index: str) -> None:
    message = refusal(tmp_path, LISTED, f"data.mix.{index}.weight=1")
    assert f"'data.mix' has 2 items, 0 to 1, and no '{index}'" in message


def test_a_later_override_wins_and_nothing_of_what_it_replaces_is_told(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, LISTED), ["train.epochs=x", "data.mix=[7]", "data.mix=[]", "train.epochs=2"])
    assert (recipe.train.epochs, recipe.data.mix) == (2.0, ())


def test_many_overrides_are_refused_before_they_take_long(tmp_path: Path) -> None:
    assert "more than 200 or 65536" in refusal(tmp_path, REQUIRED, *["seed=1"] * 201)
    assert "more than 200 or 65536" in refusal(tmp_path, REQUIRED, "name=" + "a" * 65536)
