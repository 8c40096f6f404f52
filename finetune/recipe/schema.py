"""The recipe: typed sections, the only place where a default is written.

Every field says in its description what it does and in which unit.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _check_name(name: str) -> str:
    """The adapter's name is a folder's name, everywhere and without surprises."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    raise ValueError("should be 1 to 64 of the letters a-z and A-Z, digits, '.', '_', '-', the first no sign")


Name = Annotated[str, AfterValidator(_check_name)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Format = Literal["instruction", "alpaca", "prompt_completion", "messages"]


class Section(BaseModel):
    """Strict: unknown keys and values of the wrong type are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BaseSection(Section):
    model: str = Field(min_length=1, description="'tiny' (built in), a Hub id, or a local folder")
    revision: str | None = Field(None, description="Hub branch, tag or commit; pin a commit for repeatable runs")
    quantization: Literal["nf4", "none"] = Field("nf4", description="nf4: 4-bit frozen base (QLoRA); none: 16/32-bit")
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="compute dtype; auto: bfloat16")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class MixSource(Section):
    path: str = Field(min_length=1, description="a further data set to train on, for example to limit forgetting")
    format: Format = Field("messages", description="format of its rows")
    weight: float = Field(gt=0.0, le=100.0, description="its examples per example of data.path, in each epoch")


class DataSection(Section):
    path: str = Field(min_length=1, description="training rows: .jsonl, .json, .csv or .parquet")
    format: Format = Field("instruction", description="how a row is read")
    heldout: str | Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.1, description="held-out rows: a file, or the share of data.path to hold out by content hash"
    )
    system: str | None = Field(
        None, description="system prompt of rows and prompts that have none (mix and eval.general stay as they are)"
    )
    max_length: Positive = Field(512, description="tokens per example, hard limit")
    too_long: Literal["error", "drop"] = Field("error", description="what to do with longer examples")
    mix: tuple[MixSource, ...] = Field((), description="further data sets, mixed in by weight")


class AdapterSection(Section):
    method: Literal["lora", "rslora", "dora"] = Field("lora", description="kind of adapter")
    r: Positive = Field(16, description="rank: inner dimension of B·A")
    alpha: float = Field(32.0, gt=0.0, description="strength; scale = alpha/r (rslora: alpha/sqrt(r))")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the LoRA input, while training")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="linear layers that get an adapter; all-linear: every one but the head"
    )


class TrainSection(Section):
    epochs: float = Field(3.0, gt=0.0, description="passes over the training rows")
    max_steps: Positive | None = Field(None, description="stop after this many optimizer steps")
    learning_rate: float = Field(2e-4, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warm-up")
    warmup: Share = Field(0.03, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="decoupled, on the adapter's matrices")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradient clipping threshold (L2 norm)")
    batch_size: Positive = Field(16, description="examples per optimizer step, over all processes")
    micro_batch_tokens: Positive = Field(4096, description="tokens per forward pass; memory, never the result")
    checkpoint_every: Positive = Field(100, description="optimizer steps between checkpoints to resume from")
    trackers: tuple[str, ...] = Field((), description="experiment trackers by accelerate's names, e.g. tensorboard")


class GenerationSection(Section):
    temperature: float = Field(0.0, ge=0.0, le=10.0, description="0: greedy; else sampling temperature")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="sample from the smallest set with this probability")
    max_new_tokens: Positive = Field(128, description="tokens per answer at most")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="strings that end an answer (not part of it)"
    )
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="per earlier occurrence in the answer")
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="once a token occurs in the answer")


class Gate(Section):
    model_config = ConfigDict(allow_inf_nan=True)  # refused later, with a reason that fits the metric

    at_least: float | None = Field(None, description="the metric's interval must lie at or above this")
    at_most: float | None = Field(None, description="the metric's interval must lie at or below this")

    @model_validator(mode="after")
    def one_bound(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either at_least or at_most")
        return self


Metric = Literal[
    "prompts.pass_rate",
    "prompts.gain",
    "perplexity.heldout",
    "perplexity.heldout.ratio",
    "perplexity.general",
    "perplexity.general.ratio",
]


class EvalSection(Section):
    prompts: str | None = Field(None, description="YAML file of held-out prompts with checks")
    general: str | None = Field(None, description="conversations (messages format) that measure forgetting")
    gates: dict[Metric, Gate] = Field({}, description="conditions on metrics; they decide the exit code")


class Recipe(Section):
    """Everything about one run."""

    name: Name = Field(description="the adapter's name")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    output: str = Field("adapters", min_length=1, description="folder that gets the adapter folder")
    base: BaseSection
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    train: TrainSection = TrainSection()
    generation: GenerationSection = GenerationSection()
    eval: EvalSection = EvalSection()
