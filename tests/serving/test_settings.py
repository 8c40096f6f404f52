"""A recipe's settings are enough to answer with; chat, generate and the server know more."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune.recipe import GenerationSection
from finetune.serving.settings import SamplingSettings, sampling


def test_a_recipes_settings_are_completed() -> None:
    settings = sampling(GenerationSection(temperature=0.5, max_new_tokens=7))
    assert settings == SamplingSettings(temperature=0.5, max_new_tokens=7)
    assert (settings.stop, settings.frequency_penalty, settings.presence_penalty) == ((), 0.0, 0.0)
    assert sampling(None) == SamplingSettings()


def test_whole_settings_stay_what_they_are() -> None:
    settings = SamplingSettings(stop=("a",), presence_penalty=1.0)
    assert sampling(settings) is settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": ("",)},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -3.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplingSettings.model_validate(wrong)
