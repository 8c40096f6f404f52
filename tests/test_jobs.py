"""Several recipes trained at once: what may be, what is written, what a person sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from finetune.cli import main
from finetune.errors import RecipeError
from finetune.jobs import check_together
from finetune.pipeline import train
from finetune.recipe import Recipe, load_recipe
from finetune.training.telemetry import Event, NoticeEvent
from tests.training.test_padded import maker


@pytest.fixture
def write(model_folder: Path, jsonl: Path, tmp_path: Path) -> object:
    def make(name: str, *overrides: str) -> Recipe:
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\noutput: {tmp_path / 'adapters'}\nbase: {{model: {model_folder}, dtype: float32}}\n"
            f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\n"
            "adapter: {r: 4}\ntrain: {epochs: 1, batch_size: 8, learning_rate: 1e-2}\n"
        )
        return load_recipe(tmp_path / f"{name}.yaml", list(overrides))

    return make


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["name=one"], "two recipes write 'one'"),
        (["base.quantization=none"], "two and one are of two bases: base.quantization none and nf4"),
        (["adapter.method=dora"], "two: adapter.method dora cannot be trained together"),
        (["adapter.method=[lora+, pissa]"], "two: adapter.method pissa cannot be trained together"),
        (["adapter.method=neftune"], "two: adapter.method neftune cannot be trained together"),
        (["adapter.dropout=0.1"], "two: adapter.dropout 0.1 cannot be trained together"),
        (["adapter.modules_to_save=[embed_tokens]"], "two: adapter.modules_to_save cannot be trained together"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_by_name(write: object, overrides: list[str], words: str) -> None:
    one, two = write("one"), write("two", *overrides)  # type: ignore[operator]
    with pytest.raises(RecipeError) as error:
        check_together([one, two])
    assert words in str(error.value)
    check_together([two])


def test_two_recipes_on_the_command_line_become_two_adapters_that_peft_reads(
    write: object,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one", "two"):
        write(name)  # type: ignore[operator]
    words = ["finetune", "train", f"{tmp_path}/one.yaml", f"{tmp_path}/two.yaml", "train.max_steps=3"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "one: step 3/3 · loss" in shown and "two: step 3/3 · loss" in shown
    for name in ("one", "two"):
        folder = tmp_path / "adapters" / name
        assert f"adapter written to {folder}" in shown
        assert {path.name for path in folder.iterdir()} >= {"adapter_model.safetensors", "card.json", "loss.png"}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), str(folder))
        assert model.peft_config["default"].r == 4
    assert not list((tmp_path / "adapters").glob("*.checkpoint"))


def test_a_base_that_cannot_pack_is_trained_in_padded_rows_and_the_run_says_so(
    write: object, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    maker("convolution", tmp_path / "hybrid", tokenizer)
    recipe = write("one", f"base.model={tmp_path / 'hybrid'}", "train.max_steps=2")  # type: ignore[operator]
    events: list[Event] = []
    stored = train(recipe, emit=events.append)
    said = [event.text for event in events if isinstance(event, NoticeEvent)]
    how = "rows of one example each, padded in groups of like length, which is slower"
    assert f"{tmp_path / 'hybrid'} cannot keep packed examples apart: {how}" in said
    assert (stored.folder / "adapter_model.safetensors").exists()
