"""Pushed to a Hub and pulled from it again, through huggingface_hub and a small server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from finetune.errors import AdapterError
from finetune.recipe import BaseSection
from finetune.store.folders import CARD, CONFIG, WEIGHTS, Source, find_in_store
from finetune.store.hub import pull_adapter, push_adapter
from finetune.store.readme import render_readme
from tests.store.hub_server import SmallHub, small_hub


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    with small_hub() as server:
        yield server


def measure(store: Path) -> None:
    """Numbers as an evaluation puts them into the card."""
    path = store / "shop" / CARD
    metrics = {
        "perplexity.heldout": {"value": 1.5, "low": 1.25, "high": 1.75},
        "prompts.pass_rate": {"value": 0.9, "low": 0.8, "high": 0.95},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": metrics}))


def test_what_is_pushed_comes_back_the_same_at_its_commit(hub: SmallHub, store: Path) -> None:
    measure(store)
    done = push_adapter("shop", "me/shop", store, endpoint=hub.endpoint)
    commit, files = hub.repos["me/shop"][-1]
    assert (done.commit, done.url) == (commit, f"{hub.endpoint}/me/shop")
    assert done.left_out == ("recipe.yaml",)  # it names the folder of the base on this machine
    assert set(files) == {WEIGHTS, CONFIG, CARD, "README.md", "log.jsonl", "loss.png"}
    assert not any(str(store.parent).encode() in data or b"random-llama/" in data for data in files.values())
    back = pull_adapter("me/shop", name="back", store=store, endpoint=hub.endpoint)
    assert back.card.source == Source(kind="hub", place="me/shop", revision=commit)
    assert (back.folder / WEIGHTS).read_bytes() == (store / "shop" / WEIGHTS).read_bytes()
    before = find_in_store("shop", store).card
    changed = {"name", "source", "files"}
    assert back.card.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    assert not list(back.folder.glob(".*"))


def test_the_hub_reads_the_metrics(hub: SmallHub, store: Path) -> None:
    measure(store)
    push_adapter("shop", "me/shop", store, endpoint=hub.endpoint)
    card = ModelCard(hub.repos["me/shop"][-1][1]["README.md"].decode())
    assert card.data.base_model == "random-llama"
    assert card.data.library_name == "peft"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert results == {"perplexity": 1.5, "accuracy": 0.9}
    assert "1.25 to 1.75" in str((card.data.eval_results or ())[0].metric_name)


def test_a_revision_is_a_commit_though_the_branch_moves_on(hub: SmallHub, store: Path) -> None:
    first = push_adapter("shop", "me/shop", store, endpoint=hub.endpoint).commit
    path = store / "shop" / CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), "system": "Be long."}))
    second = push_adapter("shop", "me/shop", store, endpoint=hub.endpoint).commit
    assert first != second
    old = pull_adapter("me/shop", first, name="old", store=store, endpoint=hub.endpoint)
    new = pull_adapter("me/shop", "main", name="new", store=store, endpoint=hub.endpoint)
    assert (old.card.system, new.card.system) == ("Be brief.", "Be long.")
    assert old.card.source is not None and new.card.source is not None
    assert (old.card.source.revision, new.card.source.revision) == (first, second)
    assert not any("/resolve/main/" in request for request in hub.requests)


def test_an_adapter_of_peft_is_imported(hub: SmallHub, foreign: Path, store: Path, model_folder: Path) -> None:
    commit = hub.commit("them/helper", {name: (foreign / name).read_bytes() for name in (WEIGHTS, CONFIG)})
    base = BaseSection(model=str(model_folder), quantization="none")
    found = pull_adapter("them/helper", base=base, store=store, endpoint=hub.endpoint)
    assert found.name == "helper"
    assert not found.card.base.verified
    assert found.card.source == Source(kind="hub", place="them/helper", revision=commit)


def test_what_cannot_be_pulled_says_why_and_leaves_nothing(hub: SmallHub, store: Path) -> None:
    files = {path.name: path.read_bytes() for path in (store / "shop").iterdir()}
    hub.commit("me/empty", {"README.md": b"hello"})
    hub.commit("me/damaged", {**files, WEIGHTS: files[WEIGHTS][:-4] + b"\0\0\0\0"})
    hub.commit("me/pickle", {CONFIG: files[CONFIG], "adapter_model.bin": b"\x80\x02"})
    hub.commit("me/cut", {**files, WEIGHTS: files[WEIGHTS][:-4], CARD: b'{"name": 1}'})
    before = sorted(path.name for path in store.iterdir())
    for repo, revision, cause in [
        ("me/nothing", None, "there is no such repository"),
        ("me/empty", "v9", "it has no such revision"),
        ("me/empty", None, "holds no adapter: no adapter_model.safetensors"),
        ("me/damaged", None, "adapter_model.safetensors is not what its card says"),
        ("me/pickle", None, "holds no adapter"),
        ("me/cut", None, "cannot be read"),
        ("me/shop", None, "is there already"),
        ("me/..", None, "no adapter name"),
    ]:
        with pytest.raises(AdapterError, match=cause):
            pull_adapter(repo, revision, store=store, endpoint=hub.endpoint)
    assert sorted(path.name for path in store.iterdir()) == before


def test_a_hub_that_is_not_there(store: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be reached"):
        push_adapter("shop", "me/shop", store, endpoint="http://127.0.0.1:9")


def test_no_text_of_a_card_breaks_out_of_the_metadata(store: Path) -> None:
    card = find_in_store("shop", store).card
    nasty = 'x"\n---\nlicense: mit'
    base = card.base.model_copy(update={"model": nasty, "licence": nasty})
    data = ModelCard(render_readme(card.model_copy(update={"base": base}))).data
    assert (data.base_model, data.license) == (nasty, nasty)
