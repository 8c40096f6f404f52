"""finetune merge: a model folder with the adapter in its weights, and a receipt that says what that cost.

adapter + base --Merged.tensors--> shards      one weight at a time
adapter on its base --answered, look--> rows, Views     merged folder --look, compare--> Fidelity --> merge.json
"""

from __future__ import annotations

import gc
import resource
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from finetune.data.encoding import Encoded
from finetune.errors import AdapterError, FinetuneError
from finetune.evaluation.suite import Prompt, load_prompts
from finetune.export.checkpoint import write_rest, write_weights
from finetune.export.fidelity import Views, answered, compare, look
from finetune.export.merged import Merged
from finetune.export.receipt import MeasuredFidelity, Receipt, write_receipt
from finetune.export.subject import (
    Into,
    Precision,
    Subject,
    into_of,
    loaded_base,
    source_of,
    stored_dtype,
    subject_of,
)
from finetune.files import replace_folder, sha256_file
from finetune.model.base import Base, assert_trainable_through, load_base
from finetune.model.device import pick_device
from finetune.model.lora import load_adapter
from finetune.provenance import now, versions
from finetune.recipe import BaseSection
from finetune.store.folders import CONFIG, WEIGHTS, StoredAdapter
from finetune.training.telemetry import Emit, NoticeEvent

SHARD = 2 * 10**9  # bytes of a weight file, which is held in memory while it is written
PROMPTS = 100
_NEW_TOKENS = 64  # of an answer, where no recipe says
_FOUR_BITS = (
    "merging in place quantises the weights to 4 bits a second time, which rounds away part of what was trained",
    "merge --into dequantised, or say --force and read what it costs",
)


@dataclass(frozen=True)
class MergeOptions:
    """How to merge; the defaults keep what the adapter was trained over."""

    into: Into | None = None  # default: dequantised for an adapter that was trained over 4 bits, else original
    dtype: Precision = "auto"  # of the stored weights; auto: the base's. float32 also computes the comparison in it
    base: str | None = None  # where the base lies now, if not where the card says
    prompts: Path | None = None  # held-out prompts to compare on; default: those of the adapter's recipe
    limit: int = PROMPTS  # prompts, spread evenly over the file
    measure: bool = True
    force: bool = False  # merge into 4 bits in spite of what it costs
    shard: int = SHARD


class _Reference(NamedTuple):
    """The adapter on its base, at the tokens of its own answers, and what is known of that base."""

    rows: Sequence[Encoded]
    views: Views | None
    name: str
    fingerprint: dict[str, str]
    dtype: torch.dtype  # of the weights that were written
    files: tuple[Path, ...]


def merge(
    adapter: StoredAdapter, out: str | Path, options: MergeOptions | None = None, emit: Emit | None = None
) -> Receipt:
    """Write the model folder `out`, whole or not at all, and return its receipt.

    Raises AdapterError for another base, a kind of adapter that cannot be merged, or 4 bits without `force`;
    ModelError, DataError as loading the base and reading the prompts do.
    """
    options, emit = options or MergeOptions(), emit or (lambda event: None)
    subject = subject_of(adapter, options.base, options.dtype)
    into = into_of(subject, options.into)
    if into == "4bit" and not (options.force and options.measure):
        raise AdapterError(_FOUR_BITS[0], where=str(adapter.folder), fix=_FOUR_BITS[1])
    prompts = _prompts(subject, options, emit)
    if into == "4bit" and not prompts:
        raise AdapterError("merging into 4 bits needs prompts to measure the cost with", fix="name them with --prompts")
    _refuse_to_overwrite(Path(out))
    merged = Merged(subject.config, adapter.folder)
    with replace_folder(out) as fresh:
        reference = _write(fresh, subject, merged, into, options, prompts, emit)
        gc.collect()  # the base is a web of references: without this it would be in memory for a while yet
        fidelity = _compare(fresh, reference, emit)
        receipt = _receipt(subject, merged, into, reference, fidelity)
        write_receipt(fresh, receipt)
    return receipt


def prompts_of(subject: Subject, path: Path | None, limit: int) -> tuple[Prompt, ...]:
    """Held-out prompts, evenly spread over their file: those of `path`, else the recipe's; none if there is no file."""
    named = subject.recipe.eval.prompts if subject.recipe else None
    found = path or (Path(named) if named and Path(named).is_file() else None)
    if found is None:
        return ()
    prompts = load_prompts(found, subject.adapter.card.system)
    count = min(limit, len(prompts))
    return tuple(prompts[i * len(prompts) // count] for i in range(count))


def _prompts(subject: Subject, options: MergeOptions, emit: Emit) -> tuple[Prompt, ...]:
    if not options.measure:
        return ()
    prompts = prompts_of(subject, options.prompts, options.limit)
    if not prompts:
        emit(NoticeEvent("no held-out prompts were found, so nothing is measured; name a file with --prompts"))
    return prompts


def _write(  # noqa: PLR0913
    folder: Path,
    subject: Subject,
    merged: Merged,
    into: Into,
    options: MergeOptions,
    prompts: Sequence[Prompt],
    emit: Emit,
) -> _Reference:
    """Load the base, look at what the adapter says on it, and write the merged model; the base is gone afterwards."""
    base = loaded_base(subject)
    dtype = stored_dtype(subject, base, options.dtype)
    adapter, rows, views, model = subject.adapter, list[Encoded](), None, None
    if prompts:
        emit(NoticeEvent(f"answering {len(prompts)} prompts with {adapter.name} on its base"))
        model = load_adapter(base, adapter.folder).requires_grad_(False)
        rows = answered(base, prompts, subject.recipe.generation.max_new_tokens if subject.recipe else _NEW_TOKENS)
        views = look(base, rows)
    emit(NoticeEvent(f"adding {adapter.name} to {len(merged.changed)} of {len(merged.entries)} tensors ({into})"))
    if into == "4bit":
        files = _write_four_bits(folder, model, base, options.shard)
    else:
        subject.config.tie_word_embeddings = bool(merged.owners) and not merged.untied
        tensors = merged.tensors(source_of(subject, base, merged, into))
        files = write_weights(folder, merged.entries, tensors, dtype, options.shard)
        write_rest(folder, base, subject.section, subject.config, dtype)
    return _Reference(rows, views, base.name, base.fingerprint, dtype, tuple(files))


def _compare(folder: Path, reference: _Reference, emit: Emit) -> MeasuredFidelity | None:
    """Load what was written, as a base like any other, and hold it against the reference."""
    if reference.views is None:
        return None
    emit(NoticeEvent(f"comparing over {len(reference.rows)} answers"))
    computed = "bfloat16" if reference.dtype == torch.bfloat16 else "float32"
    # "none": weights in 4 bits say so themselves.
    section = BaseSection.model_validate({"model": str(folder), "quantization": "none", "dtype": computed})
    written = load_base(section, pick_device())
    for part in ("tokenizer", "chat_template"):
        if written.fingerprint[part] != reference.fingerprint[part]:
            raise FinetuneError(f"the merged model's {part} came out other than the base's")
    found = compare(written, reference.rows, reference.views, look(written, reference.rows))
    return MeasuredFidelity(**asdict(found))


def _receipt(
    subject: Subject, merged: Merged, into: Into, reference: _Reference, fidelity: MeasuredFidelity | None
) -> Receipt:
    adapter = subject.adapter
    return Receipt(
        adapter=adapter.name,
        adapter_sha256={file: sha256_file(adapter.folder / file) for file in (WEIGHTS, CONFIG)},
        base=reference.name,
        revision=subject.section.revision,
        fingerprint=reference.fingerprint,
        into=into,
        dtype=str(reference.dtype).removeprefix("torch."),
        computed_in="float32" if subject.section.dtype == "float32" else "bfloat16",
        system=adapter.card.system,
        changed=len(merged.changed),
        tensors=len(merged.entries),
        files={file.name: sha256_file(file) for file in reference.files},
        size=sum(file.stat().st_size for file in reference.files),
        fidelity=fidelity,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        versions=versions(),
        created=now(),
    )


def _write_four_bits(folder: Path, model: Any, base: Base, limit: int) -> list[Path]:
    """PEFT's own merge into 4-bit weights, saved as bitsandbytes keeps them; `model`: the base with the adapter."""
    assert_trainable_through(base.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit")  # it is measured instead
        plain = model.merge_and_unload()
    disable_progress_bar()
    try:
        plain.save_pretrained(folder, max_shard_size=limit)
    finally:
        enable_progress_bar()
    base.tokenizer.save_pretrained(folder)
    return sorted(folder.glob("*.safetensors"))


def _refuse_to_overwrite(out: Path) -> None:
    """A folder is replaced as a whole, so only one that this command wrote may be."""
    if out.is_dir() and any(out.iterdir()) and not (out / "merge.json").is_file():
        raise FinetuneError("is a folder that holds something else", where=str(out), fix="name another one")
