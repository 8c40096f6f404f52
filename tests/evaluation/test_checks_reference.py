"""docs/prompts.md says what the checks do."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from finetune.evaluation.checks import CHECKS, Answer, make_check, run_check
from finetune.evaluation.checks.core import check
from finetune.evaluation.checks.normalize import STEPS, STEPS_SAY, normalized
from finetune.evaluation.checks.reference import example_of, render_checks
from finetune.evaluation.checks.values import Normalize, Texts
from finetune.evaluation.suite import load_prompts

PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"


def test_the_page_is_made_from_the_checks() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_checks(), "run `make docs`"


def test_every_check_has_a_row_with_all_its_options() -> None:
    rows = {line.split("`")[1]: line for line in render_checks().splitlines() if line.startswith("| `")}
    assert set(rows) == set(CHECKS)
    for name, spec in CHECKS.items():
        assert rows[name].replace("\\|", "").count("|") == 6
        assert all(f"`{option}`: " in rows[name] for option in spec.options)
    assert set(STEPS_SAY) == set(STEPS)


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_s_docstring_has_a_line_and_an_example_that_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_JUDGE_URL", "http://127.0.0.1:9/v1")
    (tmp_path / "my_shop").mkdir()
    (tmp_path / "my_shop" / "checks.py").write_text("def is_on_the_menu(text, menu): return True")
    monkeypatch.chdir(tmp_path)
    first, blank = (inspect.getdoc(CHECKS[name].call) or "").splitlines()[:2]
    assert first.endswith(".")
    assert not blank
    path = tmp_path / "prompts.yaml"
    path.write_text(f"prompts:\n- id: a\n  prompt: hi\n  checks:\n  - {example_of(CHECKS[name])}\n")
    assert load_prompts(path, None)[0].checks[0].kind == name


def test_the_readme_s_way_to_add_a_check_works() -> None:
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(part.partition("```")[0] for part in readme.split("```python\n") if part.startswith("@check\n"))
    names = {"check": check, "Answer": Answer, "Texts": Texts, "Normalize": Normalize, "normalized": normalized}
    before = dict(CHECKS)
    try:
        exec(code, names)
        (name,) = set(CHECKS) - set(before)
        made = make_check(name, ["sure", "of course"], ignore_case=True)
        assert run_check(made, Answer("Of course!", True, 3)).passed
        assert not run_check(made, Answer("No.", True, 3)).passed
        assert f"| `{name}` | text or a list of texts |" in render_checks()
    finally:
        CHECKS.clear()
        CHECKS.update(before)


def test_the_page_s_prompts_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(render_checks().split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert [prompt.id for prompt in load_prompts(path, None)] == ["order-001", "change-of-mind"]
