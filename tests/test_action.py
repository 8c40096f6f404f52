"""The GitHub Action: its steps' own shell, run here, with the runner's files in a folder of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from finetune import pipeline
from finetune.recipe import load_recipe

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]


class Ran(NamedTuple):
    code: int
    out: str
    outputs: dict[str, str]
    summary: str


def run(step: str, folder: Path, **environment: str) -> Ran:
    """Run one step as the runner does: bash with -e and -o pipefail, inputs in the environment."""
    script = next(s["run"] for s in STEPS if s.get("id") == step)
    files = {"GITHUB_OUTPUT": folder / f"{step}.output", "GITHUB_STEP_SUMMARY": folder / f"{step}.summary"}
    for file in files.values():
        file.write_text("")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, **{name: str(file) for name, file in files.items()}, **environment}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder)
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return Ran(done.returncode, done.stdout + done.stderr, outputs, files["GITHUB_STEP_SUMMARY"].read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with a recipe, its adapter after two steps, and an earlier report."""
    folder = tmp_path_factory.mktemp("action")
    rows = [{"instruction": f"Give me {n} pizzas", "output": f"You get {n} pizzas."} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"name: pizza\nbase: {{model: {model_folder}}}\ntrain: {{max_steps: 2, batch_size: 4}}\n"
        "data: {path: rows.jsonl, heldout: 0.3, max_length: 64}\n"
        "eval: {gates: {perplexity.heldout.ratio: {at_most: 1000}}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pipeline.train(load_recipe("recipe.yaml"))
        pipeline.evaluate(load_recipe("recipe.yaml"))
    shutil.move(folder / "adapters" / "pizza" / "report", folder / "main report")
    return folder


def evaluate(folder: Path, overrides: str = "", **inputs: str) -> Ran:
    given = {"ADAPTER": "", "BASELINE": "", "ALLOW_INCONCLUSIVE": "false", **inputs}
    return run("evaluate", folder, RECIPE="recipe.yaml", OVERRIDES=overrides, **given)


def test_a_good_adapter_passes_and_its_report_is_in_the_summary(trained: Path) -> None:
    ran = evaluate(trained, ADAPTER="pizza", BASELINE="main report")
    assert (ran.code, ran.outputs["verdict"]) == (0, "pass"), ran.out
    assert set(ran.outputs) == set(ACTION["outputs"])
    assert ran.outputs["report"] == "adapters/pizza/report"
    assert (trained / ran.outputs["comment"]).read_text() == ran.summary
    assert "perplexity" in ran.summary
    gates = json.loads((trained / "adapters/pizza/report/report.json").read_text())["gates"]
    assert [gate["bound"].split()[0] for gate in gates] == ["at_most", "no_worse_than_baseline"]
    assert (trained / "adapters/pizza/report/junit.xml").exists()


@pytest.mark.parametrize(
    ("overrides", "allow", "code", "verdict"),
    [
        ("\nseed=1\neval.gates.perplexity.heldout.ratio.at_most=0.0001\n", "true", 1, "fail"),
        ("data.path=none.jsonl", "true", 2, "error"),
        ("eval.gates={perplexity.heldout: {at_least: 2, at_most: MEASURED}}", "true", 0, "inconclusive"),
    ],
)
def test_the_exit_code_is_the_verdict_s(trained: Path, overrides: str, allow: str, code: int, verdict: str) -> None:
    report = json.loads((trained / "adapters/pizza/report/report.json").read_text())
    measured = str(report["perplexity"]["heldout"]["adapter"]["value"])  # no interval lies wholly on a side of it
    ran = evaluate(trained, overrides.replace("MEASURED", measured), ALLOW_INCONCLUSIVE=allow)
    assert (ran.code, ran.outputs["verdict"]) == (code, verdict), ran.out
    assert bool(ran.summary) == (verdict != "error")


def test_inputs_are_never_read_as_shell(trained: Path) -> None:
    ran = evaluate(trained, "name=$(touch stolen)", ADAPTER="`touch stolen`", BASELINE="`touch stolen`")
    assert ran.code == 2
    assert not (trained / "stolen").exists()
    for step in STEPS:
        assert "${{" not in step.get("run", "")


def test_the_check_annotates_and_fails_on_errors(trained: Path) -> None:
    sound = run("check", trained, RECIPE="recipe.yaml", OVERRIDES="")
    assert sound.code == 0, sound.out
    broken = run("check", trained, RECIPE="recipe.yaml", OVERRIDES="data.format=messages\n")
    assert broken.code == 1
    assert "::error file=rows.jsonl,line=1,title=D003" in broken.out
