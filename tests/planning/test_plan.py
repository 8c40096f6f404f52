"""finetune plan: what is counted, what fits, what it costs, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune.data.dataset import load_dataset
from finetune.errors import FinetuneError
from finetune.model.shapes import read_shape
from finetune.model.tokenizer import load_chat_template
from finetune.planning.load import measure_load, workload
from finetune.planning.plan import Assumptions, make_plan, training_flops
from finetune.recipe import load_recipe
from finetune.terminal.plan import show_plan
from finetune.training.budget import MemoryPlan
from tests.planning.conftest import Run


def large(folder: Path, **shape: Any) -> None:
    """Make the base another shape; its tokenizer stays."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **shape}))


LLAMA_65B = {
    "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 64, "head_dim": 128, "vocab_size": 32000,
}  # fmt: skip


def test_65b_fits_48_gb_in_4_bits_and_nothing_else_does(recipe: Path, run: Run) -> None:
    large(Path("base"), **LLAMA_65B)
    code, said = run(str(recipe), "adapter.r=16", "--gpu", "48GB", "--format", "json")
    found = json.loads(said)
    assert (code, found["fits"], found["parameters"]["total"]) == (0, True, 65_285_660_672)
    peaks = peaks_of(said)
    assert 30e9 < peaks["4-bit LoRA"] < 48e9
    assert peaks["16-bit full"] == pytest.approx(783e9, rel=0.01)
    assert [option["fits"] for option in found["options"]] == [True, False, False, False]
    code, said = run(str(recipe), "adapter.r=16", "--gpu", "24GB")
    assert code == 1
    assert "4-bit LoRA   does not fit" in said


def peaks_of(said: str) -> dict[str, int]:
    return {option["name"]: option["peak"] for option in json.loads(said)["options"]}


def parts_of(said: str) -> dict[str, int]:
    own: dict[str, int] = next(option["parts"] for option in json.loads(said)["options"] if option["asked_for"])
    return own


def test_dora_trains_magnitudes_and_keeps_its_inputs_in_fp32(recipe: Path, run: Run) -> None:
    large(Path("base"), **LLAMA_65B)
    plain, dora = (
        run(str(recipe), "adapter.r=16", f"adapter.method={method}", "--gpu", "80GB", "--format", "json")
        for method in ("lora", "dora")
    )
    assert plain[0] == 0
    magnitudes = 80 * (5 * 8192 + 2 * 22016)
    trained = [json.loads(said)["parameters"]["trained"] for _, said in (plain, dora)]
    assert trained[1] - trained[0] == magnitudes
    assert parts_of(dora[1])["gradients"] - parts_of(plain[1])["gradients"] == 4 * magnitudes
    assert parts_of(dora[1])["activations"] > 2 * parts_of(plain[1])["activations"]
    # In fp32, for the largest linear: the unit matrix, B A, s B A, W and W + s B A.
    assert parts_of(dora[1])["working set"] > 4 * 22016 * (22016 + 4 * 8192)


def test_modules_in_full_are_copies_gradients_and_moments_in_fp32(recipe: Path, run: Run) -> None:
    large(Path("base"), **LLAMA_65B, tie_word_embeddings=False)
    numbers = 32000 * 8192
    plain, full = (
        run(str(recipe), f"adapter.modules_to_save={names}", "--gpu", "48GB", "--format", "json")
        for names in ("[]", "[embed_tokens]")
    )
    assert (plain[0], full[0]) == (0, 0)
    mine, theirs = parts_of(full[1]), parts_of(plain[1])
    for part, size in (("adapter", 4), ("gradients", 4), ("optimizer", 8)):
        assert mine[part] - theirs[part] == size * numbers
    arguments = (str(recipe), "adapter.modules_to_save=[embed_tokens]", "--gpu", "44GB")
    assert run(*arguments)[0] == 1
    assert run(*arguments, "train.optimizer=adamw_8bit")[0] == 0


def test_8_bit_moments_have_constants_and_pages_are_not_counted(recipe: Path, run: Run) -> None:
    large(Path("base"), **LLAMA_65B)
    found = {}
    for kind in ("adamw", "adamw_8bit", "paged_adamw_8bit"):
        arguments = (str(recipe), "adapter.r=16", f"train.optimizer={kind}", "--gpu", "48GB")
        code, said = run(*arguments, "--format", "json")
        assert code == 0
        found[kind] = parts_of(said)["optimizer"], json.loads(said)["paged"]
        assert ("on the GPU only while there is room" in run(*arguments)[1]) == (kind == "paged_adamw_8bit")
    numbers = json.loads(said)["parameters"]["trained"]
    constants = 8 * numbers // 256
    assert found["adamw"] == (8 * numbers, 0)
    assert found["adamw_8bit"] == (2 * numbers + constants, 0)
    assert found["paged_adamw_8bit"] == (constants, 2 * numbers)


def test_what_is_counted_is_what_training_does(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    dataset = load_dataset(loaded.data, load_chat_template(loaded.base))
    load = measure_load(loaded, dataset)
    rows = list(dataset.train)
    assert load.examples == len(rows)
    assert load.steps == 2 * -(-len(rows) // 8)
    assert load.tokens == pytest.approx(2 * sum(len(row.ids) for row in rows))
    assert load.trained == pytest.approx(2 * sum(sum(row.loss_mask) for row in rows))
    assert load.step_tokens == sum(sorted((len(row.ids) for row in rows), reverse=True)[:8])
    fewer = measure_load(load_recipe(recipe, ["train.max_steps=1"]), dataset)
    assert fewer.steps == 1
    assert fewer.tokens == pytest.approx(load.tokens / load.steps)


def test_flops_are_4_per_weight_and_token_and_less_where_the_backward_stops(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    load = measure_load(loaded, load_dataset(loaded.data, load_chat_template(loaded.base)))
    large(Path("base"), **LLAMA_65B)
    counts = {}
    for name, targets, plan in (
        ("all", "all-linear", MemoryPlan(512)),
        ("again", "all-linear", MemoryPlan(512, recompute=1)),
        ("top", "[layers.40-79]", MemoryPlan(512)),
    ):
        changed = load_recipe(recipe, [f"adapter.target_modules={targets}", "adapter.r=1"])
        shape = read_shape(changed.base, changed.adapter)
        counts[name] = training_flops(shape, workload(changed, load, cpu=False), load, plan)
    weights = 64_760_053_760
    assert counts["all"] == pytest.approx(4 * weights * load.tokens, rel=0.01)
    assert counts["again"] == pytest.approx(6 * weights * load.tokens, rel=0.01)
    assert counts["top"] == pytest.approx(3 * weights * load.tokens, rel=0.01)


def test_time_energy_and_money_follow_from_what_is_given(recipe: Path) -> None:
    found = make_plan(load_recipe(recipe), Assumptions(tokens_per_second=0.5, price=2.5, watts=300))
    assert found.cost is not None
    assert found.cost.seconds == pytest.approx(found.load.tokens / 0.5)
    hours = found.cost.seconds / 3600
    assert found.cost.kilowatt_hours == pytest.approx(0.3 * hours)
    assert found.cost.price == pytest.approx(2.5 * hours)
    assert make_plan(load_recipe(recipe), Assumptions(gpu=10**9)).cost is None
    measured = make_plan(load_recipe(recipe)).cost
    assert measured is not None
    assert measured.seconds > 0
    assert measured.kilowatt_hours is measured.price is None


def test_a_person_reads_it_in_80_columns(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large(Path("base"), **LLAMA_65B)
    report = make_plan(load_recipe(recipe), Assumptions(gpu=24 * 10**9, tokens_per_second=300, price=2.5, watts=300))
    show_plan(Console(width=80), report, gpu=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for words in ("65,285,660,672 parameters", "4-bit LoRA", "16-bit full", "does not fit", "kWh", "peak"):
        assert words in said


def test_without_a_gpu_to_compare_with_the_exit_code_is_0(recipe: Path, run: Run) -> None:
    code, said = run(str(recipe))
    assert code == 0
    assert "fits" in said
    assert "measured here" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "much"], "--gpu 'much' is no size; write for example 24GB"),
        (["--gpu", "0GB"], "--gpu '0GB' is no size"),
        (["--price", "-1"], "--price is -1; give a number above 0"),
        (["--tokens-per-second", "0"], "--tokens-per-second is 0; give a number above 0"),
        (["base.model=nowhere/at/all"], "no such folder"),
        (["data.path=none.jsonl"], "none.jsonl: no such data file"),
        (["adapter.target_modules=[q_prj]"], "match no linear layer"),
    ],
)
def test_bad_input_is_answered_and_ends_with_2(recipe: Path, run: Run, arguments: list[str], words: str) -> None:
    code, said = run(str(recipe), *arguments)
    assert code == 2
    assert words in said
    assert "Traceback" not in said


def test_a_negative_assumption_is_refused(recipe: Path) -> None:
    with pytest.raises(FinetuneError, match="--watts is -3"):
        make_plan(load_recipe(recipe), Assumptions(watts=-3))
