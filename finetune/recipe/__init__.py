"""The recipe: one strict YAML file that says everything about a run."""

from finetune.recipe.layers import read_yaml
from finetune.recipe.load import Resolved, load_recipe, resolve_recipe
from finetune.recipe.schema import (
    AdapterSection,
    BaseSection,
    DataSection,
    EvalSection,
    Gate,
    GenerationSection,
    Metric,
    MixSource,
    Recipe,
    TrainSection,
)
from finetune.recipe.write import dump_recipe, show_recipe

__all__ = [
    "AdapterSection",
    "BaseSection",
    "DataSection",
    "EvalSection",
    "Gate",
    "GenerationSection",
    "Metric",
    "MixSource",
    "Recipe",
    "Resolved",
    "TrainSection",
    "dump_recipe",
    "load_recipe",
    "read_yaml",
    "resolve_recipe",
    "show_recipe",
]
