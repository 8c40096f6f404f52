"""The recipe: one strict YAML file that says everything about a run."""

from finetune.recipe.load import dump_recipe, load_recipe, read_yaml
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
    "TrainSection",
    "dump_recipe",
    "load_recipe",
    "read_yaml",
]
