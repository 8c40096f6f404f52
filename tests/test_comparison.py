"""What is kept of an evaluation: nothing is computed twice, nothing stale is served, and a broken-off one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune import comparison
from finetune.comparison import Field, answer_all, evaluation_of, make_field, recalled, score_all
from finetune.data.encoding import Encoded, encode
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.errors import AdapterError
from finetune.evaluation.report import Heading, Sample, ScoreTable, Versions
from finetune.evaluation.suite import load_prompts
from finetune.model.base import load_base
from finetune.pipeline import train
from finetune.recipe import Recipe, load_recipe
from finetune.serving import assistant
from finetune.serving.forward import Forward, evaluating
from finetune.store.folders import find_adapter

Found = tuple[ScoreTable, tuple[Sample, ...]]


@pytest.fixture
def recipe(model_folder: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose adapter was trained for two steps, with a base folder and a cache of its own."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "base"
    own.mkdir()
    for file in model_folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    lines = [f"- {{id: p{n}, prompt: Give me {n} pizzas, checks: [{{contains: pizza}}]}}\n" for n in range(6)]
    (tmp_path / "prompts.yaml").write_text("prompts:\n" + "".join(lines))
    (tmp_path / "recipe.yaml").write_text(
        f"name: shop\noutput: {tmp_path / 'adapters'}\nbase: {{model: {own}, dtype: float32}}\n"
        f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\nadapter: {{r: 4}}\n"
        "train: {max_steps: 2, batch_size: 8, learning_rate: 1e-2}\n"
        f"generation: {{max_new_tokens: 4, temperature: 0.9}}\neval: {{prompts: {tmp_path / 'prompts.yaml'}}}\n"
    )
    made = load_recipe(tmp_path / "recipe.yaml")
    train(made)
    return made


class Work:
    forwards = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    work = Work()

    def count(*_: object) -> None:
        work.forwards += 1

    handle = model.register_forward_hook(count)
    yield work
    handle.remove()


def the_field(recipe: Recipe, *names: str) -> Field:
    base = load_base(recipe.base, torch.device("cpu"))
    with evaluating(base.model):
        Forward(base.model).serves_rows()  # tried once per model: no part of what is counted
    adapters = [find_adapter(name, recipe.output) for name in names or ("shop",)]
    return make_field(recipe.base, base, adapters, {})


def rows(field: Field, text: str = "You get 3 pizzas.") -> list[Encoded]:
    talk = (Message("user", "Give me 3 pizzas"), Message("assistant", text))
    return [encode(Example(talk, f"row {n}"), field.bot.base.template) for n in range(2)]


def evaluated(recipe: Recipe, *, repeat: int = 2, text: str = "You get 3 pizzas.") -> tuple[Found, int]:
    """Score and answer; return what was found and how many forward passes it took."""
    field = the_field(recipe)
    prompts = load_prompts(str(recipe.eval.prompts), recipe.data.system)
    with counted(field.bot.base.model.get_decoder()) as work:
        scores = score_all(field, rows(field, text), None, 512)
        samples = answer_all(field, prompts, recipe, repeat)
    return (scores, samples), work.forwards


def test_nothing_is_computed_twice(recipe: Recipe) -> None:
    first, forwards = evaluated(recipe)
    assert forwards > 6
    again, none = evaluated(recipe)
    assert none == 0
    assert again == first
    assert {len(sample.adapter) for sample in first[1]} == {2}
    assert any(sample.adapter[0] != sample.adapter[1] for sample in first[1])


def test_the_base_is_not_asked_again_for_another_adapter(recipe: Recipe) -> None:
    _, both = evaluated(recipe)
    change_adapter(recipe, lambda name, weight: weight * 2)
    _, one = evaluated(recipe)
    assert one == both / 2


def change_adapter(recipe: Recipe, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    path = find_adapter("shop", recipe.output).folder / "adapter_model.safetensors"
    save_file({name: change(name, weight) for name, weight in load_file(path).items()}, path, {"format": "pt"})


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def adapter_folder(recipe: Recipe) -> Path:
    return find_adapter("shop", recipe.output).folder


def change_base(recipe: Recipe, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change one tensor of the base in place, and what the adapter's card says of the base."""
    path = Path(recipe.base.model) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = change(weights["model.norm.weight"])
    save_file(weights, path, {"format": "pt"})
    accept_base(recipe)


def accept_base(recipe: Recipe) -> None:
    card = adapter_folder(recipe) / "card.json"
    fingerprint = load_base(recipe.base, torch.device("cpu")).fingerprint
    change_json(card, base={**json.loads(card.read_text())["base"], "fingerprint": fingerprint})


def other_template(recipe: Recipe) -> None:
    file = Path(recipe.base.model) / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|end|>", "<|end|> "))
    accept_base(recipe)


def other_tokenizer(recipe: Recipe) -> None:
    """The last merge goes: the same words become other tokens."""
    file = Path(recipe.base.model) / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:-40]
    file.write_text(json.dumps(tree))
    accept_base(recipe)


def with_section(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return recipe.model_copy(update={name: getattr(recipe, name).model_copy(update=changes)})


def other_prompt(recipe: Recipe) -> None:
    file = Path(str(recipe.eval.prompts))
    file.write_text(file.read_text().replace("Give me 5 pizzas", "Give me 6 pizzas"))


Flip = Callable[[Recipe, pytest.MonkeyPatch], Recipe | None]
FLIPS: dict[str, Flip] = {
    "adapter weights": lambda r, _: change_adapter(r, lambda name, w: w * 1.01 if "lora_B" in name else w),
    "adapter config": lambda r, _: change_json(adapter_folder(r) / "adapter_config.json", lora_alpha=31.0),
    "base weights": lambda r, _: change_base(r, lambda w: w * 1.01),
    "base config": lambda r, _: (
        change_json(Path(r.base.model) / "config.json", rms_norm_eps=1e-3),
        accept_base(r),
    )[1],
    "tokenizer": lambda r, _: other_tokenizer(r),
    "chat template": lambda r, _: other_template(r),
    "quantization": lambda r, _: with_section(r, "base", quantization="none"),
    "dtype": lambda r, _: with_section(r, "base", dtype="bfloat16"),
    "temperature": lambda r, _: with_section(r, "generation", temperature=0.8),
    "max_new_tokens": lambda r, _: with_section(r, "generation", max_new_tokens=5),
    "seed": lambda r, _: r.model_copy(update={"seed": 9}),
    "system prompt": lambda r, _: with_section(r, "data", system="Be brief."),
    "prompt": lambda r, _: other_prompt(r),
    "library": lambda r, patch: patch.setattr(comparison, "versions", lambda: {"torch": "9"}),
    "code": lambda r, patch: patch.setattr(comparison, "code_sha256", lambda folder: "other"),
    "processor": lambda r, patch: patch.setattr(comparison, "_device", lambda device: ["cpu", "another"]),
}


@pytest.mark.parametrize("name", FLIPS)
def test_whatever_changes_an_answer_is_never_served_stale(
    name: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, _ = evaluated(recipe)
    changed = FLIPS[name](recipe, monkeypatch) or recipe
    after, forwards = evaluated(changed)
    assert forwards > 0
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "empty"))
    assert after == evaluated(changed)[0], "as from an empty cache"
    if name not in ("library", "code", "processor"):
        assert after != before, "the change changes nothing, so it proves nothing"


def test_what_was_kept_is_told_and_can_be_forgotten(recipe: Recipe) -> None:
    field = the_field(recipe)
    score_all(field, rows(field), None, 512)
    assert recalled(field) == ""
    again = the_field(recipe)
    score_all(again, rows(again), None, 512)
    assert recalled(again).startswith("2 of 2 batches come from an earlier evaluation")
    base = load_base(recipe.base, torch.device("cpu"))
    fresh = make_field(recipe.base, base, [find_adapter("shop", recipe.output)], {}, fresh=True)
    score_all(fresh, rows(fresh), None, 512)
    assert recalled(fresh) == ""


def test_other_rows_are_scored_anew(recipe: Recipe) -> None:
    (before, _), _ = evaluated(recipe)
    (after, _), forwards = evaluated(recipe, text="You get 4 colas.")
    assert forwards == 2
    assert after.heldout.base != before.heldout.base


def test_an_evaluation_broken_off_at_any_forward_pass_ends_as_if_it_had_not_been(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = assistant.generate
    monkeypatch.setattr(assistant, "generate", lambda *a, **k: plain(*a, **k, max_batch_tokens=60))  # several batches
    whole, forwards = evaluated(recipe)
    prompts = load_prompts(str(recipe.eval.prompts), None)
    done, broken = 0, 0
    for stop in range(1, forwards, 7):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache {stop}"))
        field = the_field(recipe)

        def fail(*_: object, left: list[int] = [stop]) -> None:  # noqa: B006 (a counter of this round)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        handle = field.bot.base.model.get_decoder().register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            score_all(field, rows(field), None, 512)
            answer_all(field, prompts, recipe, 2)
        handle.remove()
        again, rest = evaluated(recipe)
        assert again == whole
        assert rest <= forwards - stop + 4  # at most the batch that it was in: 4 tokens each
        done, broken = done + stop + rest, broken + 1
    assert broken > 3


def test_further_adapters_stand_beside_the_first(recipe: Recipe, tmp_path: Path) -> None:
    first = find_adapter("shop", recipe.output)
    other = Path(recipe.output) / "rude"
    other.mkdir()
    for file in first.folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    field = the_field(recipe, "shop", "rude")
    prompts = load_prompts(str(recipe.eval.prompts), None)
    scores, samples = score_all(field, rows(field), None, 512), answer_all(field, prompts, recipe, 1)
    report = evaluation_of(field, a_heading(), scores, samples, {}).report
    (rival,) = report.rivals
    assert (rival.name, rival.kind, rival.heldout_ratio.value) == ("rude", "adapter", 1.0)
    assert rival.gain is not None
    assert (rival.gain.value, rival.fixed, rival.broken) == (0.0, (), ())
    assert all(sample.rivals["rude"] == sample.adapter for sample in samples)
    with pytest.raises(AdapterError, match="'shop' is to be compared with itself"):
        the_field(recipe, "shop", "shop")


def a_heading() -> Heading:
    known = Versions(python="3", torch="2", transformers="5", peft="0", bitsandbytes=None, finetune="0")
    return Heading.model_construct(
        name="shop", base="b", created="2026-01-02T03:04:05Z", versions=known, seed=0,
        generation=Recipe.model_fields["generation"].default, data={},
    )  # fmt: skip
