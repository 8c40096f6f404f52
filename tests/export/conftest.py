"""One stored adapter and one prompts file for the whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.store.folders import StoredAdapter
from tests.conftest import save_model
from tests.export.adapters import PROMPTS, store_adapter


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> StoredAdapter:
    """A plain adapter on the random Llama in NF4."""
    return store_adapter(tmp_path_factory.mktemp("store") / "plain", model_folder, system="Be short.")


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Another base of the same shape."""
    folder = tmp_path_factory.mktemp("models") / "other-llama"
    save_model(folder, tokenizer, seed=1)
    return folder
