"""The benchmark of training measures what it says: its count of operations, and that a contender trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.data.batches import pack
from finetune.data.encoding import Encoded
from finetune.model.attention import packed_attention
from finetune.training.loss import output_head, trained_nll

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
TINY = ROOT / "finetune" / "model" / "tiny"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.usefixtures("benchmarks")
def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    """An unquantised model and rows that need no padding."""
    from utilisation import Shape, step_flops

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    base = LlamaForCausalLM(config).requires_grad_(False)
    base.save_pretrained(tmp_path)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    lengths = [64, 64]
    rows = [Encoded([1] * size, [0] * (size // 2) + [1] * (size // 2), "", 0) for size in lengths]
    (batch,) = pack(rows, sum(lengths))
    model.train()
    with packed_attention(base), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trained_nll(base, output_head(base), batch, 1.0).backward()  # type: ignore[no-untyped-call]
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    shape = Shape.read(str(tmp_path))
    # The head computes as many rows as its chunks are padded to.
    padded = -(-batch.trained // 64) * 64 - batch.trained
    expected = step_flops(shape, 4, lengths, batch.trained) + 4 * padded * shape.hidden * shape.vocabulary
    # Plain products of whole squares: 12 S^2 d. Half of it is hidden, and flash attention computes the scores again.
    assert counted["aten.mm"] + counted["aten.bmm"] * 7 / 12 == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("benchmarks")
def test_finetune_is_measured(tmp_path: Path) -> None:
    from training import tokenised

    rows, _ = tokenised("pairs", 6)
    (tmp_path / "rows.json").write_text(json.dumps({"train": rows, "heldout": rows[4:]}))
    task = {
        "contender": "finetune", "model": str(TINY), "rows": str(tmp_path / "rows.json"), "device": "cpu", "batch": 2,
        "warm_up": 1, "steps": 2, "learning_rate": 1e-3, "seed": 0, "evaluate_every": 1, "without": [],
        "overhead": True,
    }  # fmt: skip
    (tmp_path / "task.json").write_text(json.dumps(task))
    command = [sys.executable, str(BENCHMARKS / "contenders.py"), str(tmp_path / "task.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FINETUNE_CACHE": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["gradient_norms"]) == 3
    assert found["gradient_norm_min"] > 0
    assert found["tokens_per_s"] * found["seconds"] == pytest.approx(sum(len(row["ids"]) for row in rows[2:]))
    seconds, losses = zip(*found["curve"], strict=True)
    assert list(seconds) == sorted(seconds)
    assert losses[-1] < losses[0]  # of the rows that the last step was trained on
    assert 0 < sum(found["parts"].values()) < 1
    assert found["peak_above_base_mib"] > 0


@pytest.mark.usefixtures("benchmarks")
def test_time_to_a_loss_is_interpolated() -> None:
    from training import time_to

    curve = [(0.0, 5.0), (10.0, 4.0), (20.0, 3.0)]
    assert time_to(3.5, curve) == 15.0
    assert time_to(5.0, curve) == 0.0
    assert time_to(3.0, curve) == 20.0


@pytest.mark.usefixtures("benchmarks")
def test_tables_show_every_contender() -> None:
    from training_report import markdown

    row = {
        "tokens_per_s": 100.0, "finetune_is_times_as_fast": 1.0, "trained_tokens_per_s": 50.0,
        "peak_above_base_mib": 10.0, "finetune_takes_of_its_memory": 1.0, "utilisation_square": 0.5,
        "utilisation_shapes": 0.6, "heldout_loss": 3.0, "settings": "packed", "versions": {},
    }  # fmt: skip
    rates = {"square_flops_per_s": 1e12, "shapes_flops_per_s": 5e11}
    mix = {"contenders": {"finetune": row, "TRL": "not measured: trl is not installed"}, "steps": 1, "rates": rates,
           "tokens_per_step": 10.0, "trained_per_step": 5.0}  # fmt: skip
    section = {
        "results": {"tiny": {"pairs": mix}}, "versions": {"torch": "1"}, "rounds": 1, "batch": 8, "machine": "m",
        "threads": "2", "at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    text = "\n".join(markdown({"mixes": section}))
    assert "| finetune | 100 | 1.00 x | 50 | 10 | 1.00 x | 50.0% | 60.0% | 3.0000 |" in text
    assert "| TRL | not measured: trl is not installed |" in text
