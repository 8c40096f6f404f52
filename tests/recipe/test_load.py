"""The recipe file: strict, every mistake at once, and no text that gets out as anything but a RecipeError."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe import dump_recipe, load_recipe, read_yaml
from finetune.recipe.layers import MAX_BYTES
from finetune.recipe.yaml_tree import MAX_NODES
from tests.recipe.helpers import REQUIRED, SHIPPED, refusal, refusal_of, written

PLACE = re.compile(r"^[^:\n]+\.yaml:\d+:\d+: ")


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
        ("data: {path: a, mix: b}", "'b' should be a list"),
        ("train: {epochs: .inf}", "inf should be a finite number"),
        ("train: {epochs: null}", "null should be a number"),
        ("train: {epochs: [1, a]}", "[1, 'a'] should be a number"),
        ("adapter: {target_modules: []}", "[] should have at least 1 item"),
        ("data: {path: a, mix: true}", "true should be a list"),
        ("adapter: {alpha: .nan}", "nan should be"),
        ("seed: '1'", "'1' should be a whole number"),
        ("generation: {max_new_tokens: 0}", "greater than or equal to 1"),
        ("eval: {gates: {prompts.gain: {}}}", "give one of at_least, at_most"),
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
    text = REQUIRED + "train: {learning_rate: 2e-4}\nadapter: {target_modules: [no, yes, on]}\nseed: 0o17\n"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.train.learning_rate, recipe.adapter.target_modules) == (0.0002, ("no", "yes", "on"))
    assert recipe.seed == 15
    assert "'no' should be true or false" in refusal(tmp_path, "base: {model: tiny, trust_remote_code: no}")


def test_anchors_merges_and_a_byte_order_mark_work(tmp_path: Path) -> None:
    text = (
        "\ufeffname: a\nbase: {model: a/b, trust_remote_code: &yes true}\n"
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
        ("a: " + "[" * 400, "1:36", "32 levels"),
        ("a: " + "[" * 40 + "]" * 40, "1:36", "32 levels"),
        ("- a: " + "b: " * 9, "1:7", "mapping values are not allowed"),
        ("a: 'b", "1:6", "not valid YAML: found unexpected end of stream"),
        ("a:\n\t- b", "2:1", "cannot start any token"),
        ("a: b\nc: \0", "2:4", "not valid YAML: the character U+0000 is not allowed"),
        ("a: b\nc: \ufffe", "2:4", "the character U+FFFE is not allowed"),
        ('a: b\nc: "\\UFFFFFFFF"', "2:1", "not valid YAML"),
        ("a: &x [*x]", "1:8", "no anchor '&x' ends before this alias"),
        ('a: "\\ud800b"', "1:4", "'\\\\ud800b' holds half of a UTF-16 pair"),
        ('"\\ud800": b', "1:1", "holds half of a UTF-16 pair"),
        ("a: *x", "1:4", "no anchor '&x' ends before this alias"),
        ("a: !!str b", "1:4", "tag 'tag:yaml.org,2002:str' is not allowed; remove it"),
        ("a: !!python/object:os.system {}", "1:4", "is not allowed"),
        ("a: ! b", "1:4", "tag '!' is not allowed"),
        ("? [a]\n: b", "1:3", "a key should be plain text"),
        ("? !x a\n: b", "1:3", "a key should be plain text"),
        ("<<: a", "1:5", "'<<' should be followed by a mapping"),
        ("<<: [{a: b}, c]", "1:5", "'<<' should be followed by a mapping"),
        ("<<: {a: b}\n<<: {c: d}", "2:1", "duplicate key '<<'"),
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


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    comment = "#" * (MAX_BYTES - len(REQUIRED))
    assert load_recipe(written(tmp_path, REQUIRED + comment)).name == "pizza"
    assert refusal(tmp_path, REQUIRED + comment + "#") == "recipe.yaml: is larger than 64 KiB; no recipe is"


def test_other_yaml_files_have_the_limit_that_their_reader_gives(tmp_path: Path) -> None:
    path = written(tmp_path, f"a: {'b' * MAX_BYTES}")
    assert len(read_yaml(path)["a"]) == MAX_BYTES
    with pytest.raises(RecipeError, match="larger than 1 KiB"):
        read_yaml(path, 1024)


def test_of_very_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    lines = refusal(tmp_path, REQUIRED + "".join(f"key{n}: 1\n" for n in range(3000))).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "... and more mistakes in recipe.yaml"


def test_the_name_of_a_file_is_never_cut(tmp_path: Path) -> None:
    path = written(tmp_path, f"{REQUIRED}foo: 1\n", f"{'long/' * 40}recipe.yaml")
    assert refusal_of(path).startswith(f"{path}:4:1: foo: no such key")


def test_what_cannot_be_printed_is_escaped_in_messages(tmp_path: Path) -> None:
    message = refusal(tmp_path, REQUIRED + '"a\\nb\\e[31m": 1\n')
    assert message.startswith("recipe.yaml:4:1: a\\nb\\x1b[31m: no such key")


@pytest.mark.parametrize(
    ("text", "value"),
    [("017", 17), ("0x10", 16), ("0o17", 15), ("-0", 0), ("+7", 7), ("1_000", None), ("7" * 41, None), ("08", 8)],
)
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: int | None) -> None:
    if value is None:
        assert "seed: " in refusal(tmp_path, f"{REQUIRED}seed: {text}\n")
    else:
        assert load_recipe(written(tmp_path, f"{REQUIRED}seed: {text}\n")).seed == value


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
