"""llama.cpp itself on the exported files. Needs llama-cpp-python, which no extra installs: it builds for minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.data.encoding import encode_prompt
from finetune.export.gguf_model import ExportOptions, export_gguf
from finetune.export.merge import prompts_of
from finetune.export.subject import subject_of
from finetune.model.hub import local_path
from finetune.model.tokenizer import load_chat_template
from finetune.store.folders import find_adapter

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = pytest.mark.slow
ANSWERS = 5
TEXTS = (
    *(
        "",
        " ",
        "  a  b   c",
        "\n\n x\t\ty \n",
        "12345 6 7٣٤ ½ x²",
        "naïve café 你好 😀👍🏽",
        "<|end|> literal <|user|>",
    ),
    *("a" * 300, "tab\t\t\tend  ", "Ünïcödé ǅ ẞ", "\u00a0nbsp\u2003em", "'s't're", "...!!!???", "x  \n  y"),
)


def load(file: Path, **options: Any) -> Any:
    """Keys and values in fp32: llama.cpp keeps them in f16 by default."""
    plain = {"n_ctx": 256, "n_threads": 1, "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
    return llama_cpp.Llama(str(file), flash_attn=False, **plain, **options)


def says(model: Any, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    model.reset()
    model.eval(list(ids))
    return model.scores[: len(ids)].copy()  # type: ignore[no-any-return]


def test_llama_cpp_says_what_transformers_says(tmp_path: Path) -> None:
    stored = find_adapter("pizza")
    subject = subject_of(stored)
    folder = local_path(subject.section)
    template = load_chat_template(subject.section)
    for part in ("merged", "base", "adapter"):
        export_gguf(stored, tmp_path / f"{part}.gguf", ExportOptions(part, "f32", "original"))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = PeftModel.from_pretrained(base, str(stored.folder)).eval()
    merged = load(tmp_path / "merged.gguf")
    pair = load(tmp_path / "base.gguf", lora_path=str(tmp_path / "adapter.gguf"))
    for prompt in prompts_of(subject, None, ANSWERS):
        ids = torch.tensor([encode_prompt(prompt.messages, template)])
        stops = sorted(template.stop_ids)
        answer = ours.generate(input_ids=ids, do_sample=False, max_new_tokens=32, eos_token_id=stops, pad_token_id=0)
        with torch.no_grad():
            want = ours(input_ids=answer, use_cache=False).logits[0].numpy()
        for theirs in (merged, pair):
            found = says(theirs, answer[0].tolist())
            assert np.abs(found - want).max() < 1e-3
            assert (found.argmax(-1) == want.argmax(-1)).all()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = Path("data/general/train.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    for text in (*TEXTS, *rows):
        assert merged.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"], text
