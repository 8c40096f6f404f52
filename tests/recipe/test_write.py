"""A recipe is written so that it loads again, and shown with where each value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.recipe import Recipe, dump_recipe, load_recipe, resolve_recipe, show_recipe
from finetune.recipe.write import WIDEST, plain_value
from finetune.recipe.yaml_tree import Budget, Map, parse
from tests.recipe.helpers import REQUIRED, SHIPPED, family, written

WORDS = "no Yes null ~ true 1 1.0 1e3 0x1 .inf 2001-01-01 --- ... << = ? - # | > ' größe a,b ---a a? a'b"
ODD = WORDS.split()
ODD += ["", " ", "a ", " a", "- a", "a: b", "a #b", "a\nb", "\t", "\x00", "\x7f", "\x85", "\u2028", "\U0001f600"]
ODD += ["%a", "@a", "`a", "!a", "&a", "*a", "[a", "{a", '"', "\\"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shown_is_a_recipe_equal_to_the_resolved_one(path: Path, tmp_path: Path) -> None:
    resolved = resolve_recipe(path, ["train.epochs=1", "data.system='a: b # c'"])
    assert load_recipe(written(tmp_path, show_recipe(resolved))) == resolved.recipe
    assert load_recipe(written(tmp_path, dump_recipe(resolved.recipe))) == resolved.recipe


def test_every_value_is_shown_with_its_origin_in_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, REQUIRED + "train:\n  epochs: 2\neval: {gates: {prompts.gain: {at_least: 0}}}\n")
    monkeypatch.chdir(tmp_path)
    text = show_recipe(resolve_recipe("recipe.yaml", ["adapter.r=8"]))
    valued = [line for line in text.splitlines() if not line.endswith(":")]
    assert len({line.index("  # ") for line in valued}) == 1
    origins = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in valued}
    assert (origins["name"], origins["epochs"]) == ("recipe.yaml:1", "recipe.yaml:5")
    assert (origins["seed"], origins["r"]) == ("default", "override adapter.r=8")
    assert (origins["at_least"], origins["at_most"]) == ("recipe.yaml:6", "default")


def test_origins_name_every_value_and_nothing_else() -> None:
    resolved = resolve_recipe(SHIPPED[0])
    lines = [line for line in dump_recipe(resolved.recipe).splitlines() if not line.endswith(":")]
    assert len(resolved.origins) == len(lines)
    assert "extends" not in resolved.origins


def test_a_file_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family(tmp_path, {"r/child.yaml": "extends: ../parent.yaml\n", "parent.yaml": REQUIRED})
    monkeypatch.chdir(tmp_path)
    assert "# r/../parent.yaml:1\n" in show_recipe(resolve_recipe("r/child.yaml"))


def test_the_file_of_an_origin_is_never_cut(tmp_path: Path) -> None:
    path = written(tmp_path, REQUIRED, f"{'long/' * 40}recipe.yaml")
    assert f"# {path}:1\n" in show_recipe(resolve_recipe(path))


def test_one_long_value_does_not_push_the_others_away(tmp_path: Path) -> None:
    text = show_recipe(resolve_recipe(written(tmp_path, REQUIRED), [f"data.system={'long ' * 50}"]))
    columns = [line.index("  # ") for line in text.splitlines() if "  # default" in line]
    assert max(columns) <= WIDEST


def test_an_origin_cannot_end_its_comment(tmp_path: Path) -> None:
    path = written(tmp_path, REQUIRED, "a\nseed: 7\n#.yaml")
    resolved = resolve_recipe(path, ['data.system="x"\n\n'])
    assert load_recipe(written(tmp_path, show_recipe(resolved))) == resolved.recipe
    assert resolved.recipe.seed == 0


def node_of(text: str) -> Map:
    node = parse(text, "x", Budget()).node
    assert isinstance(node, Map)
    return node


@pytest.mark.parametrize("text", ODD)
def test_odd_text_stays_what_it_is(text: str) -> None:
    line = plain_value(text)
    assert "\n" not in line
    assert node_of(f"a: {line}  # b\nc: d\n").entries["a"].node == text
    assert list(node_of(f"{line}: b").entries) == [text]


def test_ordinary_text_is_written_plain() -> None:
    for text in ("data/pizza/train.jsonl", "Take pizza orders.", "meta-llama/Llama-3.1-8B", "all-linear", "a/b@c"):
        assert plain_value(text) == text
    assert plain_value(("a", "b c", "1")) == '[a, b c, "1"]'
    plain = [plain_value(value) for value in (None, True, 2e-5, float("inf"), (), {})]
    assert plain == ["null", "true", "2e-05", ".inf", "[]", "{}"]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1),
    rate=st.floats(1e-12, 1.0),
    words=st.lists(st.sampled_from([word for word in ODD if word]), unique=True),
)
def test_any_recipe_is_written_so_that_it_loads_again(
    text: str, rate: float, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = {"path": text, "system": text, "format": "a:b", "columns": {word: f"{word}x" for word in words}}
    parts = {"data": data, "train": {"learning_rate": rate}, "adapter": {"target_modules": tuple(words) or ("x",)}}
    recipe = Recipe.model_validate({"name": "a", "base": {"model": text}, **parts})
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(path) == recipe
