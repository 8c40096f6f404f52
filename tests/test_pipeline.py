"""From recipe to report on a small model: what is written, what is in it, what the gates decide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from finetune.errors import AdapterError, DataError, Interrupted, RecipeError
from finetune.evaluation.folder import read_report
from finetune.files import sha256_file
from finetune.pipeline import evaluate, train
from finetune.recipe import Recipe, load_recipe
from finetune.store.folders import find_adapter, list_adapters
from finetune.training.telemetry import Event, NoticeEvent, StepEvent
from tests.conftest import save_model

PROMPTS = """prompts:
- {id: p1, prompt: Give me 3 pizzas, tags: [order], checks: [{contains: 3 pizzas}, {stops: true}]}
- {id: p2, prompt: Give me 7 pizzas, checks: [{contains: 7 pizzas}]}
"""


@pytest.fixture
def recipe(model_folder: Path, jsonl: Path, tmp_path: Path) -> Recipe:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    general = [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "I can help with that."}]
    long = [general[0], {"role": "assistant", "content": "I can help with that. " * 60}]  # more than 256 tokens
    rows = [general, general, long]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (tmp_path / "replay.jsonl").write_text((json.dumps({"messages": general}) + "\n") * 3)
    (tmp_path / "recipe.yaml").write_text(
        f"name: shop\noutput: {tmp_path / 'adapters'}\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data:\n  path: {jsonl}\n  heldout: 0.2\n  max_length: 128\n  system: Be brief.\n"
        f"  mix: [{{path: {tmp_path / 'replay.jsonl'}, weight: 0.2}}]\n"
        "adapter: {r: 4}\ntrain: {epochs: 8, batch_size: 8, learning_rate: 1e-2}\n"
        f"generation: {{max_new_tokens: 12}}\n"
        f"eval:\n  prompts: {tmp_path / 'prompts.yaml'}\n  general: {tmp_path / 'general.jsonl'}\n"
        "  gates: {perplexity.heldout.ratio: {at_most: 0.5}}\n"
    )
    return load_recipe(tmp_path / "recipe.yaml")


def test_train_then_evaluate_writes_everything_and_tells_better_from_worse(recipe: Recipe, tmp_path: Path) -> None:
    events: list[Event] = []
    adapter = train(recipe, emit=events.append)
    written = {path.name for path in adapter.folder.iterdir()}
    assert written == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "recipe.yaml", "README.md", "log.jsonl",
        "loss.png",
    }  # fmt: skip
    assert not list(adapter.folder.parent.glob("*.checkpoint")) + list(adapter.folder.parent.glob(".*"))
    assert adapter.card.system == "Be brief."
    assert adapter.card.data[Path(recipe.data.path).name] == sha256_file(recipe.data.path)
    with Image.open(adapter.folder / "loss.png") as picture:
        assert picture.size[0] > 600
    assert load_recipe(adapter.folder / "recipe.yaml") == recipe
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.base.model
    assert any(isinstance(e, NoticeEvent) and "parameters" in e.text and "32-bit" in e.text for e in events)
    assert sum(isinstance(e, StepEvent) for e in events) == adapter.card.steps

    report, folder = evaluate(recipe, emit=events.append)
    assert report.verdict == "pass"
    said = [event.text for event in events if isinstance(event, NoticeEvent)]
    assert any(text.startswith("1 general rows are longer than 256 tokens and are scored in windows") for text in said)
    assert report.perplexity.general is not None
    assert report.perplexity.general.base.tokens > 256
    assert report.perplexity.heldout.ratio.high < 0.5
    assert report.perplexity.general is not None
    assert report.prompts is not None
    assert report.prompts.adapter.total == 2
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "junit.xml",
        "samples.csv",
        "samples.jsonl",
        "scores.json",
    }
    assert read_report(folder) == report
    raw = json.loads((folder / "report.json").read_text())
    assert set(raw["perplexity"]["heldout"]["base"]) >= {"value", "nll", "tokens", "low", "high"}
    card = find_adapter(str(adapter.folder)).card
    assert card.metrics["perplexity.heldout.ratio"]["value"] == report.perplexity.heldout.ratio.value
    assert "perplexity.heldout" in (adapter.folder / "README.md").read_text()

    strict = recipe.model_copy(update={"eval": load_gates(recipe, "perplexity.heldout.ratio", 0.0001)})
    assert evaluate(strict)[0].verdict == "fail"


def test_an_evaluation_beside_an_earlier_one_with_repeats_and_tasks(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe)
    report, folder = evaluate(recipe)
    shutil.copytree(folder, tmp_path / "old")
    again, _ = evaluate(recipe, baseline=tmp_path / "old")
    gate = again.gates[-1]
    old = f"shop of {report.created[:10]}"
    assert (gate.metric, gate.bound, gate.value) == ("prompts.pass_rate", f"no_worse_than_baseline 0.05 ({old})", 0.0)
    assert [(rival.name, rival.kind) for rival in again.rivals] == [(old, "report")]
    beside, _ = evaluate(recipe, compare=[tmp_path / "old", tmp_path / "old" / "report.json"])
    assert [rival.name for rival in beside.rivals] == [old, f"{old} in {tmp_path / 'old' / 'report.json'}"]
    other = recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"max_new_tokens": 3})})
    with pytest.raises(DataError, match=r"generation\.max_new_tokens: the earlier one has"):
        evaluate(other, baseline=tmp_path / "old")
    with pytest.raises(RecipeError, match="2 times at temperature 0"):
        evaluate(recipe, repeat=2)
    warm = recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"temperature": 0.5})})
    repeats = evaluate(warm, repeat=3)[0].prompts
    assert repeats is not None
    assert (repeats.adapter.total, repeats.repeats.k if repeats.repeats else 0) == (6, 3)

    tasked = evaluate(recipe.model_copy(update={"eval": with_task(recipe, tmp_path)}), compare=[tmp_path / "old"])[0]
    assert [(score.task, score.metric, score.samples) for score in tasked.tasks] == [("orders", "acc", 3)]
    assert tasked.tasks[0].adapter >= tasked.tasks[0].base
    assert tasked.rivals[0].tasks == ()
    unknown = recipe.eval.model_copy(update={"tasks": ("arc_eazy",)})
    with pytest.raises(RecipeError, match="arc_easy"):
        evaluate(recipe.model_copy(update={"eval": unknown}))


def with_task(recipe: Recipe, folder: Path) -> object:
    rows = [{"question": f"Give me {n} pizzas", "choices": ["no", f"You get {n} pizzas."]} for n in (1, 2, 3)]
    (folder / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "orders.yaml").write_text(
        f"task: orders\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'orders.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: 1\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return recipe.eval.model_copy(update={"tasks": (str(folder / "orders.yaml"),)})


def load_gates(recipe: Recipe, metric: str, bound: float) -> object:
    values = {**recipe.eval.model_dump(), "gates": {metric: {"at_most": bound}}}
    return type(recipe.eval).model_validate(values)


def test_training_again_replaces_the_folder_and_the_same_seed_gives_the_same_weights(recipe: Recipe) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 3})})
    first = sha256_file(train(short).folder / "adapter_model.safetensors")
    assert sha256_file(train(short).folder / "adapter_model.safetensors") == first
    assert [a.name for a in list_adapters(recipe.output)] == ["shop"]


def test_an_interrupted_run_goes_on_and_another_recipe_does_not_take_it_over(recipe: Recipe) -> None:
    import signal

    def stop_at_two(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="same command again") as stopped:
        train(recipe, emit=stop_at_two)
    assert stopped.value.exit_code == 130
    assert not (Path(recipe.output) / "shop").exists()
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(AdapterError, match=r"train\.learning_rate changed since"):
        train(other)
    events: list[Event] = []
    train(recipe, emit=events.append, checkpoint_every=7)  # how often it is written may change
    assert any(isinstance(e, NoticeEvent) and e.text.startswith("resuming at step 3") for e in events)
    assert min(e.step for e in events if isinstance(e, StepEvent)) == 4


def test_an_adapter_of_another_base_is_refused(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 1})})
    train(short)
    save_model(tmp_path / "other", tokenizer, seed=5)
    other = short.model_copy(update={"base": short.base.model_copy(update={"model": str(tmp_path / "other")})})
    with pytest.raises(AdapterError, match=r"trained on base .*random-llama.*they differ in weights"):
        evaluate(other)


def test_a_failing_write_leaves_the_old_adapter(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 1})})
    folder = train(short).folder
    before = {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}

    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune.pipeline.plot_loss", broken)
    with pytest.raises(AdapterError, match="No space left"):
        train(short)
    assert {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()} == before
