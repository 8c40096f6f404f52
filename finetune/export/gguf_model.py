"""finetune export: GGUF files for llama.cpp and Ollama, read back before they are called done, and a Modelfile.

merged     the base with the adapter in its weights
base       the base alone, which the adapter's file goes with
adapter    the LoRA branches alone: A and B of each linear, alpha
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import gguf
from torch import Tensor

from finetune.errors import AdapterError, FinetuneError
from finetune.export.container import OutType, Planned, file_type, planned, verify, write
from finetune.export.layout import ROPE_FACTORS, Layout, context_length, layout_of, rope_factors, write_settings
from finetune.export.merged import Merged
from finetune.export.modelfile import render_modelfile
from finetune.export.sources import Source
from finetune.export.subject import Into, Subject, into_of, loaded_base, source_of, subject_of
from finetune.export.vocabulary import Vocabulary, vocabulary_of
from finetune.files import atomic_write_text
from finetune.model.base import Base
from finetune.store.folders import StoredAdapter
from finetune.store.weights import linear_shapes, read_weights
from finetune.training.telemetry import Emit, NoticeEvent

Part = Literal["merged", "base", "adapter"]


@dataclass(frozen=True)
class ExportOptions:
    part: Part = "merged"
    outtype: OutType = "f16"
    into: Into | None = None  # which weights of the base; as in a merge
    base: str | None = None  # where the base lies now, if not where the card says


class Exported(NamedTuple):
    file: Path
    modelfile: Path
    tensors: int
    size: int  # bytes
    difference: float  # largest, between a tensor read back and its source
    context: int  # positions
    notes: tuple[str, ...]  # what llama.cpp does differently


def export_gguf(
    adapter: StoredAdapter, out: str | Path, options: ExportOptions | None = None, emit: Emit | None = None
) -> Exported:
    """Write `out` and a Modelfile beside it; nothing is left of a file that did not come out right.

    Raises ModelError for what llama.cpp would compute differently, AdapterError for another base or for a kind of
    adapter that GGUF has no form for.
    """
    options, emit, out = options or ExportOptions(), emit or (lambda event: None), Path(out)
    if out.suffix != ".gguf":
        raise FinetuneError("should end in .gguf", where=str(out))
    subject = subject_of(adapter, options.base)
    layout = layout_of(subject.config, subject.section.model)
    into = into_of(subject, options.into)
    if into == "4bit":
        raise FinetuneError("--into 4bit is bitsandbytes' format, not GGUF's", fix="export with --outtype q8_0")
    base = loaded_base(subject)
    words = vocabulary_of(base.template, subject.config.vocab_size, base.name)
    writer = gguf.GGUFWriter(None, layout.name)
    if options.part == "adapter":
        made: _Weights = _Branches(subject, base, layout, options.outtype)
        _describe_adapter(writer, subject, _alpha(subject))
    else:
        merged = Merged(subject.config, adapter.folder if options.part == "merged" else None)
        made = _Model(merged, source_of(subject, base, merged, into), layout, options.outtype)
        _describe_model(writer, subject, layout, options, words)
    emit(NoticeEvent(f"writing {len(made.plan)} tensors of the {options.part} as {options.outtype}"))
    difference = _written(writer, out, made)
    modelfile = _write_modelfile(out, base, adapter, options, words)
    notes = (words.note,) if words.note and options.part != "adapter" else ()
    return Exported(
        out, modelfile, len(made.plan), out.stat().st_size, difference, context_length(subject.config), notes
    )


class _Weights:
    """What goes into a file: the plan, and the tensors in its order, as often as they are asked for."""

    plan: list[Planned]

    def tensors(self) -> Iterator[Tensor]:
        raise NotImplementedError


class _Model(_Weights):
    def __init__(self, merged: Merged, source: Source, layout: Layout, outtype: OutType) -> None:
        self.merged, self.source, self.layout = merged, source, layout
        self.factors = rope_factors(layout.config)
        self.plan = [planned(layout.target(entry.name), entry.shape, outtype) for entry in merged.entries]
        if self.factors is not None:
            self.plan.insert(0, planned(ROPE_FACTORS, self.factors.shape, "f32"))

    def tensors(self) -> Iterator[Tensor]:
        if self.factors is not None:
            yield self.factors
        for name, tensor in self.merged.tensors(self.source):
            yield self.layout.arrange(name, tensor)


class _Branches(_Weights):
    """A and B of each linear. llama.cpp scales by alpha / r with one alpha for all: what differs goes into B."""

    def __init__(self, subject: Subject, base: Base, layout: Layout, outtype: OutType) -> None:
        folder = subject.adapter.folder
        found = read_weights(folder, linear_shapes(base.model))
        if not found.plain:
            what = f"has {found.why}, which GGUF has no form for as an adapter alone"
            raise AdapterError(what, where=str(folder), fix="export it merged, without --adapter")
        tied = {"lm_head"} if subject.config.tie_word_embeddings else set()
        if tied & found.modules.keys():
            raise AdapterError(
                "changes an output head that is tied to the embeddings, which llama.cpp cannot tell apart",
                where=str(folder),
                fix="export it merged, without --adapter",
            )
        self.modules: Mapping[str, tuple[Tensor, Tensor, float]] = found.modules
        self.layout, self.alpha = layout, _alpha(subject)
        self.plan = []
        for name, (a, b, _) in found.modules.items():
            target = layout.target(f"{name}.weight")
            self.plan.append(planned(f"{target}.lora_a", a.shape, outtype))
            self.plan.append(planned(f"{target}.lora_b", b.shape, outtype))

    def tensors(self) -> Iterator[Tensor]:
        for name, (a, b, scale) in self.modules.items():
            yield a
            yield self.layout.arrange(f"{name}.weight", b.float() * (scale * len(a) / self.alpha))


def _alpha(subject: Subject) -> float:
    return float(subject.adapter.card.alpha)


def _describe_model(
    writer: gguf.GGUFWriter, subject: Subject, layout: Layout, options: ExportOptions, words: Vocabulary
) -> None:
    named = subject.section.model if options.part == "base" else subject.adapter.name
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(named).name)
    writer.add_file_type(file_type(options.outtype))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_settings(writer, layout.config)
    words.write(writer)


def _describe_adapter(writer: gguf.GGUFWriter, subject: Subject, alpha: float) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(subject.adapter.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)


def _written(writer: gguf.GGUFWriter, out: Path, made: _Weights) -> float:
    """Write beside the target, read it back, and only then put it in place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        write(writer, fresh, made.plan, made.tensors())
        difference = verify(fresh, made.plan, made.tensors())
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    return difference


def _write_modelfile(out: Path, base: Base, adapter: StoredAdapter, options: ExportOptions, words: Vocabulary) -> Path:
    weights, own, note = out.name, None, ""
    if options.part == "adapter":
        weights, own = "base.gguf", out.name
        note = f"FROM needs the base's own file: finetune export {adapter.name} {out.with_name(weights)} --base"
    text = render_modelfile(
        weights,
        own,
        base.template,
        adapter.card.system if options.part != "base" else None,
        adds_bos=words.adds_bos,
        note=note,
    )
    path = out.with_suffix(".Modelfile")
    atomic_write_text(path, text)
    return path
