"""The recipe: typed sections, the only place where a default is written.

Every field says in its description what it does and in which unit. docs/recipe.md and
docs/recipe.schema.json are made from this file by `make docs`.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from finetune.recipe.contradictions import in_columns, in_methods, in_recipe, in_targets, refuse

# Built-in format -> the keys of its rows, which `columns` may name.
FORMAT_COLUMNS: dict[str, tuple[str, ...]] = {
    "instruction": ("instruction", "output", "system"),
    "alpaca": ("instruction", "input", "output", "system"),
    "prompt_completion": ("prompt", "completion", "system"),
    "question_answer": ("question", "answer", "context", "system"),
    "messages": ("messages", "tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "text": ("text",),
}
CUSTOM_FORMAT = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _check_name(name: str) -> str:
    """The adapter's name is a folder's name, everywhere and without surprises."""
    if re.fullmatch(NAME[1:-1], name):
        return name
    raise ValueError("should be 1 to 64 of the letters a-z and A-Z, digits, '.', '_', '-', the first no sign")


def _check_format(name: str) -> str:
    if name in FORMAT_COLUMNS or re.fullmatch(CUSTOM_FORMAT[1:-1], name):
        return name
    close = difflib.get_close_matches(name[:80].lower(), FORMAT_COLUMNS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    choices = ", ".join(map(repr, FORMAT_COLUMNS))
    raise ValueError(f"is no format; {hint}Choose {choices} or a function of yours, 'package.module:function'")


_FORMAT_SCHEMA = {"anyOf": [{"enum": list(FORMAT_COLUMNS)}, {"pattern": CUSTOM_FORMAT}], "type": "string"}
Name = Annotated[str, AfterValidator(_check_name), WithJsonSchema({"type": "string", "pattern": NAME})]
Format = Annotated[str, AfterValidator(_check_format), WithJsonSchema(_FORMAT_SCHEMA)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
# What each does, and its published settings: docs/methods.md.
Method = Literal["lora", "rslora", "dora", "pissa", "olora", "eva", "loftq", "lora+", "neftune"]


class Section(BaseModel):
    """Strict: unknown keys and values of the wrong type are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BaseSection(Section):
    model: str = Field(min_length=1, description="'tiny' (built in), a Hub id, or a local folder")
    revision: str | None = Field(None, description="Hub branch, tag or commit; pin a commit for repeatable runs")
    quantization: Literal["nf4", "none"] = Field("nf4", description="nf4: 4-bit frozen base (QLoRA); none: 16/32-bit")
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="compute dtype; auto: bfloat16")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class RowSource(Section):
    path: str = Field(
        min_length=1,
        description="training rows: a file (.jsonl .json .csv .tsv .parquet .arrow, text ones also .gz .zst), "
        "a folder, a glob, or hf://datasets/OWNER/NAME@REVISION[/GLOB]",
    )
    format: Format = Field("instruction", description="how a row is read; own ones as package.module:function")
    columns: dict[str, Text] = Field(
        {}, description="the format's key: the column's name in the file, where it differs"
    )

    @model_validator(mode="after")
    def columns_fit_the_format(self) -> RowSource:
        refuse([*in_columns(self, FORMAT_COLUMNS.get(self.format))])
        return self


class MixSource(RowSource):
    path: str = Field(
        min_length=1, description="a further data set to train on, for example to limit forgetting; as data.path"
    )
    format: Format = Field("messages", description="how its rows are read, as data.format")
    weight: float = Field(gt=0.0, le=100.0, description="its examples per example of data.path, in each epoch")


class DataSection(RowSource):
    heldout: Text | Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.1, description="held-out rows: a file, or the share of data.path to hold out by content hash"
    )
    system: str | None = Field(
        None, description="system prompt of rows and prompts that have none (mix and eval.general stay as they are)"
    )
    max_length: Positive = Field(512, description="tokens per example, hard limit")
    too_long: Literal["error", "drop"] = Field("error", description="what to do with longer examples")
    mix: tuple[MixSource, ...] = Field((), description="further data sets, mixed in by weight")


class AdapterSection(Section):
    method: Method | Annotated[tuple[Method, ...], Field(min_length=1)] = Field(
        "lora", description="kind of adapter, or a list: a kind, at most one start, lora+, neftune (docs/methods.md)"
    )
    r: Positive = Field(16, description="rank: inner dimension of B·A")
    alpha: float = Field(32.0, gt=0.0, description="strength; scale = alpha/r (rslora: alpha/sqrt(r))")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the LoRA input, while training")
    target_modules: Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        "all-linear",
        description="linear layers that get an adapter: names, or layers.20-29 or layers.20-29.q_proj for some decoder "
        "layers; all-linear: every one but the head",
    )
    modules_to_save: tuple[Text, ...] = Field(
        (), description="embeddings and norms that are trained in full and saved with the adapter"
    )

    @property
    def methods(self) -> tuple[Method, ...]:
        return (self.method,) if isinstance(self.method, str) else self.method

    @model_validator(mode="after")
    def methods_and_targets_make_sense(self) -> AdapterSection:
        refuse([*in_methods(self.methods), *in_targets(self.target_modules)])
        return self


class TrainSection(Section):
    epochs: float = Field(3.0, gt=0.0, description="passes over the training rows")
    max_steps: Positive | None = Field(None, description="stop after this many optimizer steps")
    learning_rate: float = Field(2e-4, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="after the warm-up over the first 3% of the steps"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8bit: moments in 8 bits instead of 32; paged: and moved to the CPU where memory is short"
    )
    patience: Positive | None = Field(
        None, description="stop when the held-out loss has not fallen for so many epochs; the best adapter is kept"
    )
    batch_size: Positive = Field(16, description="examples per optimizer step, over all processes")


class GenerationSection(Section):
    temperature: float = Field(0.0, ge=0.0, le=10.0, description="0: greedy; else sampling temperature")
    max_new_tokens: Positive = Field(128, description="tokens per answer at most")


BOUNDS = ("at_least", "at_most", "no_worse_than_base", "no_worse_than_baseline")


class Gate(Section):
    model_config = ConfigDict(allow_inf_nan=True)  # refused later, with a reason that fits the metric

    at_least: float | None = Field(None, description="the metric's 95% interval must lie at or above this")
    at_most: float | None = Field(None, description="the metric's 95% interval must lie at or below this")
    no_worse_than_base: float | None = Field(
        None, description="the margin by which the adapter may be worse than the base: 0.05 is 5 points, or 5%"
    )
    no_worse_than_baseline: float | None = Field(
        None, description="the margin by which it may be worse than the earlier report in --baseline"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the two no_worse bounds, each one-sided")

    @model_validator(mode="after")
    def some_bound(self) -> Gate:
        if not self.bounds():
            raise ValueError(f"give one of {', '.join(BOUNDS)}")
        return self

    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by their key."""
        return {key: value for key in BOUNDS if (value := getattr(self, key)) is not None}


Metric = Literal[
    "prompts.pass_rate",
    "prompts.gain",
    "perplexity.heldout",
    "perplexity.heldout.ratio",
    "perplexity.general",
    "perplexity.general.ratio",
]


class EvalSection(Section):
    prompts: Text | None = Field(None, description="YAML file of held-out prompts with checks")
    general: Text | None = Field(None, description="conversations (messages format) that measure forgetting")
    tasks: tuple[Text, ...] = Field(
        (), description="lm-eval tasks, by name or a .yaml file of yours; needs pip install 'finetune[tasks]'"
    )
    gates: dict[Metric, Gate] = Field({}, description="conditions on metrics; they decide the exit code")


class Recipe(Section):
    """Everything about one run."""

    extends: Text | None = Field(
        None,
        description="a recipe to take over, relative to this file; sections are merged key by key",
    )
    name: Name = Field(description="the adapter's name")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    output: str = Field("adapters", min_length=1, description="folder that gets the adapter folder")
    base: BaseSection = Field(description="the frozen model")
    data: DataSection = Field(description="what is trained on and what is held out")
    adapter: AdapterSection = Field(AdapterSection(), description="what is trained")
    train: TrainSection = Field(TrainSection(), description="how it is trained")
    generation: GenerationSection = Field(GenerationSection(), description="how prompts are answered in an evaluation")
    eval: EvalSection = Field(EvalSection(), description="how the adapter is judged")

    @model_validator(mode="after")
    def no_contradictions(self) -> Recipe:
        refuse([*in_recipe(self)])
        return self
