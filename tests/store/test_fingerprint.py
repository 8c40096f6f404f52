"""The fingerprint of a base: fast at any size, and it sees what it looks at."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import pytest

from finetune.model.base import fingerprint_of, full_fingerprint
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe import BaseSection

SLICES, SLICE = 64, 1 << 16


def a_base(model_folder: Path, folder: Path, size: int) -> tuple[BaseSection, Path]:
    """The random base with a weight file of this many bytes, which takes no room: it is a hole."""
    shutil.copytree(model_folder, folder)
    weights = folder / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(size)
    return BaseSection(model=str(folder)), weights


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as data:
        data.seek(place)
        byte = data.read(1)[0]
        data.seek(place)
        data.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("size", "limit"), [(64 << 20, 0.05), (1 << 30, 1.0)])
def test_a_fingerprint_takes_no_time(size: int, limit: float, model_folder: Path, tmp_path: Path) -> None:
    section, _ = a_base(model_folder, tmp_path / "base", size)
    tokenizer, times = load_tokenizer(section), []
    for _ in range(5):
        begin = time.process_time()
        fingerprint_of(section, tokenizer)
        times.append(time.process_time() - begin)
    assert statistics.median(times) <= limit


def test_a_changed_bit_in_any_slice_is_seen_and_one_beside_them_by_the_full_hash(
    model_folder: Path, tmp_path: Path
) -> None:
    size = 64 << 20
    section, weights = a_base(model_folder, tmp_path / "base", size)
    tokenizer = load_tokenizer(section)
    before, whole = fingerprint_of(section, tokenizer), full_fingerprint(section)
    for part in range(SLICES):
        place = size * part // SLICES + (part * 997) % SLICE
        flip(weights, place)
        assert fingerprint_of(section, tokenizer)["weights"] != before["weights"], part
        flip(weights, place)
    assert fingerprint_of(section, tokenizer) == before
    flip(weights, SLICE + 5)  # between the first slice and the second
    assert fingerprint_of(section, tokenizer) == before
    assert full_fingerprint(section) != whole


def test_size_name_and_every_part_count(model_folder: Path, tmp_path: Path) -> None:
    section, weights = a_base(model_folder, tmp_path / "base", 1 << 20)
    before = fingerprint_of(section, load_tokenizer(section))
    with weights.open("ab") as file:
        file.truncate((1 << 20) + 1)
    assert fingerprint_of(section, load_tokenizer(section))["weights"] != before["weights"]
    config = tmp_path / "base/config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    found = fingerprint_of(section, load_tokenizer(section))
    assert [part for part in found if found[part] != before[part]] == ["config", "weights"]
    (tmp_path / "base/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert fingerprint_of(section, load_tokenizer(section))["chat_template"] != before["chat_template"]
