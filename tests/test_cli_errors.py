"""Bad input through the real command line: exit code 2, the value and its place, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from finetune import cli, pipeline
from finetune.recipe import load_recipe
from tests.conftest import save_model

Run = Callable[..., "Done"]


class Done(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process, so that torch is imported once."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, jsonl: Path) -> Path:
    """A sound recipe in an otherwise empty working folder; tests break one thing of it."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        f"name: pizza\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data: {{path: {jsonl.name}, heldout: 0.3, max_length: 64}}\n"
        "train: {max_steps: 2, batch_size: 4}\n"
    )
    return Path("recipe.yaml")


def assert_refused(done: Done, *words: str) -> None:
    assert done.code == 2, done.err
    assert "Traceback" not in done.err + done.out
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.err
    left = [path for path in Path("adapters").rglob("*") if path.is_file()] if Path("adapters").exists() else []
    assert left == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.epoch=1", ["override train.epoch=1", "no such key; did you mean 'epochs'?"]),
        ("train.epochs=many", ["override train.epochs=many", "'many' should be a number"]),
        ("train.epochs", ["override 'train.epochs' is no assignment", "section.key=value"]),
        ("name=a b", ["'a b' should be 1 to 64 of the letters"]),
        ("data.path=none.jsonl", ["none.jsonl: no such data file"]),
        ("data.path=rows.txt", ["rows.txt: unknown kind of data file '.txt'"]),
        ("data.heldout=none.jsonl", ["none.jsonl: no such data file"]),
        ("data.heldout=0.0001", ["rows.jsonl: 40 rows split by 0.0001 leave 40 to train on and 0 held out"]),
        ("data.format=messages", ["rows.jsonl:1: no key 'messages'", "fits format instruction"]),
        ("data.max_length=257", ["data.max_length 257", "256 positions", "set data.max_length to 256 or less"]),
        ("data.max_length=4", ["exceed data.max_length 4 tokens", "rows.jsonl:"]),
        ("data={path: rows.jsonl, max_length: 4, too_long: drop}", ["exceed 4 tokens, so none is left"]),
        ("data.mix=[{path: none.jsonl, weight: 1}]", ["none.jsonl: no such data file"]),
        ("base.model=./none", ["./none: no such folder; looked for /"]),
        ("base.model=no/such/thing", ["no/such/thing: no such folder"]),
        ("adapter.target_modules=[q_porj]", ["['q_porj'] match no linear layer; this model has", "q_proj"]),
        ("base.device=cpu", ["base.device: no such key; there is none, because the GPU is used if there is one"]),
    ],
)
def test_a_bad_value_stops_the_training(run: Run, recipe: Path, change: str, words: list[str]) -> None:
    assert_refused(run("train", str(recipe), change), *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian: {}", ["recipe.yaml:5:1: trian: no such key; did you mean 'train'?"]),
        ("seed: one", ["recipe.yaml:5:1: seed: 'one' should be a whole number"]),
        ("seed: [", ["recipe.yaml:", "is not valid YAML"]),
        ("name: again", ["recipe.yaml:5:1: duplicate key 'name'"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_broken_recipe_stops_every_command(run: Run, recipe: Path, command: str, line: str, words: list[str]) -> None:
    recipe.write_text(recipe.read_text() + line)
    assert_refused(run(command, str(recipe)), *words)


def test_recipes_that_cannot_be_read(run: Run, recipe: Path) -> None:
    assert_refused(run("train", "recipe.yml"), "recipe.yml: no such file; did you mean recipe.yaml?")
    assert_refused(run("train", "."), ".: cannot be read (Is a directory)")
    Path("latin.yaml").write_bytes("name: größe".encode("latin-1"))
    assert_refused(run("eval", "latin.yaml"), "latin.yaml: is not UTF-8 text")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["rows.jsonl: holds no rows"]),
        ('{"instruction": "a", "output": "b"}\n{"instruction": \n', ["rows.jsonl:2: broken JSON", "column"]),
        ('{"instruction": "a"}\n', ["rows.jsonl:1: no key 'output' (it has 'instruction')"]),
        ('{"instruction": "a", "output": ""}\n', ["rows.jsonl:1: 'output' is empty"]),
        ('{"instruction": "a", "output": "\\ud800"}\n', ["rows.jsonl:1: 'output' has half of a UTF-16 pair"]),
    ],
)
def test_bad_rows_are_placed(run: Run, recipe: Path, jsonl: Path, text: str, words: list[str]) -> None:
    jsonl.write_text(text)
    assert_refused(run("train", str(recipe)), *words)


def test_an_empty_heldout_file(run: Run, recipe: Path) -> None:
    Path("heldout.jsonl").write_text("")
    assert_refused(run("train", str(recipe), "data.heldout=heldout.jsonl"), "heldout.jsonl: holds no rows")


@pytest.mark.parametrize("output", ["adapters", "adapters/deep"])
def test_an_output_folder_that_cannot_be_written(run: Run, recipe: Path, output: str) -> None:
    Path("adapters").write_text("a file")
    done = run("train", str(recipe), f"output={output}")
    assert Path("adapters").read_text() == "a file"
    Path("adapters").unlink()
    assert_refused(done, f"{output}/pizza: output folder cannot be written", "set output: FOLDER")


def test_a_file_where_the_adapter_should_go(run: Run, recipe: Path) -> None:
    Path("adapters").mkdir()
    Path("adapters/pizza").write_text("a file")
    done = run("train", str(recipe))
    Path("adapters/pizza").unlink()
    assert_refused(done, "adapters/pizza", "a file stands where the adapter folder belongs")


def test_options_of_a_run_that_cannot_be(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("train", str(recipe), "--tracker", "nothing")
    assert_refused(done, "--tracker nothing: accelerate has no such tracker; there are aim")
    done = run("train", str(recipe), "--checkpoint-every", "0")
    assert (done.code, "--checkpoint-every" in done.err) == (2, True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    assert_refused(run("train", str(recipe)), "ACCELERATE_USE_CPU is 'maybe', neither true nor false")


def test_folders_that_hold_no_model(run: Run, recipe: Path, model_folder: Path) -> None:
    Path("empty").mkdir()
    assert_refused(run("train", str(recipe), "base.model=./empty"), "./empty: the folder has no config.json")
    Path("bare").mkdir()
    Path("bare/config.json").write_bytes((model_folder / "config.json").read_bytes())
    assert_refused(run("train", str(recipe), "base.model=./bare"), "./bare: the folder has no tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("bare", name).write_bytes((model_folder / name).read_bytes())
    assert_refused(run("train", str(recipe), "base.model=./bare"), "./bare: has no chat template")


def test_adapters_that_are_not_there(run: Run, recipe: Path) -> None:
    assert_refused(run("eval", str(recipe)), "adapters/pizza: no adapter 'pizza'", "train one first")
    assert_refused(run("generate", "hi", "--adapter", "none"), "no adapter 'none'")
    assert_refused(run("show", "none"), "no adapter 'none'")
    Path("half").mkdir()
    assert_refused(run("show", "./half"), "half: is no adapter folder: no adapter_model.safetensors")


def test_a_gate_on_what_is_not_measured(run: Run, recipe: Path) -> None:
    done = run("eval", str(recipe), "eval.gates={prompts.gain: {at_least: 0.1}}")
    assert_refused(done, "eval.gates.prompts.gain: would not be measured; set eval.prompts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "-1"], ["--temperature -1.0", "greater than or equal to 0"]),
        (["--top-p", "1.5"], ["--top-p 1.5", "less than or equal to 1"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens 0"]),
        (["--temperature", "nan"], ["--temperature nan"]),
        (["--file", "none.txt"], ["none.txt: cannot be read"]),
    ],
)
def test_bad_sampling_options(run: Run, recipe: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(run("generate", "hi", *arguments), *words)
    if "--file" not in arguments:
        assert_refused(run("chat", *arguments), *words)


def test_nothing_to_answer(run: Run, recipe: Path) -> None:
    assert_refused(run("generate"), "nothing to answer", "--file")


def test_unknown_options_and_values_are_usage_errors(run: Run) -> None:
    for arguments in (["generate", "--temperature", "hot"], ["generate", "--nothing"], ["nothing"], ["train"]):
        done = run(*arguments)
        assert done.code == 2
        assert {"hot": "--temperature", "--nothing": "--nothing", "nothing": "nothing", "train": "RECIPE"}[
            arguments[-1]
        ] in done.err


def test_an_adapter_of_another_base(run: Run, recipe: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trained = pipeline.train(load_recipe(recipe))
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    save_model(Path("other").absolute(), tokenizer, seed=1)
    done = run("eval", str(recipe), "base.model=./other")
    assert (done.code, "Traceback" in done.err) == (2, False)
    for word in ("pizza: was trained on base", "random-llama", "this is ./other", "they differ in weights"):
        assert word in done.err
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before
    card = json.loads((trained.folder / "card.json").read_text())
    card["base"]["quantization"] = "int3"
    (trained.folder / "card.json").write_text(json.dumps(card))
    done = run("generate", "hi", "--adapter", str(trained.folder))
    assert (done.code, "its card names no base" in done.err) == (2, True)


def test_an_error_of_our_own_says_so_and_is_70(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object, overrides: object) -> None:
        raise RuntimeError("not the user's fault")

    monkeypatch.setattr("finetune.recipe.load_recipe", broken)
    done = run("train", str(recipe))
    assert done.code == 70
    assert "not the user's fault" in done.err
    assert "this is a bug in finetune" in done.err


def test_ctrl_c_is_130_without_a_traceback(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: object, overrides: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.recipe.load_recipe", stopped)
    done = run("train", str(recipe))
    assert (done.code, "Traceback" in done.err) == (130, False)


def subprocess_run(*arguments: str, **environment: str) -> Done:
    command = [sys.executable, "-m", "finetune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_process_of_its_own_says_what_is_wrong(recipe: Path) -> None:
    assert_refused(subprocess_run("train", "none.yaml"), "none.yaml: no such file; did you mean recipe.yaml?")


def test_a_hub_model_without_the_hub(recipe: Path, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess_run("train", str(recipe), "base.model=some/model", **offline)
    assert_refused(done._replace(err=done.err[max(0, done.err.find("error: ")) :]), "some/model: cannot load the model")
    assert re.search(r"offline mode is on|not in the local cache", done.err)
    assert "Traceback" not in done.err
