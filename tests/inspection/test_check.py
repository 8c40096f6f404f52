"""finetune check from outside: what it says of a recipe, how it says it, and with which exit code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import finetune
from finetune import cli
from finetune.data.lint.rules import RULES
from finetune.recipe import load_recipe

WORDS = ("amber", "basil", "cedar", "delta", "ember", "fable", "grove", "haven", "inlet", "jolly", "karma", "lunar")


class Done(NamedTuple):
    code: object
    out: str
    err: str


class Bench:
    """A sound recipe in an otherwise empty working folder, and the command line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.save("rows.jsonl", 400)
        self.save("heldout.jsonl", 60, start=400)
        Path("recipe.yaml").write_text(
            f"name: pizza\nbase: {{model: {model}, dtype: float32}}\n"
            "data: {path: rows.jsonl, heldout: heldout.jsonl, max_length: 128}\ntrain: {batch_size: 8}\n"
        )

    def save(self, name: str, count: int, start: int = 0, **extra: str) -> None:
        rows = [
            {"instruction": f"{WORDS[n % 12]} {n} {WORDS[n // 12 % 12]}", "output": f"{n} {WORDS[n * 7 % 12]}", **extra}
            for n in range(start, start + count)
        ]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *arguments: str) -> Done:
        self.monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code or 0, *self.capsys.readouterr())

    def findings(self, *overrides: str) -> dict[str, str]:
        """Code -> the first place of it, in one line."""
        done = self.run("check", "recipe.yaml", *overrides, "--format", "json")
        report = json.loads(done.out)
        assert done.code == (0 if report["sound"] else 1)
        places = {f["code"]: f["places"][0] for f in report["findings"]}
        return {code: ": ".join(filter(None, (p["where"], p["message"]))) for code, p in places.items()}


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch, capsys, model_folder)


def test_a_sound_recipe_has_no_findings(bench: Bench) -> None:
    assert bench.findings() == {}
    done = bench.run("check", "recipe.yaml")
    assert done.code == 0
    assert "nothing was found" in done.out
    assert re.search(r"train +400 +400 +0 ", done.out)
    assert re.search(r"held-out +60 +60 +0 ", done.out)
    assert "tokens of the training rows (data.max_length 128)" in done.out
    assert list(Path().glob("adapters*")) == []


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("train={batch_size: 512, epochs: 40}", "R002", "train.batch_size is 512, there are 400 training rows"),
        ("train.max_steps=5", "R003", "5 optimizer steps: 3 epochs of 400 rows by 8"),
        ("adapter.alpha=800", "R005", "adapter.alpha 800 with r 16 is 50"),
        ("adapter={method: rslora, r: 64, alpha: 128}", "R005", "adapter.alpha 128 with r 64 is 16"),
        ("train.learning_rate=0.5", "R006", "train.learning_rate is 0.5"),
        ("base.trust_remote_code=true", "R009", "base.trust_remote_code is true"),
        ("data.path=none.jsonl", "R010", "none.jsonl: no such"),
        ("eval.prompts=none.yaml", "R010", "none.yaml: no such file"),
        ("eval.gates={prompts.gain: {at_least: 0.1}}", "R001", "eval.gates.prompts.gain: would not be measured"),
        ("data.max_length=257", "M002", "data.max_length is 257"),
        ("train.epoch=1", "R001", "override train.epoch=1: train.epoch: no such key; did you mean 'epochs'?"),
    ],
)
def test_a_doubtful_setting_is_found(bench: Bench, override: str, code: str, words: str) -> None:
    found = bench.findings(override)
    assert list(found) == [code]
    assert words in found[code]


def test_settings_are_placed_in_the_recipe(bench: Bench) -> None:
    text = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(text.replace("{batch_size: 8}", "\n  batch_size: 512\n  learning_rate: 0.9"))
    assert bench.findings()["R002"].startswith("recipe.yaml:5")
    assert bench.findings()["R006"] == "recipe.yaml:6: train.learning_rate is 0.9"


def test_every_mistake_of_a_recipe_is_a_finding_of_its_own(bench: Bench) -> None:
    Path("recipe.yaml").write_text("name: a b\nbase: {model: tiny}\ndata: {path: x, cutoff_len: 5}\n")
    done = bench.run("check", "recipe.yaml", "--format", "json")
    (finding,) = json.loads(done.out)["findings"]
    assert (done.code, finding["code"], finding["count"]) == (1, "R001", 2)
    assert [place["where"] for place in finding["places"]] == ["recipe.yaml:1:1", "recipe.yaml:3:17"]


def test_few_held_out_rows_are_pointed_out(bench: Bench) -> None:
    bench.save("heldout.jsonl", 12, start=900)
    assert bench.findings() == {"R007": "recipe.yaml:3: 12 held-out rows"}


def test_a_base_without_a_chat_template_is_found(bench: Bench, model_folder: Path) -> None:
    Path("bare").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("bare", name).write_bytes((model_folder / name).read_bytes())
    found = bench.findings("base.model=./bare")
    assert list(found) == ["M001"]
    assert "has no chat template" in found["M001"]


def test_a_doubled_start_token_is_found(bench: Bench, model_folder: Path) -> None:
    template = copied(model_folder, "double") / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    assert list(bench.findings("base.model=./double")) == ["M003"]


def copied(model_folder: Path, name: str) -> Path:
    """The model's folder without its weights."""
    Path(name).mkdir()
    for file in model_folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            Path(name, file.name).write_bytes(file.read_bytes())
    return Path(name)


def test_a_base_that_is_quantised_already_is_found(bench: Bench, model_folder: Path) -> None:
    config = copied(model_folder, "gptq") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    assert bench.findings("base.model=./gptq") == {
        "M005": "override base.model=./gptq: ./gptq says quantization_config: gptq"
    }
    assert bench.findings("base.model=./gptq", "base.quantization=none") == {}


def test_a_padding_token_that_is_the_end_token_is_pointed_out(bench: Bench, model_folder: Path) -> None:
    settings = copied(model_folder, "padded") / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<|end|>"}))
    assert list(bench.findings("base.model=./padded")) == ["M004"]


def test_a_hub_model_that_is_not_pinned_is_pointed_out(
    bench: Bench, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = Path("hub/models--some--model").absolute()
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots").mkdir()
    copied(model_folder, "copy").rename(cache / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache.parent), raising=False)
    found = bench.findings("base.model=some/model")
    assert list(found) == ["R008"]
    assert "some/model is read at main" in found["R008"]
    assert bench.findings("base.model=some/model", f"base.revision={commit}") == {}


def test_annotations_of_a_workflow_run(bench: Bench) -> None:
    rows = Path("rows.jsonl").read_text().splitlines()
    rows[4] = '{"instruction": "50%,\\n", "output": ""}'
    Path("rows.jsonl").write_text("\n".join(rows) + "\n")
    done = bench.run("check", "recipe.yaml", "train.learning_rate=0.5", "--format", "github")
    assert done.code == 1
    assert done.out.splitlines() == [
        "::error file=rows.jsonl,line=5,title=D004 nothing to train%3A the completion is empty::"
        "'output' is empty: nothing to train",
        "::warning title=R006 unusual learning rate::override train.learning_rate=0.5: train.learning_rate is 0.5",
    ]


def test_a_person_is_told_where_why_and_how(bench: Bench) -> None:
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text() + "{\n" * 5)
    done = bench.run("check", "recipe.yaml")
    assert done.code == 1
    assert "error D001 row cannot be read (5 times)" in done.out
    assert "    rows.jsonl:401: " in done.out
    assert "    ... and 2 more" in done.out
    assert f"why: {RULES['D001'].why}" in " ".join(done.out.split())
    assert re.search(r"train +405 +400 +5 .*D001 5", done.out)
    assert "5 errors" in done.out


def test_explain_says_what_a_code_means(bench: Bench) -> None:
    done = bench.run("check", "--explain", "d013")
    assert (done.code, done.out.startswith("D013 (error): held-out row also stands")) == (0, True)
    done = bench.run("check", "--explain", "D999")
    assert (done.code, "no finding has the code 'D999'" in done.err) == (2, True)
    assert bench.run("check").code == 2


def test_check_is_a_function_of_the_package(bench: Bench) -> None:
    report = finetune.check(load_recipe("recipe.yaml", ["train.learning_rate=0.5"]))
    assert [finding.code for finding in report.findings] == ["R006"]
    assert report.sound


@pytest.mark.parametrize("name", ["pizza", "cheerful", "grumpy"])
def test_shipped_recipes_are_sound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    report = finetune.check(load_recipe(f"recipes/{name}.yaml"))
    assert report.sound
    assert {finding.code for finding in report.findings} <= {"D011", "D012", "D014"}
    assert all(part.accepted == part.total > 0 for part in report.parts)
