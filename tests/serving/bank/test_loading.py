"""Loading is all or nothing, content is what counts, and memory has tiers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from finetune.errors import AdapterError
from finetune.model.base import Base, weights_sha256
from finetune.serving.bank import AdapterBank
from finetune.serving.bank_tiers import KEPT_BLENDS
from finetune.store.folders import CARD, WEIGHTS
from tests.serving.making import IDS, Oracle, card, logits, write_adapter


def test_the_same_name_with_new_weights_is_new_content(bank: AdapterBank, base: Base, store: Path) -> None:
    old, old_logits = bank.lease("a"), logits(bank, ["a"])
    write_adapter(store / "a", base, 99)
    assert torch.equal(logits(bank, ["a"]), old_logits)  # not loaded yet
    bank.load("a")
    new = bank.lease("a")
    assert (old.digest, old.slot) != (new.digest, new.slot)
    assert old.digest != new.digest
    new_logits = logits(bank, ["a"])
    assert (new_logits - old_logits).abs().max() > 0.05
    with torch.no_grad(), bank.routed([old.slot]):  # what runs ends as it began
        assert torch.equal(base.model(input_ids=IDS, use_cache=False).logits, old_logits)
    old.release()
    with pytest.raises(AdapterError, match="holds no adapter any more"), bank.routed([old.slot]):
        pass
    write_adapter(store / "a", base, 1)
    bank.load("a")
    assert bank.lease("a").digest == old.digest  # equal content, equal key
    assert torch.equal(logits(bank, ["a"]), old_logits)


def test_unloading_ends_new_leases_at_once_and_running_rows_never(bank: AdapterBank, base: Base) -> None:
    held, before = bank.lease("b"), logits(bank, ["b"])
    bank.unload("b")
    assert bank.names == ["a", "c", "d"]
    for voice in ("b", "a+b"):
        with pytest.raises(AdapterError, match=r"'b' is not loaded \(loaded: a, c, d\)"):
            bank.lease(voice)
    with torch.no_grad(), bank.routed([held.slot]):
        assert torch.equal(base.model(input_ids=IDS, use_cache=False).logits, before)
    taken = bank.memory()["adapters"]
    held.release()
    held.release()
    assert bank.memory()["adapters"] < taken
    with pytest.raises(AdapterError, match="'b' is not loaded"):
        bank.unload("b")


class Broken(TorchFunctionMode):
    """Fails at the nth operation on tensors."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise MemoryError("no memory left")
        return func(*args, **(kwargs or {}))


def test_a_fault_at_any_tensor_of_a_load_leaves_everything_as_it_was(
    bank: AdapterBank, base: Base, store: Path
) -> None:
    voices: list[str | None] = ["a", "b", "c", "d", "a+0.5*b", None]
    before, digests = logits(bank, voices), [bank.lease(voice).digest for voice in voices]
    whole, memory = weights_sha256(base.model), bank.memory()
    write_adapter(store / "a", base, 99, targets=("q_proj", "down_proj"))
    write_adapter(store / "e", base, 5, targets=("q_proj", "down_proj"))
    for name in ("a", "e"):
        faults = 0
        while True:
            try:
                with Broken(faults):
                    bank.load(name)
                break
            except MemoryError:
                faults += 1
                assert "e" not in bank.names
                assert bank.memory() == memory
                if faults % 4 == 0:
                    assert torch.equal(logits(bank, voices), before)
                    assert [bank.lease(voice).digest for voice in voices] == digests
        assert faults > 2 * 8  # some for each of the 8 tensors
        write_adapter(store / "a", base, 1)
        bank.load("a")
        memory = bank.memory()
    assert torch.equal(logits(bank, voices), before)
    assert weights_sha256(base.model) == whole


def test_a_load_that_is_refused_changes_nothing(bank: AdapterBank, store: Path) -> None:
    before, names = logits(bank, ["a", "b", "c", "d", None, "b"]), bank.names
    whole = (store / "a" / WEIGHTS).read_bytes()
    (store / "a" / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(AdapterError):
        bank.load("a")
    wrong = card("b", bank.base)
    wrong = wrong.model_copy(update={"base": wrong.base.model_copy(update={"fingerprint": {"weights": "0" * 64}})})
    (store / "b" / CARD).write_text(wrong.model_dump_json())
    with pytest.raises(AdapterError, match="differ in weights"):
        bank.load("b")
    with pytest.raises(AdapterError, match="no adapter 'nothing'"):
        bank.load("nothing")
    assert bank.names == names
    assert torch.equal(logits(bank, ["a", "b", "c", "d", None, "b"]), before)


def test_another_folder_of_the_same_name_is_refused(bank: AdapterBank, base: Base, tmp_path: Path) -> None:
    write_adapter(tmp_path / "elsewhere" / "a", base, 7)
    with pytest.raises(AdapterError, match="another adapter named 'a' is loaded"):
        bank.load(tmp_path / "elsewhere" / "a")


def test_what_falls_out_of_memory_is_read_again_and_only_if_it_is_the_same(base: Base, store: Path) -> None:
    bank = AdapterBank(base, store=store, host=2)
    for name in ("a", "b", "c", "d"):
        bank.load(name)
    all_bytes = AdapterBank(base, store=store)
    for name in ("a", "b", "c", "d"):
        all_bytes.load(name)
    assert bank.memory()["adapters"] < all_bytes.memory()["adapters"]
    for name in ("a", "d", "b", "c", "a"):
        assert torch.equal(logits(bank, [name]), logits(all_bytes, [name]))
    write_adapter(store / "b", base, 99)
    with pytest.raises(AdapterError, match="has changed on the disk, or is gone"):
        bank.lease("b")
    bank.load("b")
    logits(bank, ["b"])


def test_more_adapters_in_a_batch_than_slots_are_refused(base: Base, store: Path) -> None:
    bank = AdapterBank(base, store=store, slots=2)
    for name in ("a", "b", "c"):
        bank.load(name)
    logits(bank, ["a", "b", None, "a", "a", "b"])
    with pytest.raises(AdapterError, match="3 adapters is more than the bank's 2 slots"):
        logits(bank, ["a", "b", "c", "a", "a", "b"])


def test_blends_are_kept_by_content_and_do_not_pile_up(bank: AdapterBank) -> None:
    assert bank.lease("a+0.5*b").slot == bank.lease("1*a + 0.50*b").slot
    assert bank.lease("a+0.5*b").digest != bank.lease("a+0.25*b").digest
    for number in range(3 * KEPT_BLENDS):
        bank.lease(f"a+0.{number + 100}*c").release()
    one = bank.memory()["adapters"]
    for number in range(3 * KEPT_BLENDS):
        bank.lease(f"a+0.{number + 200}*c").release()
    assert bank.memory()["adapters"] <= one


@pytest.fixture
def dora(base: Base, store: Path) -> Path:
    return write_adapter(store / "dora", base, 5, use_dora=True)


def test_kinds_that_only_peft_runs_are_served_alone_and_say_so(
    bank: AdapterBank, dora: Path, oracle: Oracle, base: Base
) -> None:
    before = logits(bank, ["a", "b", None, "c", "d", "a"])
    oracle.keep(dora, "dora")
    bank.load("dora")
    with bank.lease("dora") as lease:
        assert not lease.mixes
        assert lease.why.startswith("DoRA")
        with pytest.raises(AdapterError, match="cannot run beside others"), bank.routed([lease.slot, 0]):
            pass
    torch.testing.assert_close(logits(bank, ["dora"]), oracle.asked((("dora", 1.0),)), rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="dora cannot be blended"):
        bank.lease("dora+a")
    assert torch.equal(logits(bank, ["a", "b", None, "c", "d", "a"]), before)
    assert not any(hasattr(module, "lora_A") for module in base.model.modules())
    bank.unload("dora")
    assert torch.equal(logits(bank, ["a", "b", None, "c", "d", "a"]), before)


def test_loading_waits_for_no_forward_pass_and_leases_come_from_any_thread(bank: AdapterBank) -> None:
    seen: list[str] = []
    with bank.lease("a") as lease, bank.routed([lease.slot]):
        worker = threading.Thread(target=lambda: seen.extend([bank.load("b"), bank.lease("c").digest]))
        worker.start()
        worker.join(60)
    assert len(seen) == 2


def test_two_banks_on_one_base_do_not_meet(base: Base, store: Path) -> None:
    one, other = AdapterBank(base, store=store), AdapterBank(base, store=store)
    one.load("a")
    other.load("b")
    first, second = logits(one, ["a"]), logits(other, ["b"])
    assert torch.equal(logits(one, ["a"]), first)
    assert not torch.equal(first, second)
    assert other.names == ["b"]
