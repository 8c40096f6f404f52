"""merge.json: what was merged into what, and how far the result is from the adapter on its base."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

RECEIPT = "merge.json"


class MeasuredFidelity(BaseModel):
    """The adapter on its base against the merged model, at every token of the former's greedy answers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: int
    tokens: int
    kl: float  # nats per token
    kl_max: float
    agreement: float
    same_answers: int


class Receipt(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = 1
    adapter: str
    adapter_sha256: dict[str, str]
    base: str
    revision: str | None
    fingerprint: dict[str, str]  # of that base
    into: str
    dtype: str  # of the stored weights
    computed_in: str  # of the adapter on its base, in the comparison
    system: str | None  # the system prompt that the adapter was trained with
    changed: int  # tensors that the adapter changed
    tensors: int
    files: dict[str, str]  # weight file -> sha256
    size: int  # bytes of the weight files
    fidelity: MeasuredFidelity | None
    peak_memory_bytes: int  # of the process
    versions: dict[str, str]
    created: str

    def lines(self) -> list[str]:
        """What a person is told."""
        told = [
            f"merged {self.adapter} into the {_INTO[self.into]}: {self.changed} of {self.tensors} tensors changed, "
            f"{self.size / 2**20:,.1f} MiB in {self.dtype}, peak memory {self.peak_memory_bytes / 2**20:,.0f} MiB"
        ]
        if self.fidelity is None:
            return [*told, "not measured: how far it is from the adapter on its base"]
        found = self.fidelity
        return [
            *told,
            f"KL(adapter on its base || merged) {found.kl:.3g} nats per token (worst token {found.kl_max:.3g}), "
            f"greedy agreement {found.agreement:.2%} over {found.tokens:,} tokens, "
            f"same answer to {found.same_answers} of {found.prompts} prompts",
        ]


_INTO = {
    "original": "base as it was before quantisation",
    "dequantised": "dequantised base",
    "4bit": "base in 4 bits, quantised again",
}
_README = """---
base_model: {base}
library_name: transformers
tags: [merged, finetune]
---

# {adapter}, merged

The adapter `{adapter}` in the weights of `{base}`{revision}: the {into}, stored in {dtype}.

{told}
{system}
`{receipt}` holds the hashes of the adapter, the base and the weight files.
"""


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write merge.json and a model card with the same numbers."""
    (folder / RECEIPT).write_text(receipt.model_dump_json(indent=2) + "\n", encoding="utf-8")
    system = f"\nIt was trained with this system prompt:\n\n> {receipt.system}\n" if receipt.system else ""
    text = _README.format(
        base=receipt.base,
        adapter=receipt.adapter,
        revision=f" at revision `{receipt.revision}`" if receipt.revision else "",
        into=_INTO[receipt.into],
        dtype=receipt.dtype,
        told="\n".join(f"- {line}" for line in receipt.lines()),
        system=system,
        receipt=RECEIPT,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
