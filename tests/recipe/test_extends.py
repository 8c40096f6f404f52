"""One recipe extends another: what is merged, whose mistake is whose, and that no chain goes on for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import dump_recipe, load_recipe, resolve_recipe
from tests.recipe.helpers import REQUIRED, family, refusal_of, written

PARENT = (
    "name: parent\nbase: {model: tiny, dtype: float32}\n"
    "data:\n  path: a\n  columns: {system: s}\n  mix:\n    - {path: m, weight: 1}\n    - {path: n, weight: 1}\n"
    "train: {epochs: 9, batch_size: 4}\nadapter: {r: 8, target_modules: [x, y]}\n"
    "eval: {gates: {prompts.gain: {at_least: 0}, prompts.pass_rate: {at_least: 0.5}}, prompts: p}\n"
)


def told(path: Path, folder: Path) -> str:
    return refusal_of(path).replace(f"{folder}/", "")


def told_of(folder: Path, text: str) -> str:
    return told(written(folder, text), folder)


def test_sections_are_merged_key_by_key_and_everything_else_is_replaced(tmp_path: Path) -> None:
    child = (
        "extends: parent.yaml\nname: child\ndata: {columns: {output: o}, mix: [{path: z, weight: 2}]}\n"
        "train: {epochs: 1}\nadapter: {target_modules: [z]}\neval: {gates: {perplexity.heldout: {at_most: 9}}}\n"
    )
    recipe = load_recipe(family(tmp_path, {"child.yaml": child, "parent.yaml": PARENT}))
    assert recipe.extends is None
    assert (recipe.name, recipe.base.dtype, recipe.data.path) == ("child", "float32", "a")
    assert (recipe.train.epochs, recipe.train.batch_size) == (1.0, 4)
    assert (recipe.adapter.r, recipe.adapter.target_modules) == (8, ("z",))
    assert recipe.data.columns == {"output": "o"}
    assert [source.path for source in recipe.data.mix] == ["z"]
    assert list(recipe.eval.gates) == ["perplexity.heldout"]
    assert recipe.eval.prompts == "p"


def test_a_child_that_says_nothing_is_its_parent(tmp_path: Path) -> None:
    path = family(tmp_path, {"child.yaml": "extends: parent.yaml\n", "parent.yaml": PARENT})
    assert load_recipe(path) == load_recipe(tmp_path / "parent.yaml")
    assert load_recipe(written(tmp_path, f"extends: null\n{PARENT}")) == load_recipe(tmp_path / "parent.yaml")


def test_the_resolved_recipe_is_written_without_extends(tmp_path: Path) -> None:
    path = family(tmp_path, {"a/child.yaml": "extends: ../parent.yaml\n", "parent.yaml": PARENT})
    text = dump_recipe(load_recipe(path))
    assert "extends" not in text
    assert load_recipe(written(tmp_path, text)) == load_recipe(path)


def test_a_parent_is_looked_for_where_the_file_stands_that_names_it(tmp_path: Path) -> None:
    texts = {
        "a/b/child.yaml": "extends: ../middle.yaml\ntrain: {epochs: 1}\n",
        "a/middle.yaml": "extends: up/top.yaml\ntrain: {epochs: 2, batch_size: 2}\n",
        "a/up/top.yaml": REQUIRED + "train: {epochs: 3, batch_size: 3, max_steps: 3}\n",
    }
    train = load_recipe(family(tmp_path, texts)).train
    assert (train.epochs, train.batch_size, train.max_steps) == (1.0, 2, 3)
    absolute = load_recipe(written(tmp_path, f"extends: {tmp_path}/a/middle.yaml\n"))
    assert absolute.train.batch_size == 2


def test_values_and_their_origins_come_from_the_file_that_says_them_last(tmp_path: Path) -> None:
    child = "extends: parent.yaml\ntrain:\n  epochs: 1\n"
    path = family(tmp_path, {"child.yaml": child, "parent.yaml": PARENT})
    origins = resolve_recipe(path, ["train.batch_size=2", "data.mix.1.weight=3"]).origins
    assert origins["train.epochs"] == f"{tmp_path}/child.yaml:3"
    assert origins["adapter.target_modules"] == f"{tmp_path}/parent.yaml:10"
    assert origins["train.batch_size"] == "override train.batch_size=2"
    assert (origins["data.mix.0.weight"], origins["data.mix.0.format"]) == (f"{tmp_path}/parent.yaml:7", "default")
    assert origins["data.mix.1.weight"] == "override data.mix.1.weight=3"
    assert origins["eval.gates.prompts.gain.at_least"] == f"{tmp_path}/parent.yaml:11"
    assert origins["adapter.alpha"] == "default"
    assert "extends" not in origins


def test_what_a_child_replaces_leaves_no_origin_behind(tmp_path: Path) -> None:
    child = "extends: parent.yaml\ndata: {mix: []}\n"
    origins = resolve_recipe(family(tmp_path, {"child.yaml": child, "parent.yaml": PARENT})).origins
    assert origins["data.mix"] == f"{tmp_path}/child.yaml:2"
    assert not any(key.startswith("data.mix.") for key in origins)


def test_mistakes_of_all_files_are_told_together_each_where_it_stands(tmp_path: Path) -> None:
    child = "extends: parent.yaml\ntrain:\n  epochs: two\nfoo: 1\n"
    parent = PARENT.replace("dtype: float32", "dtype: int4").replace("batch_size: 4", "batch-size: 4")
    lines = told(family(tmp_path, {"child.yaml": child, "parent.yaml": parent}), tmp_path).splitlines()
    assert sorted(line.split(": ")[0] + " " + line.split(": ")[1] for line in lines) == [
        "child.yaml:3:3 train.epochs",
        "child.yaml:4:1 foo",
        "parent.yaml:2:21 base.dtype",
        "parent.yaml:9:20 train.batch-size",
    ]


def test_a_mistake_that_a_child_corrects_is_none(tmp_path: Path) -> None:
    child = "extends: parent.yaml\nbase: {dtype: bfloat16}\n"
    parent = PARENT.replace("dtype: float32", "dtype: int4")
    assert load_recipe(family(tmp_path, {"child.yaml": child, "parent.yaml": parent})).base.dtype == "bfloat16"


def test_a_contradiction_between_files_is_placed_at_its_key(tmp_path: Path) -> None:
    path = family(tmp_path, {"child.yaml": "extends: parent.yaml\ndata:\n  heldout: n\n", "parent.yaml": PARENT})
    assert told(path, tmp_path).startswith("child.yaml:3:3: data.heldout: 'n' is data.mix.1.path 'n', too")


def test_what_is_required_may_come_from_either_file(tmp_path: Path) -> None:
    texts = {"a.yaml": "extends: b.yaml\nname: a\ndata: {path: x}\n", "b.yaml": "base: {model: tiny}\n"}
    assert load_recipe(family(tmp_path, texts)).base.model == "tiny"
    message = told_of(tmp_path, "extends: b.yaml\nname: a\n")
    assert message == "recipe.yaml: recipe: required key 'data' is missing"


@pytest.mark.parametrize("value", ["7", "[a.yaml]", "{a: b}", "true", "''"])
def test_extends_names_one_file(tmp_path: Path, value: str) -> None:
    message = told_of(tmp_path, f"name: a\nextends: {value}\n")
    assert message.startswith("recipe.yaml:2:1: extends: ")
    assert message.endswith("should be the path of a recipe")


def test_a_recipe_that_extends_itself_is_refused_with_the_way(tmp_path: Path) -> None:
    texts = {"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: c/c.yaml\n", "c/c.yaml": "extends: ../b.yaml\n"}
    message = told(family(tmp_path, texts), tmp_path)
    assert message == "c/c.yaml:1:1: a recipe extends itself: a.yaml -> b.yaml -> c/c.yaml -> c/../b.yaml"
    assert "recipe.yaml -> recipe.yaml" in told_of(tmp_path, "extends: recipe.yaml\n")


def test_a_cycle_is_seen_through_links_of_the_file_system(tmp_path: Path) -> None:
    path = written(tmp_path, "extends: link.yaml\n")
    (tmp_path / "link.yaml").symlink_to(path)
    assert "a recipe extends itself: recipe.yaml -> link.yaml" in told(path, tmp_path)
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "extends 'loop.yaml': cannot be read (Too many levels" in told_of(tmp_path, "extends: loop.yaml")


def test_eight_files_are_enough(tmp_path: Path) -> None:
    texts = {f"{n}.yaml": f"extends: {n + 1}.yaml\n" for n in range(1, 8)} | {"8.yaml": REQUIRED}
    assert load_recipe(family(tmp_path, texts)).name == "pizza"
    message = told_of(tmp_path, "extends: 1.yaml\n")
    assert message.startswith("7.yaml:1:1: extends more than 8 files deep: recipe.yaml -> 1.yaml -> 2.yaml -> ")


def test_a_parent_that_cannot_be_read_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    written(tmp_path, REQUIRED, "other.yaml")
    message = told_of(tmp_path, "name: a\nextends: othr.yaml\n")
    assert message == "recipe.yaml:2:1: extends 'othr.yaml': no such file; did you mean other.yaml?"
    assert "extends '.': cannot be read (Is a directory)" in told_of(tmp_path, "extends: .")
    assert "cannot be read (embedded null byte)" in told_of(tmp_path, 'extends: "a\\0b"')
    assert "cannot be read (File name too long)" in told_of(tmp_path, f"extends: {'a' * 5000}")
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    assert "1:1: extends 'latin.yaml': is not UTF-8 text" in told_of(tmp_path, "extends: latin.yaml")
    written(tmp_path, "#" * 70_000, "large.yaml")
    assert "1:1: extends 'large.yaml': is larger than 64 KiB" in told_of(tmp_path, "extends: large.yaml")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("pipe.yaml", "/dev/zero"):
        assert f"extends '{name}': is no ordinary file" in told_of(tmp_path, f"extends: {name}\n")


def test_a_parent_with_broken_yaml_is_told_with_its_own_place(tmp_path: Path) -> None:
    path = family(tmp_path, {"a.yaml": "extends: b.yaml\n", "b.yaml": "name: [\n"})
    assert told(path, tmp_path).startswith("b.yaml:2:1: is not valid YAML")
    written(tmp_path, "- a\n", "b.yaml")
    assert told(path, tmp_path).startswith("b.yaml: is no recipe")


def test_the_files_of_one_recipe_are_measured_together(tmp_path: Path) -> None:
    texts = {"a.yaml": "extends: b.yaml\n", "b.yaml": f"extends: c.yaml\n#{'x' * 40_000}", "c.yaml": f"#{'x' * 40_000}"}
    message = told(family(tmp_path, texts), tmp_path)
    assert message == "b.yaml:1:1: the recipe and what it extends are larger than 64 KiB together"


def test_values_of_all_files_are_counted_together(tmp_path: Path) -> None:
    many = f"x: [{', '.join(['1'] * 2000)}]\n"
    texts = {f"{n}.yaml": f"extends: {n + 1}.yaml\n{many}" for n in range(1, 7)} | {"7.yaml": REQUIRED}
    with pytest.raises(RecipeError, match="more than 10000 values"):
        load_recipe(family(tmp_path, texts))
