"""Adapters that must not be loaded: each is refused at once, with words that name the cause."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path

import pytest

from finetune.errors import AdapterError
from finetune.store.folders import CONFIG, WEIGHTS
from finetune.store.weights import linear_shapes, read_weights
from tests.store.adapters import load_model, make
from tests.store.corpus import CORPUS

SECONDS = 2.0  # each takes some milliseconds; a machine may be busy


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, dict[str, tuple[int, int]]]:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    model = load_model(model_folder)
    linears = linear_shapes(model)
    make(model, folder)
    assert read_weights(folder, linears).plain
    return folder, linears


@pytest.mark.parametrize("name", CORPUS)
def test_a_malformed_adapter_is_refused_with_its_cause(
    name: str, good: tuple[Path, dict[str, tuple[int, int]]], tmp_path: Path
) -> None:
    spoil, cause = CORPUS[name]
    folder = tmp_path / "adapter"
    shutil.copytree(good[0], folder)
    spoil(folder)
    begin = time.perf_counter()
    with pytest.raises(AdapterError, match=cause) as refused:
        read_weights(folder, good[1])
    assert time.perf_counter() - begin < SECONDS
    assert str(folder) in str(refused.value)
    assert len(str(refused.value)) < 700


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 100


def test_refusals_take_a_tenth_of_a_second_and_little_memory(
    good: tuple[Path, dict[str, tuple[int, int]]], tmp_path: Path
) -> None:
    """The median is held, one by one they depend on what else the machine does."""
    times = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (spoil, _) in enumerate(CORPUS.values()):
        folder = tmp_path / str(number)
        shutil.copytree(good[0], folder)
        spoil(folder)
        begin = time.process_time()
        with pytest.raises(AdapterError):
            read_weights(folder, good[1])
        times.append(time.process_time() - begin)
    assert max(times) < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_a_folder_cut_off_anywhere_is_refused(good: tuple[Path, dict[str, tuple[int, int]]], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(good[0], folder)
    whole = (folder / WEIGHTS).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 100)):
        (folder / WEIGHTS).write_bytes(whole[:place])
        with pytest.raises(AdapterError, match=r"cut off|bytes of tensors"):
            read_weights(folder, good[1])
    text = (folder / CONFIG).read_text()
    (folder / WEIGHTS).write_bytes(whole)
    for place in range(0, len(text.rstrip()), 97):
        (folder / CONFIG).write_text(text[:place])
        with pytest.raises(AdapterError, match="is no JSON"):
            read_weights(folder, good[1])


def test_every_flipped_byte_of_a_header_is_refused_or_harmless(
    good: tuple[Path, dict[str, tuple[int, int]]], tmp_path: Path
) -> None:
    """Whatever is read then has the names and shapes that the base needs."""
    folder = tmp_path / "adapter"
    shutil.copytree(good[0], folder)
    whole = bytearray((folder / WEIGHTS).read_bytes())
    expected = {name: (a.shape, b.shape) for name, (a, b, _) in read_weights(good[0], good[1]).modules.items()}
    length = int.from_bytes(whole[:8], "little")
    refused = 0
    for place in range(0, 8 + length, 11):
        spoilt = whole.copy()
        spoilt[place] ^= 0x11
        (folder / WEIGHTS).write_bytes(spoilt)
        try:
            found = read_weights(folder, good[1]).modules
        except AdapterError:
            refused += 1
        else:
            assert {name: (a.shape, b.shape) for name, (a, b, _) in found.items()} == expected
    assert refused > 0.8 * (8 + length) / 11


def test_json_of_the_good_one_is_what_peft_writes(good: tuple[Path, dict[str, tuple[int, int]]]) -> None:
    assert json.loads((good[0] / CONFIG).read_text())["peft_type"] == "LORA"
