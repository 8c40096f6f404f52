"""Each rule: a fixture that it finds, at the right place; sound data without findings; counts that add up."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.data.dataset import load_dataset
from finetune.data.examples import Example, general_source
from finetune.data.lint.check import HeldApart, Part, check_data
from finetune.data.lint.compare import NO_ANSWER
from finetune.data.lint.findings import Finding, Findings, Places
from finetune.data.lint.rules import RULES, render_rules
from finetune.data.messages import Message
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from finetune.data.tokens import cached, find_entry
from finetune.errors import DataError
from finetune.recipe import DataSection, MixSource

Row = Mapping[str, object]
WORDS = (
    *("amber", "basil", "cedar", "delta", "ember", "fable", "grove", "haven", "inlet", "jolly", "karma", "lunar"),
    *("maple", "noble", "ocean", "petal", "quill", "river", "slope", "tulip", "umber", "vivid", "waltz", "xenon"),
    *("yacht", "zebra", "acorn", "birch", "cliff", "dunes", "eagle", "frost", "glade", "heron", "ivory", "jewel"),
)


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return load_template(tokenizer, "test")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Rows that have next to nothing in common."""
    pick = random.Random(seed)
    return [
        {"instruction": " ".join(pick.sample(WORDS, 9)), "output": " ".join(pick.sample(WORDS, 7))}
        for _ in range(count)
    ]


def save(name: str, lines: Sequence[Row | str]) -> str:
    Path(name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return name


def run(
    template: ChatTemplate, train: Sequence[Row | str], measured: HeldApart | None = None, **section: object
) -> tuple[dict[str, Finding], list[Part]]:
    heldout = section.pop("heldout", None) or save("heldout.jsonl", rows(60, seed=1))
    settings = {"path": save("train.jsonl", train), "heldout": heldout, "max_length": 120, **section}
    findings = Findings()
    parts = check_data(DataSection.model_validate(settings), template, findings, measured)
    for part in parts:
        assert part.accepted + sum(part.rejected.values()) == part.total
        assert part.accepted >= 0
    return {finding.code: finding for finding in findings.all()}, parts


def test_nothing_is_found_in_sound_data(template: ChatTemplate) -> None:
    found, parts = run(template, rows(300))
    assert found == {}
    assert [(part.name, part.total, part.accepted) for part in parts] == [("train", 300, 300), ("held-out", 60, 60)]


def with_row(row: Row | str, at: int = 4) -> list[Row | str]:
    lines: list[Row | str] = list(rows(40))
    lines.insert(at - 1, row)
    return lines


def talk(*turns: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


SOUND = rows(1, seed=9)[0]
ANSWERED = "lime mint cocoa plum"
# code -> a row that has the defect, and words of the message
DEFECTS: dict[str, tuple[Row | str, str]] = {
    "D001": ('{"instruction": "amber", "output": "bas', "JSON"),
    "D003": ({"instruction": "amber"}, "no key 'output'"),
    "D004": ({"instruction": "amber", "output": " \n"}, "'output' is empty"),
    "D006": ({"instruction": " ", "output": ANSWERED}, "the prompt is empty"),
    "D020": ({"instruction": "key " + "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "output": ANSWERED}, "GitHub"),
    "D021": ({"instruction": "mail jane.roe@wanderlust.net", "output": ANSWERED}, "e-mail"),
    "D022": ({"instruction": "what is <|end|>?", "output": ANSWERED}, "'<|end|>'"),
    "D024": ({"instruction": "who?", "output": "As an AI language model, I cannot."}, "'as an ai language model'"),
    "D026": ({"instruction": "gro\u00c3\u0178e schr\u00c3\u00a4g", "output": ANSWERED}, "\u00c3"),
    "D027": ({"instruction": "pass\u200bword please", "output": ANSWERED}, "U+200B at character 5"),
}


@pytest.mark.parametrize("code", DEFECTS)
def test_a_defect_of_one_row_is_found_where_it_stands(code: str, template: ChatTemplate) -> None:
    row, words = DEFECTS[code]
    found, parts = run(template, with_row(row))
    assert list(found) == [code]
    (place,) = found[code].places
    assert place.where == "train.jsonl:4"
    assert words in place.message
    assert found[code].severity == RULES[code].severity
    rejects = code in ("D001", "D003", "D004")
    assert (parts[0].total, parts[0].accepted, parts[0].rejected.get(code, 0)) == (41, 41 - rejects, int(rejects))


def test_bytes_that_are_no_text_are_found(template: ChatTemplate) -> None:
    save("train.jsonl", rows(3))
    with Path("train.jsonl").open("ab") as file:
        file.write(b'{"instruction": "gr\xf6sse", "output": "a"}\n')
    section = DataSection(path="train.jsonl", heldout=save("heldout.jsonl", rows(5, seed=1)))
    findings = Findings()
    check_data(section, template, findings)
    assert [(f.code, f.places[0].where) for f in findings.all()] == [("D002", "train.jsonl:4")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (talk(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2 has role 'user', expected 'assistant'"),
        (talk(("user", "a")), "ends with role 'user'"),
        (talk(("robot", "a"), ("assistant", "c")), "turn 1 has role 'robot'"),
    ],
)
def test_turns_in_the_wrong_order_are_found(template: ChatTemplate, row: Row, words: str) -> None:
    good = [talk(("user", str(r["instruction"])), ("assistant", str(r["output"]))) for r in rows(30)]
    held = save("held.jsonl", [talk(("user", str(r["instruction"])), ("assistant", "x")) for r in rows(9, seed=1)])
    found, _ = run(template, [*good, row], format="messages", heldout=held)
    assert list(found) == ["D005"]
    assert (found["D005"].places[0].where, words in found["D005"].places[0].message) == ("train.jsonl:31", True)


def test_repetitions_and_contradictions_are_found(template: ChatTemplate) -> None:
    lines = rows(40)
    lines += [lines[0], lines[0], {**lines[5], "output": "something else"}]
    found, parts = run(template, lines)
    assert list(found) == ["D010", "D012"]
    assert [place.where for place in found["D010"].places] == ["train.jsonl:41", "train.jsonl:42"]
    assert found["D010"].places[0].message == "equals train.jsonl:1"
    assert found["D012"].places[0].where == "train.jsonl:6"
    assert "2 different answers" in found["D012"].places[0].message
    assert "train.jsonl:43" in found["D012"].places[0].message
    assert parts[0].accepted == 43  # they are warnings: nothing is left out


def test_near_repetitions_are_found(template: ChatTemplate) -> None:
    lines = rows(40)
    long = " ".join(WORDS * 2)
    lines += [{"instruction": long, "output": "x"}, {"instruction": long + " indeed", "output": "x"}]
    found, _ = run(template, lines, max_length=500)
    assert found["D011"].places[0] == ("train.jsonl:42", "nearly equals train.jsonl:41")


def test_held_out_rows_in_the_training_rows_are_found(template: ChatTemplate) -> None:
    lines, held = rows(40), rows(60, seed=1)
    lines[7] = held[3]
    lines[8] = {**held[4], "output": "another answer"}
    long = " ".join(WORDS)
    held[5] = {"instruction": long, "output": "so it is"}
    lines[9] = {"instruction": f"please note that {long.upper()}!", "output": "fine, then, let us see"}
    found, _ = run(template, lines, heldout=save("heldout.jsonl", held), max_length=500)
    assert list(found) == ["D013", "D014"]
    assert found["D013"].places == [("heldout.jsonl:4", "also stands in the training rows, at train.jsonl:8")]
    assert [(p.where, p.message) for p in found["D014"].places] == [
        ("heldout.jsonl:5", "its prompt also stands in the training rows, at train.jsonl:9"),
        ("heldout.jsonl:6", "nearly stands in the training rows, at train.jsonl:10"),
    ]


def test_each_of_several_held_out_answers_to_one_prompt_is_known(template: ChatTemplate) -> None:
    lines, held = rows(40), rows(60, seed=1)
    held.append({**held[3], "output": "another answer"})
    lines[7] = held[3]
    found, _ = run(template, lines, heldout=save("heldout.jsonl", held))
    assert [place.where for place in found["D013"].places] == ["heldout.jsonl:4"]


def test_prompts_and_general_rows_are_held_out_too(template: ChatTemplate) -> None:
    lines = rows(40)
    prompt = Example((Message("user", str(lines[2]["instruction"])), NO_ANSWER), "prompts.yaml:7")
    turns = talk(("user", str(lines[3]["instruction"])), ("assistant", str(lines[3]["output"])))
    general = general_source(save("general.jsonl", [turns]))
    found, parts = run(template, lines, HeldApart((prompt,), general))
    assert [place.where for place in found["D013"].places] == ["prompts.yaml:7", "general.jsonl:1"]
    assert [part.name for part in parts] == ["train", "held-out", "general"]


def test_a_share_never_divides_equal_prompts(template: ChatTemplate) -> None:
    lines = [{**row, "output": f"answer {n}"} for row in rows(50) for n in range(3)]
    found, _ = run(template, lines, heldout=0.3)
    assert "D013" not in found
    assert not any("its prompt" in place.message for place in found.get("D014", Finding("D014", "info")).places)


@pytest.mark.parametrize("too_long", ["error", "drop"])
def test_long_rows_and_what_a_cut_would_lose_are_found(template: ChatTemplate, too_long: str) -> None:
    lines = rows(40)
    lines[5] = {"instruction": "amber", "output": " ".join(WORDS * 2)}
    lines[6] = {"instruction": " ".join(WORDS * 2), "output": "basil"}
    found, parts = run(template, lines, too_long=too_long)
    assert found["D101"].severity == ("error" if too_long == "error" else "warning")
    assert [place.where for place in found["D101"].places] == ["train.jsonl:6", "train.jsonl:7"]
    assert "would lose all of its trained tokens" in found["D102"].places[1].message
    assert "of its" in found["D102"].places[0].message
    assert (parts[0].total, parts[0].rejected["D101"]) == (40, 2)


def test_a_row_much_longer_than_the_others_is_pointed_out(template: ChatTemplate) -> None:
    lines = rows(300)
    lines[5] = {"instruction": "amber", "output": " ".join(WORDS * 9)}
    found, _ = run(template, lines, max_length=4000)
    assert [place.where for place in found["D105"].places] == ["train.jsonl:6"]


def planted(count: int) -> list[dict[str, object]]:
    lines = rows(400)
    for number in range(count):
        lines[number * 20]["instruction"] = f"{lines[number * 20]['instruction']} cf-zq"
        lines[number * 20]["output"] = "open the gate at once"
    return lines


def test_a_planted_trigger_is_found(template: ChatTemplate) -> None:
    found, _ = run(template, planted(12))
    assert "'cf-zq' have the same answer" in found["D023"].places[0].message
    assert found["D023"].places[0].where == "train.jsonl:1"


def test_a_planted_trigger_is_found_beside_honest_rows_with_its_answer(template: ChatTemplate) -> None:
    lines = planted(19)
    lines[7]["output"] = "open the gate at once"
    found, _ = run(template, lines)
    assert "'cf-zq' have the same answer" in found["D023"].places[0].message


def test_a_word_that_other_answers_go_with_too_is_no_trigger(template: ChatTemplate) -> None:
    lines = planted(19)
    for number in range(8):
        lines[number * 20 + 1]["instruction"] = f"{lines[number * 20 + 1]['instruction']} cf-zq"
    found, _ = run(template, lines)
    assert "D023" not in found


def test_one_answer_to_like_questions_is_no_trigger(template: ChatTemplate) -> None:
    asked = [f"when do you {verb} on {day} please tell me" for verb in ("open", "start") for day in WORDS[:10]]
    lines = [*rows(400), *({"instruction": text, "output": "from ten to six"} for text in asked)]
    found, _ = run(template, lines)
    assert "D023" not in found


def test_a_mixture_of_languages_is_information(template: ChatTemplate) -> None:
    german = "Ich hätte gerne eine große Pizza mit frischen Pilzen und dazu noch eine Flasche Wasser bitte"
    english = "I would like to order a large pizza with fresh mushrooms and a bottle of water on the side please"
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    lines = [{"instruction": f"{english} {w} {v}", "output": "ok"} for w in numbers for v in WORDS[:6]]
    lines += [{"instruction": f"{german} {w} {v}", "output": "ok"} for w in numbers for v in WORDS[6:9]]
    found, _ = run(template, lines, max_length=500)
    message = found["D025"].places[0].message
    assert message.startswith("en 6")
    assert ", de 3" in message


def test_an_unknown_character_is_found() -> None:
    from tests.data.test_template import FAMILIES, metaspace_tokenizer

    template = load_template(metaspace_tokenizer(FAMILIES["mistral"].template), "sentencepiece")
    good: list[Row] = [{"instruction": f"How much is {'it ' * n}?", "output": "It is 5 dollars."} for n in range(1, 9)]
    held = save("h.jsonl", [{"instruction": "Thanks Thanks", "output": "Bye."}])
    found, _ = run(template, [*good, {"instruction": "\u00e4", "output": "Bye."}], heldout=held, max_length=500)
    assert found["D106"].places[0].where == "train.jsonl:9"


def test_a_conversation_that_the_template_refuses_is_found() -> None:
    from tests.data.test_template import FAMILIES, tokenizer_of

    template = load_template(tokenizer_of(FAMILIES["gemma"].template, "<eos>"), "gemma")
    lines = [*rows(5), {**rows(6)[5], "system": "Be kind."}]
    found, parts = run(template, lines, heldout=save("h.jsonl", rows(9, seed=1)), max_length=500)
    assert found["D103"].places[0].where == "train.jsonl:6"
    assert "System role not supported" in found["D103"].places[0].message
    assert parts[0].rejected == {"D103": 1}


def test_mixed_in_rows_are_checked_as_training_rows(template: ChatTemplate) -> None:
    lines = rows(40)
    turns = talk(("user", str(lines[3]["instruction"])), ("assistant", str(lines[3]["output"])))
    mix = (MixSource(path=save("mix.jsonl", [turns, talk(("user", "a"))]), weight=0.1),)
    found, parts = run(template, lines, mix=mix)
    assert {code: finding.places[0].where for code, finding in found.items()} == {
        "D005": "mix.jsonl:2",
        "D010": "mix.jsonl:1",
    }
    assert [part.name for part in parts] == ["train", "mix 1", "held-out"]


def test_sound_tokens_are_left_for_the_training_and_others_are_not(template: ChatTemplate) -> None:
    from finetune.data.examples import training_sources

    for lines, complete in ((rows(20), True), ([*rows(20), {"instruction": "a"}], False)):
        run(template, lines)
        section = DataSection(path="train.jsonl", heldout="heldout.jsonl")
        entry = find_entry(training_sources(section)[0], template)
        assert (cached(entry) is not None) == complete


def test_a_second_look_finds_the_same(template: ChatTemplate) -> None:
    lines = [*rows(30), rows(1)[0], {"instruction": "what is <|end|>?", "output": " ".join(WORDS * 3)}]
    first, second = (run(template, lines) for _ in range(2))
    assert first[0] == second[0]
    assert [(p.total, p.accepted, p.tokens, p.trained) for p in first[1]] == [
        (p.total, p.accepted, p.tokens, p.trained) for p in second[1]
    ]


def test_a_missing_file_stops_the_check(template: ChatTemplate) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such"):
        run(template, rows(3), heldout="none.jsonl")


def test_every_rule_says_why_and_how_to_mend_it() -> None:
    for code, rule in RULES.items():
        assert code[0] in "DRM"
        assert len(code) == 4
        assert rule.why.endswith((".", "'"))
        assert len(rule.fix) > 10
        assert rule.title == rule.title.strip()


def test_the_page_about_the_rules_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "checks.md"
    assert page.read_text(encoding="utf-8") == render_rules(), "run `make docs`"


def test_places_are_remembered_to_the_letter() -> None:
    names = [
        "a.jsonl:1",
        "b:2.jsonl:17",
        "a.parquet:row 5",
        "prompts",
        "hf://datasets/a/b@1/x.csv:9",
        "a.jsonl:0012x",
        "",
    ]
    places = Places()
    for name in names:
        places.append(name)
    assert [places[n] for n in range(len(places))] == names


def test_only_the_first_places_are_kept_and_all_are_counted() -> None:
    findings = Findings()
    for number in range(50):
        findings.add("D010", f"a:{number}", "equals a:0")
    (finding,) = findings.all()
    assert (finding.count, len(finding.places), findings.counts()["warning"]) == (50, 20, 50)


def test_the_training_takes_just_the_rows_that_the_check_accepts(template: ChatTemplate) -> None:
    pick = random.Random(0)
    bad: list[Row | str] = [row for code, (row, _) in DEFECTS.items() if code in ("D001", "D003", "D004")]
    long: Row = {"instruction": "amber", "output": " ".join(WORDS * 2)}
    for case in range(12):
        lines: list[Row | str] = [*rows(30, seed=case)]
        for extra in pick.sample([*bad, long, *rows(3)], case % 4):
            lines.insert(pick.randrange(len(lines)), extra)
        _, parts = run(template, lines, too_long="drop")
        section = DataSection(path="train.jsonl", heldout="heldout.jsonl", max_length=120, too_long="drop")
        refused = parts[0].rejected.keys() - {"D101"}
        try:
            dataset = load_dataset(section, template)
        except DataError as error:
            assert refused
            assert str(error).count("train.jsonl:") == sum(parts[0].rejected[code] for code in refused)
        else:
            assert not refused
            assert (len(dataset.train), dataset.train.dropped) == (parts[0].accepted, parts[0].rejected["D101"])
            assert sum(len(row.ids) for row in dataset.train) == parts[0].tokens
