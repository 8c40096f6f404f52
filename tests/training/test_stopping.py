"""Early stopping: when a run ends, which adapter is kept, and that a resumed run decides alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.data.examples import Example
from finetune.errors import RecipeError
from finetune.pipeline import train
from finetune.recipe import TrainSection, load_recipe
from finetune.store.folders import find_adapter
from finetune.training.stopping import Best
from finetune.training.telemetry import Event, NoticeEvent
from tests.conftest import MakeBase
from tests.training.helpers import encoded, make_job, run, weights
from tests.training.test_optimizer import Stopped, Until

# So high a rate learns the few training rows by heart, and the held-out loss soon rises.
SECTION = TrainSection(epochs=40.0, batch_size=4, learning_rate=0.02, schedule="constant", patience=2)


@pytest.mark.parametrize(
    ("losses", "patience", "done", "best"),
    [
        ([3.0], 1, False, 0),
        ([3.0, 3.0], 1, True, 0),
        ([3.0, 2.0, 2.5], 2, False, 1),
        ([3.0, 2.0, 2.5, 2.1], 2, True, 1),
        ([3.0, 2.0, 2.5, 1.9], 2, False, 3),
        ([float("nan"), 2.0], 1, False, 1),
        ([3.0, float("nan")], 1, True, 0),
        ([3.0, 4.0, 5.0], None, False, None),
    ],
)
def test_it_waits_for_a_fall_as_often_as_it_may(
    losses: list[float], patience: int | None, done: bool, best: int | None
) -> None:
    found, model = Best(patience), nn.Linear(1, 1, bias=False)
    for step, loss in enumerate(losses):
        with torch.no_grad():
            model.weight.fill_(step)
        found.note(step, loss, dict(model.named_parameters()))
    assert (found.done, found.step) == (done, best)
    found.put_back(dict(model.named_parameters()))
    assert model.weight.item() == (len(losses) - 1 if best is None else best)


def test_the_run_stops_and_keeps_its_best_adapter_also_when_resumed(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    found, notices = [], []
    for name, limits in (("whole", [None]), ("parts", [11, None])):
        for limit in limits:
            base, events = make_base(), Until(limit)
            rows = encoded(base, examples)
            job = make_job(base, rows[:8], tmp_path / name, SECTION, checkpoint_every=3)
            job = replace(job, heldout=rows[8:16])
            try:
                result = run(job, events)  # type: ignore[arg-type]
            except Stopped:
                assert limit == 11
        found.append(weights(job.model))
        notices.append([event.text for event in events if isinstance(event, NoticeEvent)][-1])
    assert notices[0] == notices[1]
    losses = {entry["step"]: entry["heldout_loss"] for entry in result.log if "heldout_loss" in entry}
    assert result.kept_step == min(losses, key=lambda step: losses[step])
    assert result.progress.step == result.kept_step + 2 * 2 < job.steps
    epoch = result.kept_step // 2
    text = f"stopped after step {result.progress.step} of 80; the adapter of epoch {epoch} (step {result.kept_step}) is"
    assert notices[0].startswith(text)
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    base.model.eval()
    assert losses[result.kept_step] == pytest.approx(scored(job), rel=1e-6)


def scored(job: object) -> float:
    from finetune.training.scoring import score_rows

    scores = score_rows(job.base.model, job.heldout, 4096, isolate=True)  # type: ignore[attr-defined]
    return sum(score.nll for score in scores) / sum(score.tokens for score in scores)


def test_the_card_says_which_step_was_kept(model_folder: Path, jsonl: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: shop\noutput: {tmp_path}\nbase: {{model: {model_folder}, dtype: float32}}\n"
        f"data: {{path: {jsonl}, heldout: 0.2, max_length: 128}}\nadapter: {{r: 4}}\n"
        "train: {epochs: 30, batch_size: 8, learning_rate: 0.2, schedule: constant, patience: 1}\n"
    )
    events: list[Event] = []
    card = train(load_recipe(recipe), emit=events.append).card
    log = [json.loads(line) for line in (tmp_path / "shop/log.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["heldout_loss"] for entry in log if "heldout_loss" in entry}
    assert card.kept_step is not None
    assert card.kept_step < card.steps < 120
    assert card.loss["heldout"] == losses[card.kept_step] == min(losses.values())
    assert find_adapter("shop", tmp_path).card == card


def test_without_held_out_rows_there_is_nothing_to_stop_for(
    make_base: MakeBase, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    base = make_base()
    job = make_job(base, encoded(base, examples), tmp_path / "none", SECTION)
    with pytest.raises(RecipeError, match=r"train.patience is 2, but no row is held out .* set data.heldout"):
        run(job)
