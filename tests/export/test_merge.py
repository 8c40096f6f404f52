"""Merged = adapter on its base: for every kind of adapter, from every source of weights, whole or not at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from finetune.errors import AdapterError, DataError, FinetuneError
from finetune.export.fidelity import answered, compare, look
from finetune.export.merge import MergeOptions, merge, prompts_of
from finetune.export.merged import Merged
from finetune.export.receipt import RECEIPT, Receipt
from finetune.export.sources import Tied
from finetune.export.subject import subject_of
from finetune.model.base import Base, load_base
from finetune.model.lora import load_adapter
from finetune.recipe import BaseSection
from finetune.store.folders import CARD, StoredAdapter, find_adapter
from tests.conftest import MakeBase
from tests.export.adapters import logits, store_adapter
from tests.store.adapters import change_config, load_model, make

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora and patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 3}},
    "dora": {"use_dora": True},
    "modules to save": {"modules_to_save": ["norm", "embed_tokens"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "output head": {"target_modules": ["lm_head", "v_proj"]},
    "every linear": {"target_modules": "all-linear"},
}


class StateDict:
    """A model's own weights as a source."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors = model.state_dict()

    def read(self, name: str) -> Tensor:
        return self.tensors[name]  # type: ignore[no-any-return]


def load_plain(folder: Path) -> Any:
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_merged_as_peft_itself_does_it(kind: str, model_folder: Path, tmp_path: Path) -> None:
    adapted = make(load_model(model_folder), tmp_path, **KINDS[kind])
    merged = Merged(AutoConfig.from_pretrained(model_folder), tmp_path)
    found = dict(merged.tensors(StateDict(load_model(model_folder))))
    want = adapted.merge_and_unload().state_dict()  # type: ignore[operator]
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in found)
    changed = {name for name, tensor in load_model(model_folder).state_dict().items() if (tensor != found[name]).any()}
    assert changed == set(merged.changed)


def test_a_changed_head_that_was_tied_gets_weights_of_its_own(model_folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(model_folder)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied weights
        adapted = make(load_model(tmp_path / "tied"), tmp_path / "adapter", target_modules=["lm_head"])
        merged = Merged(AutoConfig.from_pretrained(tmp_path / "tied"), tmp_path / "adapter")
    assert merged.untied == {"lm_head.weight"}
    found = dict(merged.tensors(Tied(StateDict(load_model(tmp_path / "tied")), merged.owners)))
    config.tie_word_embeddings = False
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(found)
    assert torch.allclose(logits(plain), logits(adapted), atol=1e-5)
    assert Merged(AutoConfig.from_pretrained(tmp_path / "tied"), None).untied == set()


def test_one_layer_at_a_time_is_in_memory(model_folder: Path, tmp_path: Path) -> None:
    make(load_model(model_folder), tmp_path, target_modules="all-linear")
    merged = Merged(AutoConfig.from_pretrained(model_folder), tmp_path)

    def held() -> int:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in merged.model.parameters()}
        return sum(storages.values())

    adapter = sum(p.numel() * 4 for name, p in merged.model.named_parameters() if "lora_" in name)
    whole = sum(entry.shape.numel() * 4 for entry in merged.entries)
    largest = 0
    for _ in merged.tensors(StateDict(load_model(model_folder))):
        largest = max(largest, held())
    assert held() - adapter < 1000  # one number for every other parameter
    assert largest - adapter < whole / 4


def test_the_dequantised_merge_says_what_the_adapter_says(
    stored: StoredAdapter, prompts: Path, make_base: MakeBase, tmp_path: Path
) -> None:
    receipt = merge(stored, tmp_path / "out", MergeOptions(dtype="float32", prompts=prompts))
    assert receipt.fidelity is not None
    assert receipt.into == "dequantised"
    assert receipt.fidelity.kl <= 1e-6
    assert receipt.fidelity.agreement >= 0.999
    assert (receipt.fidelity.prompts, receipt.fidelity.same_answers) == (12, 12)
    assert Receipt.model_validate_json((tmp_path / "out" / RECEIPT).read_text()) == receipt
    base = make_base()
    load_adapter(base, stored.folder)
    plain = load_plain(tmp_path / "out")
    assert torch.allclose(logits(plain), logits(base.model), atol=1e-4)
    again = load_base(BaseSection(model=str(tmp_path / "out"), dtype="float32"), torch.device("cpu"))
    assert again.fingerprint["chat_template"] == base.fingerprint["chat_template"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == base.tokenizer.get_vocab()


def test_the_original_weights_are_those_before_quantisation(
    stored: StoredAdapter, prompts: Path, model_folder: Path, tmp_path: Path
) -> None:
    receipt = merge(stored, tmp_path / "out", MergeOptions(into="original", prompts=prompts))
    again = load_adapter(
        load_base(BaseSection(model=str(model_folder), quantization="none", dtype="float32"), torch.device("cpu")),
        stored.folder,
    )
    assert torch.allclose(logits(load_plain(tmp_path / "out")), logits(again), atol=1e-4)
    assert receipt.fidelity is not None
    assert receipt.fidelity.kl > 1e-4  # what 4 bits cost, and this comparison sees it


def test_an_adapter_over_16_or_32_bits_goes_into_the_original(
    model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    stored = store_adapter(tmp_path / "dora", model_folder, "none", use_dora=True)
    receipt = merge(stored, tmp_path / "out", MergeOptions(dtype="float32", prompts=prompts, limit=5))
    assert receipt.into == "original"
    assert receipt.fidelity is not None
    assert receipt.fidelity.kl <= 1e-6
    assert receipt.fidelity.prompts == 5
    merge(stored, tmp_path / "exact", MergeOptions(measure=False))  # the base is loaded in bf16, as it was trained
    again = load_adapter(load_base(subject_of(stored, dtype="float32").section, torch.device("cpu")), stored.folder)
    assert torch.allclose(logits(load_plain(tmp_path / "exact")), logits(again), atol=1e-4)
    with pytest.raises(AdapterError, match="was not quantised"):
        merge(stored, tmp_path / "again", MergeOptions(into="dequantised"))


def test_four_bits_are_refused_unless_forced_and_then_cost_something(
    stored: StoredAdapter, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"quantises the weights to 4 bits a second time.*--force"):
        merge(stored, tmp_path / "out", MergeOptions(into="4bit", prompts=prompts))
    with pytest.raises(AdapterError, match="needs prompts"):
        merge(stored, tmp_path / "out", MergeOptions(into="4bit", force=True))
    assert list(tmp_path.iterdir()) == []
    receipt = merge(stored, tmp_path / "out", MergeOptions(into="4bit", force=True, dtype="float32", prompts=prompts))
    assert receipt.fidelity is not None
    assert receipt.fidelity.kl > 1e-4
    assert "KL(adapter on its base || merged)" in receipt.lines()[1]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"]


def test_shards_hold_no_more_than_asked_and_the_same_numbers(stored: StoredAdapter, tmp_path: Path) -> None:
    merge(stored, tmp_path / "one", MergeOptions(measure=False))
    merge(stored, tmp_path / "many", MergeOptions(measure=False, shard=150_000))
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        with safe_open(file, framework="pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118 (not a mapping)
        assert sum(sizes) <= 150_000 or len(sizes) == 1
    assert torch.equal(logits(load_plain(tmp_path / "one")), logits(load_plain(tmp_path / "many")))


def test_another_base_is_refused(stored: StoredAdapter, other_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="was trained on base"):
        merge(stored, tmp_path / "out", MergeOptions(base=str(other_folder)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ia3", "biases", "tokens", "lora bias"])
def test_what_cannot_be_merged_is_refused_with_the_reason(kind: str, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    reasons = {
        "ia3": "IA3",
        "biases": "trained biases",
        "tokens": "trained tokens",
        "lora bias": "base layer has no bias",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own doubts
        if kind == "ia3":
            get_peft_model(load_model(model_folder), IA3Config(task_type="CAUSAL_LM")).save_pretrained(str(folder))
        elif kind == "lora bias":
            make(load_model(model_folder), folder, lora_bias=True)
        else:
            make(load_model(model_folder), folder)
            change_config(folder, **({"bias": "all"} if kind == "biases" else {"trainable_token_indices": [1]}))
    with pytest.raises(AdapterError, match=reasons[kind]):
        list(Merged(AutoConfig.from_pretrained(model_folder), folder).tensors(StateDict(load_model(model_folder))))


def test_nothing_is_left_of_a_merge_that_failed(stored: StoredAdapter, prompts: Path, tmp_path: Path) -> None:
    merge(stored, tmp_path / "out", MergeOptions(measure=False))
    before = (tmp_path / "out" / RECEIPT).read_text()
    (tmp_path / "wrong.yaml").write_text("prompts: []")
    with pytest.raises(DataError, match="at least one prompt"):
        merge(stored, tmp_path / "out", MergeOptions(prompts=tmp_path / "wrong.yaml"))
    with pytest.raises(FinetuneError, match=r"positions|tokens"):  # found while the folder is being written
        (tmp_path / "long.yaml").write_text(prompts.read_text().replace("How much is it?", "pizza " * 400))
        merge(stored, tmp_path / "out", MergeOptions(prompts=tmp_path / "long.yaml"))
    assert (tmp_path / "out" / RECEIPT).read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.yaml", "out", "wrong.yaml"]


def test_a_folder_with_something_else_is_never_replaced(stored: StoredAdapter, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FinetuneError, match="holds something else"):
        merge(stored, tmp_path, MergeOptions(measure=False))
    assert (tmp_path / "thesis.txt").exists()


def test_the_measure_tells_models_apart_and_one_model_from_itself_never(
    stored: StoredAdapter, base: Base, prompts: Path
) -> None:
    chosen = prompts_of(subject_of(stored), prompts, 4)
    assert [prompt.id for prompt in chosen] == ["p0", "p3", "p6", "p9"]
    assert chosen[0].messages[0].content == "Be short."
    alone = look(base, rows := answered(base, chosen, 8))
    same = compare(base, rows, alone, look(base, rows))
    assert (same.kl, same.agreement, same.same_answers) == (0.0, 1.0, 4)
    load_adapter(base, stored.folder)
    other = compare(base, rows, alone, look(base, rows))
    assert other.kl > 0.01
    assert other.kl_max > other.kl
    assert other.agreement < 1.0


def test_the_measure_is_the_sum_over_full_logits(stored: StoredAdapter, base: Base, prompts: Path) -> None:
    """Against one plain forward pass per answer."""
    chosen = prompts_of(subject_of(stored), prompts, 3)
    rows = answered(base, chosen, 8)
    views = look(base, rows)

    def says(model: torch.nn.Module) -> list[Tensor]:
        with torch.no_grad():
            whole = [model(torch.tensor([row.ids]), use_cache=False).logits[0].double() for row in rows]
        places = [[i - 1 for i, trained in enumerate(row.loss_mask) if trained] for row in rows]
        return [part[place].log_softmax(-1) for part, place in zip(whole, places, strict=True)]

    before = says(base.model)
    load_adapter(base, stored.folder)
    after = says(base.model)
    found = compare(base, rows, views, look(base, rows))
    p, q = torch.cat(before), torch.cat(after)
    kl = (p.exp() * (p - q)).sum(-1)
    assert found.tokens == len(kl)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.kl_max == pytest.approx(float(kl.max()), rel=1e-3)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


@pytest.mark.slow
def test_the_shipped_adapters_merge_within_a_millionth(tmp_path: Path) -> None:
    """Over 100 held-out prompts, or all where the suite has fewer."""
    for name, prompts in (("pizza", 100), ("cheerful", 70), ("grumpy", 70)):
        receipt = merge(find_adapter(name), tmp_path / name, MergeOptions(dtype="float32"))
        assert receipt.fidelity is not None
        assert receipt.fidelity.prompts == prompts
        assert receipt.fidelity.kl <= 1e-6
        assert receipt.fidelity.agreement >= 0.999


def test_a_card_without_a_base_is_an_error_for_a_person(stored: StoredAdapter, tmp_path: Path) -> None:
    folder = tmp_path / "imported"
    folder.mkdir()
    for file in stored.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "base": {**card["base"], "quantization": "gptq"}}))
    with pytest.raises(AdapterError, match="names no base"):
        merge(find_adapter(str(folder)), tmp_path / "out")
