"""finetune recipe show and recipe schema: what they print can be read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from finetune import cli
from finetune.recipe import load_recipe
from finetune.recipe.reference import json_schema
from tests.recipe.helpers import REQUIRED, written


def printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["finetune", "recipe", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return (stop.value.code, *capsys.readouterr())


def test_show_prints_a_recipe_unwrapped_and_without_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, REQUIRED)
    system = f"data.system='[bold]Say :pizza:[/bold] {'very ' * 60}'"
    code, out, _ = printed(capsys, monkeypatch, "show", str(path), system, "train.epochs=1")
    assert code == 0
    assert "train.epochs=1" in out
    assert load_recipe(written(tmp_path, out, "shown.yaml")) == load_recipe(path, [system, "train.epochs=1"])


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = printed(capsys, monkeypatch, "schema")
    assert code == 0
    assert json.loads(out) == json_schema()


def test_a_bad_recipe_is_told_like_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, f"{REQUIRED}foo: 1\n")
    code, out, err = printed(capsys, monkeypatch, "show", str(path), "train.epochs=two")
    assert (code, out) == (2, "")
    assert f"{path}:4:1: foo: no such key" in err
    assert "override train.epochs=two: train.epochs: 'two' should be a number" in err
