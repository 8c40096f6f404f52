"""The token cache: rows come back as they were, and nothing that changes them is ever served from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from finetune.data import tokens
from finetune.data.dataset import load_rows
from finetune.data.encoding import Encoded, encode
from finetune.data.examples import Example, Source, read_examples
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from finetune.data.tokens import TOKENS, TokenWriter, cached, find_entry, writing
from finetune.errors import DataError
from tests.data.test_template import CHATML, tokenizer_of

ROWS = [{"instruction": f"Give me {n} pizzas", "output": f"You get {n}."} for n in range(30)]
TURNS = "[{'role': 'user', 'content': row['instruction']}, {'role': 'assistant', 'content': 'X'}]"
CUSTOM = f"def turns(row):\n    return {TURNS}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    save(ROWS)
    return tmp_path


def save(rows: list[dict[str, str]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def template(chat_template: str = CHATML) -> ChatTemplate:
    return load_template(tokenizer_of(chat_template, "<|im_end|>"), "test")


SOURCE = Source("train", "rows.jsonl", "instruction")


def entries() -> set[str]:
    return {path.name for path in tokens.cache_folder("tokens").iterdir()}


def test_rows_come_back_as_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    made = load_template(tokenizer, "test")
    rows = load_rows(SOURCE, made, 512)
    again = load_rows(SOURCE, made, 512)
    expected = [encode(e, made) for e in read_examples(SOURCE) if isinstance(e, Example)]
    assert list(rows) == list(again) == expected
    assert (rows[3], rows[-1], rows[2:4]) == (expected[3], expected[-1], expected[2:4])
    assert rows.tokens.lengths.tolist() == [len(row.ids) for row in expected]
    assert rows.tokens.trained.tolist() == [sum(row.loss_mask[1:]) for row in expected]
    with pytest.raises(IndexError):
        rows.tokens[30]


def test_many_batches_are_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_PER_BATCH", 4)
    rows = [Encoded(list(range(n)), [n % 2] * n, f"rows:{n}", n) for n in range(11)]
    writer = TokenWriter(tmp_path)
    for row in rows:
        writer.append(row)
    writer.close()
    assert list(tokens.Tokens(tmp_path)) == rows
    assert list(tokens.Tokens(tmp_path))[::-1] == [tokens.Tokens(tmp_path)[n] for n in range(10, -1, -1)]


def edit_row() -> None:
    save([{**ROWS[0], "output": "You get 9."}, *ROWS[1:]])


def edit_keeping_size_and_time() -> None:
    before = Path("rows.jsonl").stat()
    save([{**ROWS[0], "output": "You got 0."}, *ROWS[1:]])
    assert Path("rows.jsonl").stat().st_size == before.st_size
    os.utime("rows.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))


PARTS: dict[str, Callable[[], tuple[Source, ChatTemplate]]] = {
    "a row edited": lambda: (edit_row(), (SOURCE, template()))[1],
    "edited, same size and time": lambda: (edit_keeping_size_and_time(), (SOURCE, template()))[1],
    "a row added": lambda: (save([*ROWS, ROWS[0]]), (SOURCE, template()))[1],
    "rows in another order": lambda: (save(ROWS[::-1]), (SOURCE, template()))[1],
    "another format": lambda: (replace(SOURCE, format="alpaca"), template()),
    "other columns": lambda: (
        replace(SOURCE, columns=(("output", "instruction"), ("instruction", "output"))),
        template(),
    ),
    "another system prompt": lambda: (replace(SOURCE, system="Be short."), template()),
    "the other side of a split": lambda: (replace(SOURCE, heldout_share=0.3, heldout=True), template()),
    "another share": lambda: (replace(SOURCE, heldout_share=0.3), template()),
    "another chat template": lambda: (SOURCE, template(CHATML.replace("<|im_end|>\n", "<|im_end|>"))),
    "another vocabulary": lambda: (SOURCE, with_another_word()),
    "another normaliser": lambda: (SOURCE, with_normaliser()),
    "another end token": lambda: (SOURCE, load_template(tokenizer_of(CHATML, "</s>"), "test")),
}


def with_another_word() -> ChatTemplate:
    made = template()
    made.tokenizer.add_tokens(["pizzas"])
    return made


def with_normaliser() -> ChatTemplate:
    tokenizer = tokenizer_of(CHATML, "<|im_end|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return load_template(tokenizer, "test")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_that_changes_the_tokens_makes_them_anew(part: str) -> None:
    first = list(load_rows(SOURCE, template(), 512))
    assert cached(find_entry(SOURCE, template())) is not None
    source, changed = PARTS[part]()
    assert cached(find_entry(source, changed)) is None, "served stale"
    expected = [encode(e, changed) for e in read_examples(source) if isinstance(e, Example)]
    again = list(load_rows(source, changed, 512))
    assert again == expected
    if part not in ("another format", "another end token"):  # these give the same tokens here, but need not
        assert again != first


def test_a_file_added_to_a_folder_makes_them_anew() -> None:
    Path("data").mkdir()
    Path("data/a.jsonl").write_text(Path("rows.jsonl").read_text())
    source = replace(SOURCE, path="data")
    assert len(load_rows(source, template(), 512)) == 30
    Path("data/b.jsonl").write_text(Path("rows.jsonl").read_text())
    assert len(load_rows(source, template(), 512)) == 60
    Path("data/b.jsonl").rename("data/0.jsonl")
    assert load_rows(source, template(), 512)[0].where == "data/0.jsonl:1"


@pytest.mark.parametrize("name", ["transformers", "tokenizers"])
def test_other_versions_of_the_libraries_make_them_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_rows(SOURCE, template(), 512)
    real = tokens.version
    monkeypatch.setattr(tokens, "version", lambda asked: "0.0" if asked == name else real(asked))
    assert cached(find_entry(SOURCE, template())) is None


def test_other_code_of_ours_makes_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    load_rows(SOURCE, template(), 512)
    before = tokens.code_sha256(Path(tokens.__file__).parent)
    monkeypatch.setattr(tokens, "code_sha256", lambda _: before[::-1])
    assert cached(find_entry(SOURCE, template())) is None


def test_an_edited_custom_format_makes_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.data.formats import _custom

    Path("cached_format.py").write_text(CUSTOM)
    source = replace(SOURCE, format="cached_format:turns")
    load_rows(source, template(), 512)
    Path("cached_format.py").write_text(CUSTOM.replace("'X'", "'Y'"))
    sys.modules.pop("cached_format")
    _custom.cache_clear()  # as in a new process
    assert cached(find_entry(source, template())) is None
    sys.modules.pop("cached_format")


def test_the_longest_length_is_no_part_of_the_key() -> None:
    load_rows(SOURCE, template(), 512)
    load_rows(SOURCE, template(), 256, drop_long=True)
    assert len(entries()) == 1


def test_rows_that_were_refused_leave_nothing_behind() -> None:
    save([*ROWS, {"instruction": "a"}])
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows\.jsonl:31: no key 'output'"):
            load_rows(SOURCE, template(), 512)
    assert entries() == set()


def test_a_file_that_is_edited_while_it_is_read_is_refused() -> None:
    entry = find_entry(SOURCE, template())
    with pytest.raises(DataError, match=r"rows\.jsonl: was changed while it was being read"), writing(entry) as writer:
        writer.append(Encoded([1], [1], "rows:1", 1))
        edit_row()
    assert entries() == set()


def test_a_damaged_entry_is_made_anew() -> None:
    first = list(load_rows(SOURCE, template(), 512))
    file = tokens.cache_folder("tokens") / find_entry(SOURCE, template()).key / TOKENS
    for damaged in (file.read_bytes()[:-100], b"", b"no arrow"):
        file.write_bytes(damaged)
        assert cached(find_entry(SOURCE, template())) is None
        assert list(load_rows(SOURCE, template(), 512)) == first


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"file/cache/tokens: the cache .* cannot be written .*; set FINETUNE_CACHE"):
        load_rows(SOURCE, template(), 512)


def test_a_cache_that_grows_too_large_loses_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for number, system in enumerate(("a", "b", "c")):
        source = replace(SOURCE, system=system)
        load_rows(source, template(), 512)
        keys.append(find_entry(source, template()).key)
        os.utime(tokens.cache_folder("tokens") / keys[-1], (number, number))
    cached(find_entry(replace(SOURCE, system="a"), template()))  # used again
    size = (tokens.cache_folder("tokens") / keys[0] / TOKENS).stat().st_size
    monkeypatch.setattr(tokens, "MAX_CACHE_BYTES", 3 * size + size // 2)
    load_rows(SOURCE, template(), 512)
    left = entries()
    assert keys[1] not in left
    assert {keys[0], keys[2], find_entry(SOURCE, template()).key} <= left


def test_the_cache_is_where_the_user_s_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tokens.cache_folder("tokens") == tmp_path / "xdg" / "finetune" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tokens.cache_folder("tokens") == Path.home() / ".cache" / "finetune" / "tokens"
