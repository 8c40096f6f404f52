"""Names, folders and cards: what is found in a store, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import AdapterError
from finetune.files import sha256_file
from finetune.model.base import fingerprint_of, full_fingerprint
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe import BaseSection
from finetune.store.cards import base_section, portable_names
from finetune.store.folders import check_base, find_adapter, find_in_store, list_adapters
from finetune.store.places import check_name

BAD_NAMES = [
    "",
    ".",
    "..",
    "../shop",
    "/etc",
    "a/b",
    "a\\b",
    ".hidden",
    "-x",
    "a b",
    "a\0b",
    "a\nb",
    "ä",
    "x" * 65,
    "~",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_a_store(name: str, store: Path) -> None:
    with pytest.raises(AdapterError, match="is no adapter name"):
        check_name(name)
    with pytest.raises(AdapterError, match="is no adapter name"):
        find_in_store(name, store)


def test_a_link_is_followed_inside_of_the_store_alone(store: Path, trained: Path) -> None:
    (store / "alias").symlink_to(store / "shop")
    (store / "outside").symlink_to(trained / "shop")
    assert find_in_store("alias", store).card == find_in_store("shop", store).card
    with pytest.raises(AdapterError, match="is a link that leads out of"):
        find_in_store("outside", store)
    assert [adapter.name for adapter in list_adapters(store)] == ["alias", "shop"]


@pytest.mark.parametrize("file", ["card.json", "adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_a_link_to_outside_is_refused(file: str, store: Path, trained: Path) -> None:
    (store / "shop" / file).unlink()
    (store / "shop" / file).symlink_to(trained / "shop" / file)
    with pytest.raises(AdapterError, match="is a link that leads out of"):
        find_in_store("shop", store)


def test_files_of_the_hubs_cache_are_links_to_their_repository(store: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "repo/snapshots/abc", tmp_path / "repo/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(store / "shop", blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert find_adapter(str(snapshot)).card == find_in_store("shop", store).card


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_a_card_says_where_an_adapter_comes_from_and_names_no_folder_of_this_machine(trained: Path) -> None:
    raw = json.loads((trained / "shop/card.json").read_text())
    filled = [key for key, value in raw.items() if value not in (None, {}, "")]
    assert set(filled) >= {
        "schema_version", "name", "base", "system", "method", "r", "alpha", "seed", "data", "recipe_sha256",
        "train_rows", "heldout_rows", "steps", "trained_tokens", "seconds", "peak_memory_bytes", "parameters", "loss",
        "versions", "created", "files",
    } - ({"seed"} if raw["seed"] == 0 else set())  # fmt: skip
    assert raw["seed"] == 0
    assert set(raw["base"]) == {
        "model", "revision", "quantization", "fingerprint", "verified", "weights_sha256", "licence"
    }  # fmt: skip
    assert set(raw["base"]["fingerprint"]) == {"config", "tokenizer", "chat_template", "weights"}
    assert [text for text in texts(raw) if text.startswith(("/", "~")) or str(Path.home()) in text] == []
    assert raw["recipe_sha256"] == sha256_file(trained / "shop/recipe.yaml") == raw["files"]["recipe.yaml"]
    assert raw["data"] == {"rows.jsonl": sha256_file(trained.parent / "rows.jsonl")}


def test_two_files_of_one_name_stay_two() -> None:
    assert portable_names(["/a/x.jsonl", "/b/x.jsonl", "data/x.jsonl", "~/c/x.jsonl"]) == {
        "/a/x.jsonl": "x.jsonl",
        "/b/x.jsonl": "b/x.jsonl",
        "data/x.jsonl": "data/x.jsonl",
        "~/c/x.jsonl": "c/x.jsonl",
    }


def test_the_base_is_found_again_though_the_card_names_no_folder(trained: Path, model_folder: Path) -> None:
    adapter = find_in_store("shop", trained)
    assert adapter.card.base.model == model_folder.name
    assert base_section(adapter) == BaseSection(model=str(model_folder), quantization="none")


def test_a_moved_base_is_the_same_base(trained: Path, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "moved")
    section = BaseSection(model=str(tmp_path / "moved"))
    found = fingerprint_of(section, load_tokenizer(section))
    adapter = find_in_store("shop", trained)
    assert check_base(adapter, found, section.model) == ""
    assert full_fingerprint(section) == adapter.card.base.weights_sha256


PARTS = {"config": "layers", "tokenizer": "tokens", "chat_template": "conversations", "weights": "nonsense"}


@pytest.mark.parametrize("part", PARTS)
def test_another_base_is_refused_with_both_sides_named_and_force_says_what_it_gives_up(
    part: str, trained: Path
) -> None:
    adapter = find_in_store("shop", trained)
    found = {**adapter.card.base.fingerprint, part: "f" * 64}
    named = part.replace("_", " ")
    own = adapter.card.base.fingerprint[part][:12]
    with pytest.raises(
        AdapterError, match=rf"base random-llama \({named} {own}\), this is other \({named} ffffffffffff\)"
    ):
        check_base(adapter, found, "other")
    assert PARTS[part] in check_base(adapter, found, "other", force=True)
    with pytest.raises(AdapterError, match="unknown"):
        check_base(adapter, {}, "other")


def test_two_commits_are_two_bases(trained: Path) -> None:
    adapter = find_in_store("shop", trained)
    fingerprint = adapter.card.base.fingerprint
    assert check_base(adapter, fingerprint, "x", "b" * 40) == ""  # the card knows no commit
    base = adapter.card.base.model_copy(update={"revision": "a" * 40})
    pinned = type(adapter)(adapter.name, adapter.folder, adapter.card.model_copy(update={"base": base}))
    assert check_base(pinned, fingerprint, "x", "a" * 40) == check_base(pinned, fingerprint, "x", None) == ""
    with pytest.raises(AdapterError, match=r"revision aaaaaaaaaaaa\), this is x \(revision bbbbbbbbbbbb\); .* --force"):
        check_base(pinned, fingerprint, "x", "b" * 40)
    assert "only slices" in check_base(pinned, fingerprint, "x", "b" * 40, force=True)


def test_a_card_of_the_first_version_is_still_read() -> None:
    """The shipped ones have had their fields from the beginning; what came later has a default."""
    for adapter in list_adapters("adapters"):
        raw = json.loads((adapter.folder / "card.json").read_text())
        for key in ("files", "recipe_sha256", "source"):
            raw.pop(key, None)
        for key in ("verified", "weights_sha256", "licence"):
            raw["base"].pop(key, None)
        assert type(adapter.card).model_validate(raw).base.verified
