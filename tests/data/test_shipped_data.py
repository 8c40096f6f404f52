"""The shipped data sets are complete, disjoint, varied, checkable and reproducible."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import regex
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
SETS = ("pizza", "cheerful", "grumpy")
MINIMUM = {"pizza": (2200, 260, 220), "cheerful": (700, 70, 60), "grumpy": (700, 70, 60), "general": (700, 180, 0)}
_PIZZA_KINDS = (
    "order multi-order change pickup delivery price price-pair price-sizes menu ingredients have hours "
    "unavailable off-topic smalltalk order-sloppy multi-order-sloppy price-sloppy menu-sloppy change-sloppy"
)
_TONE_KINDS = "order multi-order price menu smalltalk"
KINDS = {"pizza": _PIZZA_KINDS.split(), "cheerful": _TONE_KINDS.split(), "grumpy": _TONE_KINDS.split()}
_REPLIES = (
    "Sure, which restaurant?|Your order is confirmed.|What time would you like?|I can help with that.|"
    "Sorry, I couldn't find that.|Which city are you in?|What kind of food do you like?|"
    "Your reservation has been made. Is there anything else I can help with?|How many people will be dining?|"
    "I found 10 restaurants. How about Golden Lotus in San Jose?|"
    "There is a flight at 7 am for $156. Would you like to book it?|Where will you be leaving from?|"
    "Please confirm: a table for two at 7 pm today.|"
    "The weather will be 70 degrees with a 20 percent chance of rain.|Is there anything else?|Thank you, goodbye.|"
    "Have a great day!|I am sorry, I do not understand.|Could you say that again?|Yes.|No.|Okay, got it.|"
    "Sure, what size would you like?|That will be $12.|Your total is $15.|"
    "We have many options. What would you like?|One large pizza coming up.|I cannot help with that, sorry.|"
    "Sorry, we do not have that.|Would you like pickup or delivery?|Your pizza is on the way.|"
)
GENERIC = _REPLIES.split("|")  # the last one is empty
Row = dict[str, Any]


@cache
def rows(name: str, part: str) -> list[Row]:
    """Return the rows of one JSONL file."""
    with (DATA / name / f"{part}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@cache
def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file."""
    return YAML(typ="safe").load(path)


def prompts(name: str) -> list[Row]:
    """Return the prompts of a set."""
    return list(load_yaml(DATA / name / "prompts.yaml")["prompts"])


def menu() -> Row:
    """Return the menu."""
    return dict(load_yaml(DATA / "pizza" / "menu.yaml"))


def conversations(part: str) -> list[list[dict[str, str]]]:
    """Return the messages of the general conversations."""
    return [row["messages"] for row in rows("general", part)]


def all_rows(name: str) -> list[Row]:
    """Return the training and the held-out rows of a set."""
    return rows(name, "train") + rows(name, "heldout")


def passes(check: Row, reply: str, stopped: bool = True) -> bool:
    """Apply one check to a reply; written apart from the toolkit on purpose."""
    fold = str.lower if check.get("ignore_case") else str
    (kind, value), *_ = ((k, v) for k, v in check.items() if k != "ignore_case")
    values = value if isinstance(value, list) else [value]
    if kind == "contains":
        return all(fold(text) in fold(reply) for text in values)
    if kind == "not_contains":
        return not any(fold(text) in fold(reply) for text in values)
    if kind == "equals":
        return bool(fold(value) == fold(reply))
    if kind == "regex":
        return regex.search(value, reply, regex.IGNORECASE if check.get("ignore_case") else 0) is not None
    assert kind == "stops", f"unknown check {kind}"
    return bool(value) == stopped


@pytest.mark.parametrize("name", [*SETS, "general"])
def test_counts(name: str) -> None:
    """Every part has its minimum number of rows."""
    parts = [rows(name, "train"), rows(name, "heldout"), prompts(name) if name in SETS else []]
    assert all(len(part) >= least for part, least in zip(parts, MINIMUM[name], strict=True))


@pytest.mark.parametrize("name", SETS)
def test_kinds_and_fields(name: str) -> None:
    """All kinds occur in training, held-out rows and prompts; fields stand in their order."""
    for part in ("train", "heldout"):
        assert {row["kind"] for row in rows(name, part)} == set(KINDS[name])
    for row in all_rows(name):
        assert list(row) == ["instruction", "output", "kind", "combination"]
        assert all(value and value.strip() == value for value in row.values())
    assert {re.sub(r"-\d+$", "", prompt["id"]) for prompt in prompts(name)} == set(KINDS[name])


@pytest.mark.parametrize("name", SETS)
def test_training_and_held_out_are_disjoint(name: str, regenerated: Any) -> None:
    """No instruction occurs twice anywhere, and no combination on both sides."""
    train, held = rows(name, "train"), rows(name, "heldout")
    asked = [row["instruction"].lower() for row in train + held] + [p["prompt"].lower() for p in prompts(name)]
    assert len(set(asked)) == len(asked)
    assert not {row["combination"] for row in train} & {row["combination"] for row in held}
    # The prompts file has no combinations; the generator knows them.
    made = regenerated[name].prompts
    assert [row.instruction for row in made] == [prompt["prompt"] for prompt in prompts(name)]
    assert not {row["combination"] for row in train} & {row.combination for row in made}


def menu_words() -> set[str]:
    """Return the words of everything on the menu, in singular and plural."""
    card = menu()
    names = [*card["pizzas"], *card["toppings"], *card["drinks"], *card["sides"], *card["sizes"], *card["crusts"]]
    names += [name + "s" for name in (*card["drinks"], *card["sides"])]
    names += [ingredient for pizza in card["pizzas"].values() for ingredient in pizza["ingredients"]]
    names.append("boxes portions one two three four five six pizza pizzas crust extra no with and delivery")
    return {word for name in names for word in re.findall(r"\w+", name.lower())}


def skeleton(row: Row, slots: set[str]) -> str:
    """Return the reply without menu words, numbers, prices and the words of its combination."""
    slots = slots | set(re.findall(r"\w+", row["combination"].lower()))
    words = re.findall(r"[\w']+|[.!?]", row["output"].lower())
    return re.sub(r"(_ )+", "_ ", " ".join("_" if word in slots or word[0].isdigit() else word for word in words))


@pytest.mark.parametrize("name", SETS)
def test_skeleton_share(name: str) -> None:
    """No sentence skeleton is shared by many replies, and the README states the figure."""
    slots = menu_words()
    counts = Counter(skeleton(row, slots) for row in rows(name, "train"))
    share = counts.most_common(1)[0][1] / counts.total()
    assert share <= 0.05
    stated = re.search(r"with one skeleton: ([\d.]+)%", (DATA / name / "README.md").read_text(encoding="utf-8"))
    assert stated and float(stated[1]) == pytest.approx(100 * share, abs=0.006)


def test_every_price_is_trained() -> None:
    """Each price of the menu is stated in at least eight training replies."""
    card, replies = menu(), [row["output"].lower() for row in rows("pizza", "train")]
    prices = {f"{s} {n} pizza": p for n, pizza in card["pizzas"].items() for s, p in pizza["prices"].items()}
    prices |= card["drinks"] | card["sides"] | {f"extra {name}": price for name, price in card["toppings"].items()}
    prices["delivery"] = card["delivery_fee"]
    for name, price in prices.items():
        fact = re.compile(rf"\b{name.lower()}\b[^$]*\${price}(?!\d)")
        assert sum(bool(fact.search(reply)) for reply in replies) >= 8, name


def test_prices_are_right() -> None:
    """No reply states a wrong price for a pizza of a named size."""
    for row in all_rows("pizza"):
        for name, pizza in menu()["pizzas"].items():
            for size, price in pizza["prices"].items():
                for stated in re.findall(rf"{size} {name} pizza [^$]*\$(\d+)", row["output"]):
                    assert int(stated) == price, row


def test_sloppy_lexicon_is_trained(regenerated: Any) -> None:
    """One request in five is typed carelessly, and every sloppy form occurs at least eight times in training."""
    careless = [row["instruction"] for row in rows("pizza", "train") if row["kind"].endswith("-sloppy")]
    assert 0.15 < len(careless) / len(rows("pizza", "train")) < 0.25
    typed = " ".join(f" {text} " for text in careless)
    for forms in regenerated["lexicon"].values():
        for form in forms:
            assert len(re.findall(rf"(?<!\S){re.escape(form)}s?(?![\w-])", typed)) >= 8, form


@pytest.mark.parametrize("name", SETS)
def test_reference_replies_pass_their_checks(name: str, regenerated: Any) -> None:
    """The reply that belongs to a prompt passes all its checks, as read back from prompts.yaml."""
    for row, prompt in zip(regenerated[name].prompts, prompts(name), strict=True):
        for check in prompt["checks"]:
            assert passes(check, row.output), (prompt["id"], check, row.output)


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_well_formed(name: str) -> None:
    """Ids are unique, every prompt has a content check and `stops`, and kinds of checks are known."""
    known = {"contains", "not_contains", "equals", "regex", "stops", "ignore_case"}
    assert len({prompt["id"] for prompt in prompts(name)}) == len(prompts(name))
    for prompt in prompts(name):
        assert list(prompt) == ["id", "prompt", "tags", "checks"]
        assert all(set(check) <= known for check in prompt["checks"])
        assert any(set(check) & {"contains", "regex", "equals"} for check in prompt["checks"])
        assert {"stops": True} in prompt["checks"]
        assert not all(passes(check, "anything", stopped=False) for check in prompt["checks"])


@pytest.mark.parametrize("name", SETS)
def test_generic_replies_fail(name: str) -> None:
    """Replies of another system, and of a shop that did not listen, pass at most 3% of all pairs."""
    passed = [(p["id"], r) for p in prompts(name) for r in GENERIC if all(passes(c, r) for c in p["checks"])]
    assert len(passed) <= 0.03 * len(prompts(name)) * len(GENERIC), passed


def test_replies_of_other_prompts_fail(regenerated: Any) -> None:
    """Reference replies of other prompts rarely pass, so the checks look at the content."""
    asked, replies = prompts("pizza"), [row.output for row in regenerated["pizza"].prompts]
    pairs = [(i, j) for i in range(len(asked)) for j in range(i % 11, len(asked), 11) if i != j]
    passed = sum(all(passes(check, replies[j]) for check in asked[i]["checks"]) for i, j in pairs)
    assert passed <= 0.03 * len(pairs)


@pytest.mark.parametrize(("name", "other"), [("cheerful", "grumpy"), ("grumpy", "cheerful")])
def test_tones(name: str, other: str) -> None:
    """One pattern recognises the tone in every reply of its set, and in no reply of the other sets."""
    patterns = {next(check["regex"] for check in prompt["checks"] if "regex" in check) for prompt in prompts(name)}
    assert len(patterns) == 1
    tone = regex.compile(patterns.pop())
    assert all(tone.search(row["output"]) for row in all_rows(name))
    assert not any(tone.search(row["output"]) for row in all_rows("pizza") + all_rows(other))
    with_items = sum(any("contains" in check for check in prompt["checks"]) for prompt in prompts(name))
    assert 0 < with_items <= len(prompts(name)) / 2


def test_confirmed_orders_contain_their_items() -> None:
    """Plain orders of all sets repeat each item of the combination in its canonical phrase."""
    for name in SETS:
        for row in all_rows(name):
            if row["kind"].removesuffix("-sloppy") in ("order", "multi-order"):
                assert all(item.lower() in row["output"].lower() for item in row["combination"].split("; ")), row


def test_general_conversations_are_well_formed() -> None:
    """Two to eight turns, from the user first to the assistant last, never about pizza."""
    for part in ("train", "heldout"):
        talks = conversations(part)
        assert len({json.dumps(talk) for talk in talks}) == len(talks)
        for talk in talks:
            assert 2 <= len(talk) <= 8
            assert [m["role"] for m in talk] == ["user", "assistant"] * (len(talk) // 2)
            assert all(re.match(r"[A-Z0-9$]", m["content"]) and "{" not in m["content"] for m in talk)
            assert "pizza" not in json.dumps(talk).lower()


def test_general_templates_are_disjoint(regenerated: Any) -> None:
    """No sentence of the held-out conversations, freed of slot values, occurs in training."""
    values = sorted({v for pool in regenerated["values"].values() for v in pool}, key=len, reverse=True)
    slot = re.compile(r"(?<![\w$])(?:" + "|".join(re.escape(value) for value in values) + r")(?!\w)", re.IGNORECASE)

    def templates(part: str) -> set[str]:
        """Return the templates of all sentences of a part."""
        text = "\n".join(m["content"] for talk in conversations(part) for m in talk)
        text = re.sub(r"\ban _", "a _", slot.sub("_", text.replace("Dr.", "Dr")))
        return {sentence.strip().lower() for sentence in re.split(r"(?<=[.?!])\s+|\n", text)}

    assert not templates("train") & templates("heldout")


@pytest.mark.parametrize("name", [*SETS, "general"])
def test_readme_hashes(name: str) -> None:
    """The README lists every file with its sha256, the licence and the origin."""
    text = (DATA / name / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| (\S+) \| `([0-9a-f]{64})` \|", text))
    files = {path.name: path for path in (DATA / name).iterdir() if path.name != "README.md"}
    assert listed == {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files.items()}
    assert "Apache-2.0" in text and "tools/make_data.py" in text


def test_regeneration_is_byte_identical(tmp_path: Path) -> None:
    """Running the generator again writes the shipped bytes."""
    command = [sys.executable, str(ROOT / "tools" / "make_data.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    shipped = {path.relative_to(DATA): path.read_bytes() for name in MINIMUM for path in (DATA / name).iterdir()}
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == shipped


@pytest.fixture(scope="module")
def regenerated() -> dict[str, Any]:
    """Return the rows as the generator makes them, with the checks and combinations of the prompts."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        maker, rows_of, tones = map(import_module, ("make_data", "data_rows", "data_tones"))
        frames, items, values = map(import_module, ("data_tone_frames", "data_items", "data_general_values"))
    finally:
        sys.path.remove(str(ROOT / "tools"))
    cheerful, grumpy = tones.Tone(frames.CHEERFUL, frames.GRUMPY), tones.Tone(frames.GRUMPY, frames.CHEERFUL)
    plans = {"pizza": maker.pizza_plan(), "cheerful": tones.plan(cheerful), "grumpy": tones.plan(grumpy)}
    splits = {name: rows_of.build(plan, name) for name, plan in plans.items()}
    return splits | {"lexicon": items.SLOPPY, "values": values.VALUES}
