"""A model that lies on the disk in 4 bits, as `merge --into 4bit` writes it, as the base of other adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from finetune.cli.app import app
from finetune.errors import AdapterError, ModelError
from finetune.export.merge import MergeOptions, merge
from finetune.model.base import linear4bit_layers, load_base
from finetune.model.lora import load_adapter
from finetune.recipe import BaseSection
from finetune.serving.choice import choose
from finetune.store.folders import StoredAdapter
from tests.export.adapters import logits, store_adapter
from tests.export.test_merge import load_plain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, stored: StoredAdapter, prompts: Path) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "four"
    merge(stored, folder, MergeOptions(into="4bit", force=True, dtype="float32", prompts=prompts))
    return folder


def test_it_is_not_quantised_again(four: Path) -> None:
    wrong = BaseSection(model=str(four), quantization="nf4", dtype="float32")
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes\); write `quantization: none`"):
        load_base(wrong, CPU)
    base = load_base(wrong.model_copy(update={"quantization": "none"}), CPU)
    assert len(list(linear4bit_layers(base.model))) == 14


def test_without_a_recipe_it_is_loaded_as_it_is_stored(four: Path, model_folder: Path, tmp_path: Path) -> None:
    assert choose((), str(four), tmp_path).base.quantization == "none"
    assert choose((), str(model_folder), tmp_path).base.quantization == "nf4"
    said = CliRunner().invoke(app, ["generate", "--base", str(four), "--max-new-tokens", "3", "hello"])
    assert said.exit_code == 0, said.output


def test_adapters_over_it_are_merged_into_what_it_stands_for(four: Path, tmp_path: Path) -> None:
    adapter = store_adapter(tmp_path / "over", four, quantization="none")
    with pytest.raises(AdapterError, match="no original to merge into; merge --into dequantised"):
        merge(adapter, tmp_path / "out", MergeOptions(into="original", measure=False))
    receipt = merge(adapter, tmp_path / "out", MergeOptions(dtype="float32", measure=False))
    assert receipt.into == "dequantised"
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    base = load_base(BaseSection(model=str(four), quantization="none", dtype="float32"), CPU)
    before = logits(base.model)
    load_adapter(base, adapter.folder)
    after = logits(base.model)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(logits(load_plain(tmp_path / "out")), after, rtol=1e-4, atol=1e-4)
