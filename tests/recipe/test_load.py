"""The recipe file: strict, every mistake at once, and no text that gets out as anything but a RecipeError."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe import Recipe, dump_recipe, load_recipe
from finetune.recipe.explain import all_keys
from finetune.recipe.load import MAX_NODES
from finetune.recipe.synonyms import SYNONYMS

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
REQUIRED = "name: pizza\nbase: {model: tiny}\ndata: {path: rows.jsonl}\n"
PLACE = re.compile(r"^[^:\n]+\.yaml:\d+:\d+: ")


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(folder, text), overrides)
    return str(error.value).replace(f"{folder}/", "")


def test_the_shortest_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, REQUIRED))
    assert (recipe.name, recipe.base.model, recipe.data.path) == ("pizza", "tiny", "rows.jsonl")
    assert (recipe.seed, recipe.base.quantization, recipe.data.heldout, recipe.adapter.r) == (0, "nf4", 0.1, 16)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


def test_recipes_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize(
    ("line", "place", "hint"),
    [
        ("nme: x", "4:1: nme", "did you mean 'name'?"),
        ("train: {learning_rat: 1e-3}", "4:9: train.learning_rat", "did you mean 'learning_rate'?"),
        ("train: {batch-size: 4}", "4:9: train.batch-size", "did you mean 'batch_size'?"),
        ("adapter: {lora_rank: 8}", "4:11: adapter.lora_rank", "here it is called 'adapter.r'"),
        ("cutoff_len: 8", "4:1: cutoff_len", "here it is called 'data.max_length'"),
        ("cutof_len: 8", "4:1: cutof_len", "did you mean 'data.max_length'?"),
        ("learning_rate: 1e-3", "4:1: learning_rate", "did you mean 'train.learning_rate'?"),
        ("adapter: {zzz: 8}", "4:11: adapter.zzz", "this section has method, r, alpha, dropout, target_modules"),
        ("eval: {gates: {prompts.gain: {atleast: 0}}}", "4:31: eval.gates.prompts.gain.atleast", "'at_least'"),
    ],
)
def test_an_unknown_key_is_placed_and_gets_a_suggestion(tmp_path: Path, line: str, place: str, hint: str) -> None:
    message = refusal(tmp_path, REQUIRED + line)
    assert f"recipe.yaml:{place}: no such key; " in message
    assert hint in message


def test_a_key_of_a_list_item_is_compared_with_the_keys_of_such_items(tmp_path: Path) -> None:
    text = "name: a\nbase: {model: tiny}\ndata:\n  path: a\n  mix:\n    - {path: b, weigth: 1}\n"
    message = refusal(tmp_path, text)
    assert "recipe.yaml:6:17: data.mix.0.weigth: no such key; did you mean 'weight'?" in message
    assert "recipe.yaml:6:7: data.mix.0: required key 'data.mix.0.weight' is missing" in message


@pytest.mark.parametrize(("synonym", "key"), SYNONYMS.items())
def test_every_synonym_names_a_key_that_exists_and_is_none_itself(synonym: str, key: str) -> None:
    assert key in all_keys()
    assert synonym not in all_keys()


def test_there_are_few_keys() -> None:
    keys = all_keys()
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    assert 20 < len(leaves) <= 45


def test_every_key_says_what_it_does() -> None:
    sections = [Recipe, *(f.annotation for f in Recipe.model_fields.values() if hasattr(f.annotation, "model_fields"))]
    fields = {n: f for s in sections for n, f in s.model_fields.items() if not hasattr(f.annotation, "model_fields")}
    assert [name for name, field in fields.items() if not field.description] == []


def test_all_mistakes_come_together_each_with_its_place(tmp_path: Path) -> None:
    lines = refusal(
        tmp_path,
        "name: a b\nbase: {model: tiny, quantization: int3}\ndata: {path: 7, max_length: 0}\n"
        "seed: -1\ntrain:\n  epochs: two\n  batch_size: 1.5\nfoo: 1\n",
    ).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(
        ["name", "base.quantization", "data.path", "data.max_length", "seed", "train.epochs", "train.batch_size", "foo"]
    )
    assert all(PLACE.match(line) for line in lines)
    assert any(line.startswith("recipe.yaml:7:3: train.batch_size: 1.5 should be a") for line in lines)


def test_missing_sections_are_named_one_by_one(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "seed: 1\n").splitlines()
    assert [line.partition("required key ")[2] for line in lines] == [
        "'name' is missing",
        "'base' is missing",
        "'data' is missing",
    ]


@pytest.mark.parametrize("name", ["a b", "", "../up", ".hidden", "-x", "a/b", "ä", "x" * 65, "a\\n"])
def test_a_bad_name_is_told_the_rule_in_words(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, REQUIRED.replace("name: pizza", f'name: "{name}"'))
    assert "recipe.yaml:1:1: name:" in message
    assert "letters" in message
    assert "^[" not in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("base: [tiny]", "should be a section"),
        ("train: {trackers: wandb}", "'wandb' should be a list"),
        ("train: {epochs: .inf}", "inf should be a finite number"),
        ("adapter: {alpha: .nan}", "nan should be"),
        ("seed: '1'", "'1' should be a whole number"),
        ("generation: {top_p: 0}", "greater than 0"),
        ("eval: {gates: {prompts.gain: {}}}", "give either at_least or at_most"),
        ("eval: {gates: {accuracy: {at_least: 1}}}", "'accuracy' should be 'prompts.pass_rate'"),
        (f"output: [{'x, ' * 200}]", "..."),
    ],
)
def test_a_wrong_value_is_shown_with_what_it_should_be(tmp_path: Path, line: str, words: str) -> None:
    text = "".join(part for part in REQUIRED.splitlines(True) if not part.startswith(line[:5])) + line
    message = refusal(tmp_path, text)
    assert words in message
    assert max(map(len, message.splitlines())) < 250


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    text = REQUIRED + "train: {learning_rate: 2e-4, trackers: [no, yes, on]}\nseed: 0o17\n"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.train.learning_rate, recipe.train.trackers, recipe.seed) == (0.0002, ("no", "yes", "on"), 15)
    assert "'no' should be true or false" in refusal(tmp_path, "base: {model: tiny, trust_remote_code: no}")


def test_anchors_merges_and_a_byte_order_mark_work(tmp_path: Path) -> None:
    text = (
        "\ufeffname: a\nbase: {model: tiny, trust_remote_code: &yes true}\n"
        "data: {path: a, mix: [&m {path: b, weight: 1}, {<<: *m, weight: 2}]}\n"
    )
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.base.trust_remote_code is True
    assert [(m.path, m.weight) for m in recipe.data.mix] == [("b", 1.0), ("b", 2.0)]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name: a\nname: b\n", "2:1", "duplicate key"),
        ("name: a\nbase: {model: tiny\n", "3:1", "not valid YAML"),
        ("a: b\n---\nc: d\n", "2:1", "another document"),
        ("a: " + "[" * 400, "", "not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, "", "32 levels"),
        ("name: 2001-99-99", "", "not valid YAML"),
        ("- a\n", "", "expected `key: value` lines"),
        ("", "", "expected `key: value` lines"),
        ("just text", "", "expected `key: value` lines"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str, place: str, words: str) -> None:
    message = refusal(tmp_path, text)
    assert words in message
    assert message.startswith(f"recipe.yaml:{place}")


def test_nested_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert f"more than {MAX_NODES} values" in refusal(tmp_path, bomb)


def test_a_missing_file_says_which_recipes_there_are(tmp_path: Path) -> None:
    written(tmp_path, REQUIRED)
    with pytest.raises(RecipeError, match=r"recipe\.yml: no such file; did you mean .*recipe\.yaml\?"):
        load_recipe(tmp_path / "recipe.yml")
    with pytest.raises(RecipeError, match="no such file; looked in"):
        load_recipe(tmp_path / "none" / "recipe.yaml")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read \(Is a directory\)"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml: is not UTF-8 text .* byte 8"):
        load_recipe(tmp_path / "latin.yaml")


def test_overrides_go_through_the_same_schema(tmp_path: Path) -> None:
    path = written(tmp_path, REQUIRED)
    overrides = ["train.epochs=1", "data.mix=[{path: b, weight: 0.5}]", "data.system=Be = short.", "base.revision="]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.data.system, recipe.base.revision) == (1.0, "Be = short.", None)
    assert recipe.data.mix[0].weight == 0.5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "is no assignment; write it as section.key=value"),
        ("=1", "is no assignment"),
        ("train..epochs=1", "is no assignment"),
        ("train.epochs=[1", "the value is not valid YAML"),
        ("train.epochs=2001-99-99", "the value is not valid YAML"),
        ("train.epochs=" + "[" * 400, "the value is not valid YAML"),
        ("name.first=x", "'name' is no section of the recipe"),
        ("train.epochs=two", "override train.epochs=two: train.epochs: 'two' should be a number"),
        ("train.epoch=2", "train.epoch: no such key; did you mean 'epochs'?"),
        ("data.mix=[{path: b, weigth: 1}]", "override data.mix=[{path: b, weigth: 1}]: data.mix.0.weigth: no such key"),
        ("trian.epochs=2", "did you mean 'train'?"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, words: str) -> None:
    assert words in refusal(tmp_path, REQUIRED, override)


KEYS = st.sampled_from(["name", "base", "data", "train", "eval", "gates", "mix", "<<", "? [a]", "!!set x", "&a a", "1"])
VALUES = st.sampled_from(["tiny", "*a", "&a {b: *a}", "{<<: *a}", "{path: a}", "- 1", "|\n  x", *"[]{}'%"])
ODD = st.sampled_from(["!foo x", "!!binary aa", "!!timestamp x", "!!omap [a: b]", "!!set {a}", "!!int x", "!!float x"])
MORE = st.sampled_from(["!!map []", "!!null x", "%YAML 9", "2001-1-1", '"\\ud800"', "0x", ".inf", "1_0", "2001-99-99"])
INDENTS = st.sampled_from(["", "  ", "- "])
LINES = st.tuples(INDENTS, KEYS, VALUES | ODD | MORE | st.text(max_size=8)).map(lambda t: f"{t[0]}{t[1]}: {t[2]}")
TEXTS = st.lists(LINES, max_size=6).map("\n".join) | st.text(max_size=60)


@settings(max_examples=250, deadline=None)
@given(text=TEXTS.filter(lambda t: t.isprintable() or "\n" in t))
def test_no_text_gets_out_as_anything_but_a_recipe_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError):  # none of these texts is a whole recipe
        load_recipe(path)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1),
    rate=st.floats(1e-12, 1.0),
    stop=st.lists(st.sampled_from(["no", "1e3", "null", "~", "#", "\n", "---", "a: b", " "])),
)
def test_what_was_resolved_is_written_so_that_it_loads_again(
    text: str, rate: float, stop: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = {"name": "a", "base": {"model": text}, "data": {"path": text, "system": text}}
    settings_ = {"train": {"learning_rate": rate}, "generation": {"stop": tuple(stop)}}
    recipe = Recipe.model_validate({**plain, **settings_})
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe(path) == recipe
