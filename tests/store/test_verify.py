"""Verification finds what is not as the card says, and whether an adapter does anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finetune.recipe import BaseSection
from finetune.store.folders import CARD, WEIGHTS
from finetune.store.imports import import_adapter
from finetune.store.verify import verify_adapter
from tests.conftest import save_model
from tests.store.adapters import change_config, load_model, make, set_tensor, zeros


def states(store: Path, name: str = "shop", **options: object) -> dict[str, str]:
    return {check.what: check.state for check in verify_adapter(name, store, **options)}  # type: ignore[arg-type]


def test_a_whole_adapter_is_ok_in_everything(store: Path) -> None:
    found = states(store, full=True)
    assert set(found.values()) == {"ok"}
    assert set(found) == {
        WEIGHTS, "adapter_config.json", "recipe.yaml", "log.jsonl", "loss.png", "rows.jsonl", "base",
        "base, every byte", "weights", "effect",
    }  # fmt: skip
    said = {check.what: check.text for check in verify_adapter("shop", store)}
    assert "the likeliest token at" in said["effect"]


def test_what_was_changed_is_found(store: Path) -> None:
    (store / "shop/recipe.yaml").write_text((store / "shop/recipe.yaml").read_text() + "\n")
    set_tensor("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", lambda t: t * 1.01)(store / "shop")
    found = states(store)
    assert {what for what, state in found.items() if state == "wrong"} == {"recipe.yaml", WEIGHTS}


def test_another_base_is_found_also_where_only_its_slices_are_the_same(
    store: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_folder: Path
) -> None:
    save_model(tmp_path / "other", tokenizer, seed=5)
    found = states(store, base=BaseSection(model=str(tmp_path / "other"), quantization="none"), full=True)
    assert {what for what, state in found.items() if state == "wrong"} == {"base", "base, every byte"}


def test_an_adapter_without_effect_and_one_that_is_broken(store: Path) -> None:
    zeros("lora_B")(store / "shop")
    assert states(store)["weights"] == "wrong"
    change_config(store / "shop", r=9)
    assert states(store)["weights"] == "wrong"


def test_what_cannot_be_known_is_said(store: Path, foreign: Path, model_folder: Path) -> None:
    import_adapter(foreign, base=BaseSection(model=str(model_folder), quantization="none"), store=store)
    checks = {check.what: check for check in verify_adapter("helper", store, full=True)}
    assert {what: check.state for what, check in checks.items() if check.state != "ok"} == {
        "data": "unknown",
        "base, every byte": "unknown",
    }
    assert "not verified" in checks["base"].text
    shutil.rmtree(store / "helper")
    gone = (store / "shop/adapter_config.json").read_text().replace(str(model_folder), "/not/here")
    (store / "shop/adapter_config.json").write_text(gone)
    text = (store / "shop" / CARD).read_text().replace('"random-llama"', '"./random-llama"')
    (store / "shop" / CARD).write_text(text)
    assert states(store)["base"] == "unknown"


def test_branches_beyond_the_dtype_are_not_finite(store: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    set_tensor(name, lambda t: torch.full_like(t, 3e38))(store / "shop")
    found = {check.what: check for check in verify_adapter("shop", store)}
    assert (found["effect"].state, found["effect"].text) == ("wrong", "its logits are not finite")


@pytest.mark.parametrize("name", ["dora", "head"])
def test_a_kind_that_peft_alone_runs_is_verified_too(
    name: str, store: Path, tmp_path: Path, model_folder: Path
) -> None:
    settings = {"dora": {"use_dora": True}, "head": {"modules_to_save": ["lm_head"]}}[name]
    make(load_model(model_folder), tmp_path / name, **settings)
    import_adapter(tmp_path / name, base=BaseSection(model=str(model_folder), quantization="none"), store=store)
    checks = {check.what: check for check in verify_adapter(name, store)}
    assert "PEFT runs it" in checks["weights"].text
    assert checks["effect"].state == "ok"
