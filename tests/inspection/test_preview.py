"""finetune show RECIPE: what the model will see, token by token."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from finetune.data.encoding import encode
from finetune.data.examples import Example, read_examples, training_sources
from finetune.errors import DataError
from finetune.inspection.preview import CONTINUED, preview
from finetune.model.tokenizer import load_chat_template
from finetune.recipe import BaseSection, DataSection, Recipe
from finetune.terminal.preview import previews_html, show_previews, visible

ROWS = [
    {"instruction": "Two large 🍕 pizzas\nplease", "output": "Your order\tis <b>one</b> & done."},
    {"instruction": "<script>alert(1)</script><|end|>", "output": "Hello\u200b"},
    {"instruction": "Anything else?", "output": "No."},
]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> Recipe:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = DataSection(path=str(path), heldout="elsewhere.jsonl")
    return Recipe(name="pizza", base=BaseSection(model=str(model_folder)), data=data)


def test_tokens_are_those_of_the_training(recipe: Recipe) -> None:
    template = load_chat_template(recipe.base)
    examples = [row for row in read_examples(training_sources(recipe.data)[0]) if isinstance(row, Example)]
    for shown, example in zip(preview(recipe, 5), examples, strict=True):
        encoded = encode(example, template)
        assert [token.id for token in shown.tokens] == encoded.ids
        assert [int(token.trained) for token in shown.tokens] == encoded.loss_mask
        assert shown.where == example.where
        text = "".join(token.text for token in shown.tokens if token.text != CONTINUED)
        assert text == template.tokenizer.decode(encoded.ids)
        assert shown.trained == sum(encoded.loss_mask)


def test_control_tokens_are_the_template_s_own(recipe: Recipe) -> None:
    shown = preview(recipe, 2)[1]
    assert [t.text for t in shown.tokens if t.control] == [
        "<|begin|>",
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
        "<|end|>",
    ]
    assert "<|end|>" in "".join(t.text for t in shown.tokens if not t.control)


def test_a_character_of_several_tokens_stands_at_its_first(recipe: Recipe) -> None:
    texts = [token.text for token in preview(recipe, 1)[0].tokens]
    at = texts.index("🍕") if "🍕" in texts else texts.index(" 🍕")
    assert texts[at + 1 : at + 4].count(CONTINUED) >= 2


def test_the_page_shows_every_token_and_runs_nothing(recipe: Recipe) -> None:
    page = previews_html("pizza", preview(recipe, 3))
    assert "<script" not in page

    class Tokens(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, str]] = []
            self.inside = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            self.inside = str(given["class"]) if tag == "span" and "title" in given else ""

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.found.append((self.inside, data))

        def handle_endtag(self, tag: str) -> None:
            self.inside = ""

    reader = Tokens()
    reader.feed(page)
    expected = [token for shown in preview(recipe, 3) for token in shown.tokens]
    assert [text for _, text in reader.found] == [visible(token.text) for token in expected]
    assert [("trained" in kind, "control" in kind) for kind, _ in reader.found] == [
        (t.trained, t.control) for t in expected
    ]


def test_the_terminal_shows_white_space_and_colours_what_is_trained(recipe: Recipe) -> None:
    out = io.StringIO()
    show_previews(Console(file=out, force_terminal=True, color_system="standard", width=200), preview(recipe, 2))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "Two large 🍕" in plain
    assert "pizzas⏎\nplease" in plain
    assert "order→is <b>one</b>" in plain.replace(" →", "→")
    assert "Hello<U+200B>" in plain
    assert f"{recipe.data.path}:1 · " in plain
    assert re.search(r"\x1b\[[0-9;]*32[0-9;]*m", out.getvalue())


def test_without_colours_trained_stretches_stand_in_brackets(recipe: Recipe) -> None:
    out = io.StringIO()
    show_previews(Console(file=out, width=200), preview(recipe, 3)[2:])
    assert "<|user|>Anything else?<|end|><|assistant|>⟦No.<|end|>⟧\n" in out.getvalue()


def test_a_row_that_is_no_example_is_named(recipe: Recipe) -> None:
    Path(recipe.data.path).write_text('{"instruction": "a"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no key 'output'"):
        preview(recipe, 1)
    Path(recipe.data.path).write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        preview(recipe, 1)
