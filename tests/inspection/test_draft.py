"""finetune init: the format is found, and the recipe that it writes runs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from finetune import cli, pipeline
from finetune.data.detect import detect_format
from finetune.errors import DataError
from finetune.inspection.check import check
from finetune.inspection.draft import draft_recipe
from finetune.recipe import load_recipe

Q, A = "Give me {n} pizzas", "You get {n} pizzas."
TALK = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SHARED = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
# a row -> the format and the columns that are found
ROWS: dict[str, tuple[dict[str, object], str, dict[str, str]]] = {
    "instruction": ({"instruction": Q, "output": A}, "instruction", {}),
    "alpaca": ({"instruction": "Order", "input": Q, "output": A}, "alpaca", {}),
    "prompt_completion": ({"prompt": Q, "completion": A}, "prompt_completion", {}),
    "question_answer": ({"question": Q, "answer": A}, "question_answer", {}),
    "messages": ({"messages": TALK}, "messages", {}),
    "sharegpt": ({"conversations": SHARED}, "sharegpt", {}),
    "text": ({"text": Q}, "text", {}),
    "other names": ({"Query": Q, "Response": A}, "prompt_completion", {"prompt": "Query", "completion": "Response"}),
    "half names": ({"prompt": Q, "response": A, "id": 5}, "prompt_completion", {"completion": "response"}),
    "two texts": ({"links": Q, "rechts": A, "n": 1}, "prompt_completion", {"prompt": "links", "completion": "rechts"}),
    "turns": ({"chat": TALK}, "messages", {"messages": "chat"}),
    "shared": ({"dialogue": SHARED}, "sharegpt", {"conversations": "dialogue"}),
    "one text": ({"body": Q, "n": 1}, "text", {"text": "body"}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(row: object, name: str = "orders.jsonl", start: int = 0) -> None:
    lines = [json.dumps(row).replace("{n}", str(n)) for n in range(start, start + 40)]
    Path(name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ROWS)
def test_the_format_is_found_and_the_recipe_is_sound(name: str, model_folder: Path) -> None:
    row, format_name, columns = ROWS[name]
    save(row)
    assert detect_format("orders.jsonl")[:2] == (format_name, columns)
    draft = draft_recipe("orders.jsonl", str(model_folder))
    Path("orders.yaml").write_text(draft.text)
    recipe = load_recipe("orders.yaml")
    assert (recipe.name, recipe.data.format, dict(recipe.data.columns)) == ("orders", format_name, columns)
    assert f"format {format_name}" in draft.found
    report = check(recipe)
    assert report.sound, report.findings
    assert sum(part.accepted for part in report.parts) == 40


def test_what_it_writes_trains(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save({"question": Q, "answer": A})
    monkeypatch.setattr(sys, "argv", ["finetune", "init", "orders.jsonl", "--base", str(model_folder)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert not stop.value.code
    assert "orders.jsonl: format question_answer, 40 rows, the longest of" in out
    assert "next: finetune check orders.yaml" in out
    trained = pipeline.train(load_recipe("orders.yaml", ["train.max_steps=2"]))
    assert trained.folder == Path("adapters/orders")
    with pytest.raises(SystemExit) as stop:  # a second time it is refused
        cli.main()
    assert stop.value.code == 2
    assert "orders.yaml: is already there" in capsys.readouterr().err


def test_a_held_out_file_beside_it_is_used(model_folder: Path) -> None:
    Path("set").mkdir()
    save({"prompt": Q, "completion": A}, "set/train.jsonl")
    save({"prompt": Q, "completion": A}, "set/test.jsonl", start=100)
    Path("set.yaml").write_text(draft_recipe("set/train.jsonl", str(model_folder)).text)
    recipe = load_recipe("set.yaml")
    assert (recipe.name, recipe.data.heldout) == ("set", "set/test.jsonl")


def test_the_length_has_room_for_the_longest_and_keeps_to_the_model(model_folder: Path) -> None:
    save({"prompt": "pizza " * 150, "completion": A})
    recipe_text = draft_recipe("orders.jsonl", str(model_folder)).text
    assert "max_length: 192" in recipe_text
    assert "too_long" not in recipe_text
    save({"prompt": "pizza xyzzy " * 200, "completion": A})
    recipe_text = draft_recipe("orders.jsonl", str(model_folder)).text
    assert "max_length: 256" in recipe_text  # the model's limit
    assert "too_long: drop" in recipe_text


def test_names_and_paths_that_yaml_would_misread_are_quoted(model_folder: Path) -> None:
    Path("007 orders: all").mkdir()
    save({"prompt": Q, "completion": A}, "007 orders: all/train.jsonl")
    Path("r.yaml").write_text(draft_recipe("007 orders: all/train.jsonl", str(model_folder)).text)
    recipe = load_recipe("r.yaml")
    assert (recipe.name, recipe.data.path) == ("007-orders-all", "007 orders: all/train.jsonl")


def test_a_table_with_other_columns(model_folder: Path) -> None:
    with Path("faq.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Frage: was?", "#Antwort"])
        writer.writerows([[Q.format(n=n), A.format(n=n)] for n in range(40)])
    Path("faq.yaml").write_text(draft_recipe("faq.csv", str(model_folder)).text)
    assert dict(load_recipe("faq.yaml").data.columns) == {"prompt": "Frage: was?", "completion": "#Antwort"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "c": 3}\n', "orders.jsonl: has the columns 'a', 'b', 'c', which fit no format"),
        ("", "orders.jsonl: holds no rows"),
        ("{\n", "orders.jsonl:1: "),
    ],
)
def test_a_file_that_fits_nothing_is_refused(text: str, words: str) -> None:
    Path("orders.jsonl").write_text(text)
    with pytest.raises(DataError) as error:
        draft_recipe("orders.jsonl")
    assert words in str(error.value)
