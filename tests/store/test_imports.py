"""An adapter that PEFT wrote, taken into the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.errors import AdapterError, ModelError
from finetune.files import sha256_file
from finetune.model.base import full_fingerprint
from finetune.recipe import BaseSection
from finetune.store.cards import base_section
from finetune.store.folders import CONFIG, WEIGHTS
from finetune.store.imports import bare_shapes, import_adapter
from finetune.store.weights import linear_shapes
from tests.conftest import save_model
from tests.store.adapters import change_config, load_model


@pytest.fixture
def section(model_folder: Path) -> BaseSection:
    return BaseSection(model=str(model_folder), quantization="none")


def test_the_card_says_what_is_known_and_no_more(foreign: Path, section: BaseSection, tmp_path: Path) -> None:
    found = import_adapter(foreign, base=section, store=tmp_path, full=True)
    card = found.card
    assert (found.folder, card.name, card.method, card.r, card.alpha) == (tmp_path / "helper", "helper", "rslora", 4, 8)
    assert (card.base.model, card.base.verified, card.base.quantization) == ("random-llama", False, "none")
    assert card.base.weights_sha256 == full_fingerprint(section)
    assert (card.seed, card.steps, card.data, card.recipe_sha256, card.metrics) == (None, None, {}, None, {})
    assert card.source is not None
    assert (card.source.kind, card.source.place) == ("import", "helper")
    assert card.files[WEIGHTS] == sha256_file(foreign / WEIGHTS) == sha256_file(found.folder / WEIGHTS)
    assert str(tmp_path) not in (found.folder / "card.json").read_text()
    assert "no training recorded it" in (found.folder / "README.md").read_text()
    assert base_section(found) == section


def test_the_base_may_be_the_one_that_peft_noted(foreign: Path, section: BaseSection, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(foreign, folder)
    change_config(folder, base_model_name_or_path=section.model)
    assert import_adapter(folder, store=tmp_path / "store").card.base.model == "random-llama"
    change_config(folder, base_model_name_or_path=None)
    with pytest.raises(AdapterError, match="names no base; name the base it is for with --base"):
        import_adapter(folder, name="again", store=tmp_path / "store")
    change_config(folder, base_model_name_or_path="/not/here")
    with pytest.raises(ModelError, match="no such folder"):
        import_adapter(folder, name="again", store=tmp_path / "store")


def test_what_does_not_fit_is_not_taken(
    foreign: Path, section: BaseSection, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "small", tokenizer, 0, hidden_size=32)
    with pytest.raises(AdapterError, match="another base"):
        import_adapter(foreign, base=BaseSection(model=str(tmp_path / "small")), store=tmp_path / "store")
    with pytest.raises(AdapterError, match="is no adapter name"):
        import_adapter(foreign, name="../x", base=section, store=tmp_path / "store")
    with pytest.raises(AdapterError, match="is no folder"):
        import_adapter(tmp_path / "nothing", base=section, store=tmp_path / "store")
    import_adapter(foreign, base=section, store=tmp_path / "store")
    with pytest.raises(AdapterError, match="is there already"):
        import_adapter(foreign, base=section, store=tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["helper"]


def test_a_link_to_a_secret_is_not_copied(foreign: Path, section: BaseSection, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(foreign, folder)
    (tmp_path / "secret").write_text(json.dumps(json.loads((folder / CONFIG).read_text())))
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match="leads out of"):
        import_adapter(folder, base=section, store=tmp_path / "store")


def test_the_shapes_of_a_base_need_no_weights(section: BaseSection, model_folder: Path) -> None:
    assert bare_shapes(section) == linear_shapes(load_model(model_folder))
