"""The keys: how many there are, what they say, and what cannot stand together in one recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune.recipe import DataSection, MixSource, Recipe, load_recipe
from finetune.recipe.keys import all_keys, value_keys, walk
from finetune.recipe.schema import CUSTOM_FORMAT, FORMAT_COLUMNS
from tests.recipe.helpers import REQUIRED, refusal, written


def test_there_are_few_keys_also_when_those_of_lists_and_gates_count() -> None:
    keys = value_keys()
    assert {"data.mix[].weight", "eval.gates.METRIC.at_most", "data.mix", "base.model"} <= set(keys)
    assert not {"base", "train"} & set(keys)
    assert 20 < len(keys) <= 45


def test_the_walk_sees_every_field_of_every_section() -> None:
    sections = {key.section for key in walk() if key.section} | {Recipe}
    assert len(list(walk())) == sum(len(section.model_fields) for section in sections)
    assert {"data.mix", "train.epochs", "eval"} <= set(all_keys())
    assert not any("[" in key or "METRIC" in key for key in all_keys())


def test_every_key_says_what_it_does() -> None:
    assert [key.name for key in walk() if not key.field.description] == []


def test_keys_that_nobody_needs_in_a_recipe_are_gone(tmp_path: Path) -> None:
    for key in ("generation.stop", "generation.frequency_penalty", "generation.presence_penalty"):
        message = refusal(tmp_path, REQUIRED, f"{key}=0")
        assert "no such key; there is none, because an evaluation" in message
    assert "LoRA matrices need none" in refusal(tmp_path, REQUIRED, "train.weight_decay=0")


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("base.device", "the GPU is used if there is one, else the CPU; CUDA_VISIBLE_DEVICES= (empty) hides the GPU"),
        ("train.checkpoint_every", "`finetune train --checkpoint-every STEPS` says how often it is written"),
        ("train.trackers", "name them with `finetune train --tracker NAME`"),
        ("train.warmup", "the learning rate always rises over the first 3% of the steps"),
        ("generation.top_p", "an evaluation samples from all tokens; chat and generate have --top-p"),
        ("train.max_grad_norm", "gradients are always clipped at an L2 norm of 1.0"),
    ],
)
def test_keys_of_where_and_how_a_run_runs_say_what_to_do_instead(tmp_path: Path, key: str, instead: str) -> None:
    assert f"{key}: no such key; there is none, because " in (message := refusal(tmp_path, REQUIRED, f"{key}=1"))
    assert message.endswith(instead)


@pytest.mark.parametrize("name", [*FORMAT_COLUMNS, "my.formats:orders", "_a:b_1"])
def test_formats_are_built_in_or_a_function_of_the_user(tmp_path: Path, name: str) -> None:
    mix = f"data.mix=[{{path: b, weight: 1, format: '{name}'}}]"
    recipe = load_recipe(written(tmp_path, REQUIRED), [f"data.format='{name}'", mix])
    assert (recipe.data.format, recipe.data.mix[0].format) == (name, name)


@pytest.mark.parametrize(
    "name", ["", "orders", "a:", ":b", "a:b:c", "a b:c", "1a:b", "a.b", "a:b\n", "../a:b", "a:b.c"]
)
def test_any_other_format_is_told_the_choices_once(name: str) -> None:
    for section, needed in ((DataSection, {"path": "a"}), (MixSource, {"path": "a", "weight": 1.0})):
        with pytest.raises(ValidationError) as error:
            section.model_validate({**needed, "format": name})
        (mistake,) = error.value.errors()
        assert all(repr(choice) in mistake["msg"] for choice in FORMAT_COLUMNS)
        assert "'package.module:function'" in mistake["msg"]


def test_a_misspelt_format_gets_a_suggestion_in_one_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, REQUIRED, "data.format=Instructions")
    assert "data.format: 'Instructions' is no format; did you mean 'instruction'? Choose 'instruction', " in message
    assert "\n" not in message


def test_the_pattern_of_custom_formats_is_anchored() -> None:
    assert CUSTOM_FORMAT[0] + CUSTOM_FORMAT[-1] == "^$"
    assert re.fullmatch(CUSTOM_FORMAT[1:-1], "a.b:c")


COLUMNS = "name: a\nbase: {model: tiny}\ndata:\n  path: a\n  format: question_answer\n  columns: "


def test_columns_name_the_keys_of_the_format(tmp_path: Path) -> None:
    text = (
        COLUMNS + "{question: q, answer: A, context: text}\n  mix: [{path: b, weight: 1, columns: {messages: chat}}]\n"
    )
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.data.columns == {"question": "q", "answer": "A", "context": "text"}
    assert recipe.data.mix[0].columns == {"messages": "chat"}
    anything = load_recipe(written(tmp_path, COLUMNS.replace("question_answer", "a:b") + "{whatever: q}\n"))
    assert anything.data.columns == {"whatever": "q"}


@pytest.mark.parametrize(
    ("columns", "place", "words"),
    [
        (
            "{questoin: q}",
            "6:13: data.columns.questoin",
            "format 'question_answer' has no key 'questoin'; did you mean",
        ),
        ("{zzz: q}", "6:13: data.columns.zzz", "no key 'zzz'; it has question, answer, context, system"),
        ("{question: ''}", "6:13: data.columns.question", "'' should have at least 1 character"),
        ("{question: 7}", "6:13: data.columns.question", "7 should be text"),
        ("[question]", "6:3: data.columns", "should be a section"),
        ("{question: q, answer: q}", "6:26: data.columns.answer", "column 'q' is already read as 'question'"),
    ],
)
def test_wrong_columns_are_placed_and_told(tmp_path: Path, columns: str, place: str, words: str) -> None:
    message = refusal(tmp_path, COLUMNS + columns)
    assert message.startswith(f"recipe.yaml:{place}: ")
    assert words in message


def test_columns_of_a_mixed_in_source_are_checked_against_its_own_format(tmp_path: Path) -> None:
    text = (
        COLUMNS
        + "{}\n  mix:\n    - {path: b, weight: 1}\n    - path: c\n      weight: 1\n      columns:\n        prompt: p\n"
    )
    message = refusal(tmp_path, text)
    assert (
        message
        == "recipe.yaml:12:9: data.mix.1.columns.prompt: format 'messages' has no key 'prompt'; it has messages, tools"
    )


CONTRADICTIONS = [
    ("data.heldout=./rows.jsonl", "data.heldout: './rows.jsonl' is data.path 'rows.jsonl', too"),
    ("eval.general=rows.jsonl", "eval.general: 'rows.jsonl' is data.path 'rows.jsonl', too"),
    ("eval.prompts=x/../rows.jsonl", "eval.prompts: 'x/../rows.jsonl' is data.path 'rows.jsonl', too"),
    ("base.revision=v2", "base.revision: 'v2' is a revision on the Hub, but base.model 'tiny' is the built-in base"),
    (
        "base={model: ./m, revision: v2}",
        "base.revision: 'v2' is a revision on the Hub, but base.model './m' is a local",
    ),
    ("base={model: a/b/c, revision: v2}", "base.revision: 'v2' is a revision on the Hub, but base.model 'a/b/c' is"),
    ("adapter.method=[pissa, eva]", "adapter.method: 'pissa' and 'eva' each say how A and B begin; keep one of them"),
    ("adapter.method=[lora, dora]", "adapter.method: 'lora' is the plain kind and 'dora' another; keep one of them"),
    ("adapter.method=[dora, loftq]", "adapter.method: 'dora' begins with the magnitudes of the base, which 'loftq'"),
    ("adapter.method=[lora+, lora+]", "adapter.method: 'lora+' stands there 2 times; once is enough"),
    ("adapter.target_modules=[q_proj, layers.5-3]", "adapter.target_modules.1: 'layers.5-3' ends before it begins"),
    ("adapter.target_modules=[layers.x]", "adapter.target_modules.0: 'layers.x' names no layers; write layers.20-29"),
    ("base.trust_remote_code=true", "base.trust_remote_code: true, but base.model 'tiny' is the built-in base"),
]


@pytest.mark.parametrize(("override", "words"), CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused_with_both(tmp_path: Path, override: str, words: str) -> None:
    assert refusal(tmp_path, REQUIRED, override).startswith(f"override {override}: {words}")


def test_loftq_is_for_a_quantised_base(tmp_path: Path) -> None:
    message = refusal(tmp_path, REQUIRED, "adapter.method=[lora+, loftq]", "base.quantization=none")
    assert "adapter.method: 'loftq' makes up for what 4 bits lose, but base.quantization is 'none'" in message


def test_contradictions_are_told_together_each_at_its_key(tmp_path: Path) -> None:
    text = (
        "name: a\nbase: {model: tiny, revision: v1}\ndata:\n  path: a\n  heldout: b\n  mix: [{path: b, weight: 1}]\n"
        "eval:\n  general: b\n"
    )
    lines = refusal(tmp_path, text).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["recipe.yaml:2:21", "recipe.yaml:5:3", "recipe.yaml:8:3"]
    assert "'b' is data.mix.0.path 'b', too: rows that are trained on cannot judge the adapter" in lines[1]


def test_what_only_looks_contradictory_is_allowed(tmp_path: Path) -> None:
    fine = [
        ["base={model: ./m, revision: main}"],
        ["base={model: gpt2, revision: v2, trust_remote_code: true}"],
        ["base={model: ./m, trust_remote_code: true}"],
        ["base={model: tiny, revision: main}"],
        ["adapter.method=dora", "base.quantization=nf4"],
        ["adapter.method=[rslora, dora, pissa, lora+, neftune]"],
        ["adapter.method=loftq", "base.quantization=nf4"],
        ["adapter.target_modules=[q_proj, layers.0, layers.3-3.up_proj]"],
        ["data.heldout=b", "eval.general=b"],
        ["data.mix=[{path: rows.jsonl, weight: 1, format: text}]"],
    ]
    for overrides in fine:
        assert load_recipe(written(tmp_path, REQUIRED), overrides).name == "pizza"


def test_a_recipe_made_in_python_is_held_to_the_same_rules() -> None:
    with pytest.raises(ValidationError, match=r"data\.heldout: 'a' is data\.path 'a', too"):
        Recipe.model_validate({"name": "a", "base": {"model": "m"}, "data": {"path": "a", "heldout": "a"}})
