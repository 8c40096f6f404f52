"""Adapters on the Hugging Face Hub: put there with their card, taken from there at one commit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

from finetune.errors import AdapterError, FinetuneError
from finetune.files import replace_folder, sha256_file
from finetune.hubs import find_cause, is_hub_error
from finetune.recipe import BaseSection
from finetune.store.cards import RECIPE, STEADY, portable, steady_files
from finetune.store.difference import own_shapes
from finetune.store.folders import CARD, CONFIG, WEIGHTS, Card, Source, StoredAdapter, find_in_store, read_card
from finetune.store.imports import import_adapter
from finetune.store.places import check_inside, check_name, copy_file, place_in_store
from finetune.store.readme import render_readme
from finetune.store.weights import read_weights

_REPORT = ("report.md", "report.json")
_PULLED = [*STEADY, CARD, *(f"report/{name}" for name in _REPORT)]
_CAUSES = {
    "GatedRepoError": "it is gated: its owner must grant access first",
    "RevisionNotFoundError": "it has no such revision",
    "RepositoryNotFoundError": "there is no such repository, or it is private; run `hf auth login`",
    "HFValidationError": "it is no valid name of a repository; write OWNER/NAME",
    "LocalTokenNotFoundError": "you are not logged in; run `hf auth login`",
    "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE)",
    "ConnectError": "the Hub cannot be reached",
    "ConnectTimeout": "the Hub cannot be reached",
    "LocalEntryNotFoundError": "the Hub cannot be reached",
}


class Pushed(NamedTuple):
    repo: str
    commit: str
    url: str
    left_out: tuple[str, ...]  # files that hold paths of this machine


def push_adapter(
    name: str, repo: str, store: str | Path = "adapters", *, private: bool = False, endpoint: str | None = None
) -> Pushed:
    """Upload an adapter with its model card to a repository of the Hub, which is made if it is not there.

    No path of this machine goes with it. Raises AdapterError.
    """
    adapter = find_in_store(name, store)
    read_weights(adapter.folder, own_shapes(adapter.folder))
    api = HfApi(endpoint=endpoint)
    with tempfile.TemporaryDirectory() as folder, _explained(repo):
        left_out = _stage(adapter, Path(folder))
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{adapter.name} from finetune")
    return Pushed(repo, done.oid, f"{api.endpoint}/{repo}", left_out)


def pull_adapter(
    repo: str,
    revision: str | None = None,
    *,
    name: str | None = None,
    base: BaseSection | None = None,
    store: str | Path = "adapters",
    endpoint: str | None = None,
) -> StoredAdapter:
    """Copy an adapter of the Hub into the store; the card records the commit.

    `revision`: branch, tag or commit; default: the newest, whose commit is found first, so that all files are of
    one. An adapter without our card is imported, for `base`. Raises AdapterError.
    """
    target = place_in_store(check_name(name or repo.rpartition("/")[2]), store)
    if target.exists():
        raise AdapterError("is there already", where=str(target), fix="choose another name with --name")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        api = HfApi(endpoint=endpoint)
        with _explained(repo):
            commit = api.model_info(repo, revision=revision).sha
            if commit is None:
                raise AdapterError("the Hub names no commit", where=repo)
            api.snapshot_download(repo, revision=commit, allow_patterns=_PULLED, local_dir=folder)
        source = Source(kind="hub", place=repo, revision=commit)
        if missing := [file for file in (WEIGHTS, CONFIG) if not check_inside(folder, file).is_file()]:
            raise AdapterError(f"holds no adapter: no {' and no '.join(missing)}", where=repo)
        if not check_inside(folder, CARD).is_file():
            return import_adapter(folder, name=target.name, base=base, store=store, source=source)
        return _keep(folder, target, source)


def _keep(folder: Path, target: Path, source: Source) -> StoredAdapter:
    """Copy what was pulled, once it is what its card says."""
    card = read_card(folder)
    for file, digest in card.files.items():
        if file in STEADY and check_inside(folder, file).is_file() and sha256_file(folder / file) != digest:
            raise AdapterError(f"{file} is not what its card says: it was changed or damaged", where=source.place)
    read_weights(folder, own_shapes(folder))
    with replace_folder(target) as fresh:
        for file in _PULLED:
            if check_inside(folder, file).is_file():
                (fresh / file).parent.mkdir(exist_ok=True)
                copy_file(folder, fresh, file)
        # The model's name is taken from the card, so that nobody's path decides what is loaded.
        card = card.model_copy(update={"name": target.name, "source": source, "files": steady_files(fresh)})
        (fresh / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(render_readme(card), encoding="utf-8")
    return find_in_store(target.name, target.parent)


def _stage(adapter: StoredAdapter, folder: Path) -> tuple[str, ...]:
    """Put what is uploaded into a folder; return the files that stay here because they name paths of this machine."""
    left_out = []
    for file in (*STEADY, *(f"report/{name}" for name in _REPORT)):
        if not check_inside(adapter.folder, file).is_file():
            continue
        (folder / file).parent.mkdir(exist_ok=True)
        copy_file(adapter.folder, folder, file)
        if file == CONFIG:
            _hide_path(folder / CONFIG)
        elif file == RECIPE and _names_paths((folder / file).read_text(encoding="utf-8")):
            (folder / file).unlink()
            left_out.append(file)
    card: Card = adapter.card.model_copy(update={"files": steady_files(folder)})
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")
    return tuple(left_out)


def _hide_path(config: Path) -> None:
    found = json.loads(config.read_text(encoding="utf-8"))
    place = found.get("base_model_name_or_path")
    if isinstance(place, str) and portable(place) != place:
        config.write_text(json.dumps({**found, "base_model_name_or_path": portable(place)}, indent=2) + "\n")


def _names_paths(text: str) -> bool:
    """Whether a value of a YAML file is an absolute path."""
    return any(word.startswith(("/", "~/")) for word in text.replace("'", " ").replace('"', " ").split())


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's library and the network raise into an AdapterError."""
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        known = find_cause(error, _CAUSES)
        if known is None and not is_hub_error(error):
            raise
        raise AdapterError(known or " ".join(str(error).split())[:300], where=repo) from error
