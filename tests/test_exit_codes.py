"""The exit code of an evaluation is its verdict, and whatever goes wrong never looks like a pass."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import cli, comparison, pipeline
from finetune.evaluation import folder as report_folder
from finetune.recipe import load_recipe

Run = Callable[..., tuple[int, str]]
PROMPTS = "prompts:\n" + "".join(
    f"- {{id: p{n}, prompt: Give me {n}, checks: [{{max_tokens: 9}}]}}\n" for n in range(8)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with a recipe and its adapter, which is no better than the base, and an earlier report."""
    place = tmp_path_factory.mktemp("codes")
    rows = [{"instruction": f"Give me {n} pizzas", "output": f"You get {n} pizzas."} for n in range(60)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "prompts.yaml").write_text(PROMPTS)
    (place / "recipe.yaml").write_text(
        f"name: pizza\nbase: {{model: {model_folder}, dtype: float32}}\ntrain: {{max_steps: 1, batch_size: 4}}\n"
        "data: {path: rows.jsonl, heldout: 0.3, max_length: 64}\ngeneration: {max_new_tokens: 4}\n"
        "eval: {prompts: prompts.yaml}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        pipeline.train(load_recipe("recipe.yaml"))
        pipeline.evaluate(load_recipe("recipe.yaml"))
    shutil.copytree(place / "adapters" / "pizza" / "report", place / "earlier")
    return place


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(trained)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, said.out + said.err

    return call


def gates(text: str) -> str:
    return f"eval.gates={{{text}}}"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, []),
        (0, [gates("prompts.pass_rate: {at_least: 0.5}")]),
        (0, [gates("perplexity.heldout: {no_worse_than_base: 9}, prompts.pass_rate: {no_worse_than_base: 0.9}")]),
        (0, ["--baseline", "earlier", gates("perplexity.heldout: {no_worse_than_baseline: 0.1}")]),
        (1, [gates("perplexity.heldout: {at_most: 1.1}")]),
        (1, [gates("prompts.pass_rate: {at_most: 0.3}")]),
        (1, [gates("prompts.pass_rate: {at_least: 0.5}, perplexity.heldout: {at_most: 1.1}")]),
        (3, [gates("prompts.pass_rate: {at_least: 0.95}")]),
        (3, [gates("prompts.gain: {at_least: 0}, prompts.pass_rate: {at_least: 0.5}")]),
        (3, ["--baseline", "earlier"]),  # 8 prompts cannot show that the drop is at most 5 points
        (2, ["--baseline", "nowhere"]),
        (2, ["--baseline", "earlier", "generation.max_new_tokens=5"]),
        (2, ["--compare", "nobody"]),
        (2, ["--adapter", "nobody"]),
        (2, ["--repeat", "2"]),
        (2, [gates("perplexity.general: {at_most: 9}")]),
        (2, [gates("prompts.pass_rate: {no_worse_than_baseline: 0.1}")]),
        (2, ["eval.prompts=nowhere.yaml"]),
        (2, ["--no-such-option"]),
    ],
)
def test_the_exit_code_says_what_happened(run: Run, code: int, arguments: list[str]) -> None:
    found, said = run("eval", "recipe.yaml", *arguments)
    assert found == code, said
    assert "Traceback" not in said
    if code != 2:
        assert run("report", "adapters/pizza/report")[0] == code


def crash(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (comparison, "score_model"),
        (comparison, "prompts_block"),
        (report_folder, "render_html"),
        (pipeline, "apply_gates"),
    ],
)
def test_a_crash_is_70_and_leaves_the_earlier_report(
    run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str
) -> None:
    run("eval", "recipe.yaml")
    before = (trained / "adapters/pizza/report/report.json").read_bytes()
    monkeypatch.setattr(where, name, crash)
    code, said = run("eval", "recipe.yaml", "--fresh")
    assert (code, "this is a bug in finetune" in said) == (70, True)
    assert (trained / "adapters/pizza/report/report.json").read_bytes() == before
