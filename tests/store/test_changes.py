"""Renaming and removing."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import AdapterError
from finetune.store.changes import remove_adapter, rename_adapter
from finetune.store.folders import find_in_store, list_adapters


def test_a_renamed_adapter_has_its_new_name_everywhere(store: Path) -> None:
    before = find_in_store("shop", store)
    weights = (before.folder / "adapter_model.safetensors").read_bytes()
    found = rename_adapter("shop", "corner-shop", store)
    assert (found.name, found.card.name, found.folder) == ("corner-shop", "corner-shop", store / "corner-shop")
    assert found.card.model_copy(update={"name": "shop"}) == before.card
    assert "# corner-shop" in (found.folder / "README.md").read_text()
    assert (found.folder / "adapter_model.safetensors").read_bytes() == weights
    assert [adapter.name for adapter in list_adapters(store)] == ["corner-shop"]


@pytest.mark.parametrize(
    ("new", "cause"), [("../x", "no adapter name"), ("shop", "is there already"), ("taken", "is there")]
)
def test_a_name_that_cannot_be_given(new: str, cause: str, store: Path) -> None:
    (store / "taken").mkdir()
    with pytest.raises(AdapterError, match=cause):
        rename_adapter("shop", new, store)
    assert find_in_store("shop", store).card.name == "shop"


def test_nothing_is_left_of_what_is_removed(store: Path) -> None:
    assert remove_adapter("shop", store) == store / "shop"
    assert list(store.iterdir()) == []
    with pytest.raises(AdapterError, match=r"no adapter 'shop'.*holds no adapter"):
        remove_adapter("shop", store)


def test_a_broken_adapter_can_be_removed_and_a_folder_of_something_else_cannot(store: Path) -> None:
    (store / "shop/card.json").write_text("{")
    (store / "photos").mkdir()
    (store / "photos/cat.png").write_bytes(b"x")
    with pytest.raises(AdapterError, match="no adapter 'photos'"):
        remove_adapter("photos", store)
    remove_adapter("shop", store)
    assert [path.name for path in store.iterdir()] == ["photos"]


def test_of_a_link_the_link_is_removed(store: Path, trained: Path) -> None:
    (store / "outside").symlink_to(trained / "shop")
    remove_adapter("outside", store)
    assert not (store / "outside").is_symlink()
    assert (trained / "shop/card.json").exists()
    for name in ("..", "../store", "."):
        with pytest.raises(AdapterError, match="no adapter name"):
            remove_adapter(name, store)
