"""The commands of the store as a person types them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from finetune import cli
from finetune.store.folders import WEIGHTS, find_in_store
from tests.conftest import save_model
from tests.store.adapters import set_tensor
from tests.store.hub_server import small_hub


class Done(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path) -> Run:
    """Call the command line in this process, on the store."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments, "--store", str(store)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code, *capsys.readouterr())

    return call


def test_one_broken_card_hides_no_other_adapter(run: Run, store: Path) -> None:
    shutil.copytree(store / "shop", store / "broken")
    (store / "broken" / "card.json").write_text("{")
    done = run("list")
    assert (done.code, "shop" in done.out, "broken" in done.out) == (0, True, False)
    assert "broken/card.json: cannot be read: Invalid JSON" in done.err
    assert "shop" in run("show", "nothing").err, "an error that lists the adapters, too"


def test_import_show_verify_diff_rename_remove(run: Run, foreign: Path, model_folder: Path, store: Path) -> None:
    done = run("import", str(foreign), "--base", str(model_folder))
    assert (done.code, "is not verified" in done.out) == (0, True)
    shown = " ".join(run("show", "helper").out.split())
    assert "not verified: named at the import" in shown
    assert "import: helper" in shown
    card = find_in_store("shop", store).card
    shown = " ".join(run("show", "shop").out.split())
    assert all(digest in shown for digest in card.base.fingerprint.values())
    assert f"{card.train_rows} to train on, {card.heldout_rows} held out" in shown
    assert "helper" in run("list").out
    checked = run("verify", "helper")
    assert checked.code == 0
    assert "logits change by up to" in checked.out
    compared = run("diff", "shop", "helper")
    assert compared.code == 0
    assert "weights: |shop - helper| / |shop|" in compared.out
    assert run("rename", "helper", "aide").code == 0
    assert run("remove", "aide", "--yes").out.strip() == f"removed {store / 'aide'}"
    assert [path.name for path in store.iterdir()] == ["shop"]


def test_verify_ends_with_1_where_something_is_wrong(run: Run, store: Path) -> None:
    set_tensor("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", lambda t: t * 1.01)(store / "shop")
    done = run("verify", "shop")
    assert done.code == 1
    assert WEIGHTS in done.out


def test_force_loads_an_adapter_of_another_base_and_says_what_that_gives_up(
    run: Run, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "other", tokenizer, seed=5)
    asked = ("generate", "Give me 3 pizzas", "--adapter", "shop", "--max-new-tokens", "2")
    done = run(*asked, "--base", str(tmp_path / "other"))
    assert (done.code, "they differ in weights" in done.err, "--force gives up" in done.err) == (2, True, True)
    done = run(*asked, "--base", str(tmp_path / "other"), "--force")
    assert done.code == 0
    assert "--force: shop: its base random-llama and" in done.err
    assert "no number that was measured holds" in done.err
    assert "--force" not in run(*asked).err


def test_remove_asks_a_person_and_needs_yes_without_one(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        done = run("remove", "shop")
    assert (done.code, "say so with --yes" in done.err) == (2, True)
    for answer, left in (("n", ["shop"]), ("", ["shop"]), ("y", [])):
        person, terminal = os.openpty()
        with os.fdopen(terminal) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            os.write(person, f"{answer}\n".encode())
            done = run("remove", "shop")
        os.close(person)
        assert done.code == 0
        assert "for good? [y/N]" in done.out
        assert [path.name for path in store.iterdir()] == left


def test_push_and_pull(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with small_hub() as hub:
        places = {"ENDPOINT": "", "HUGGINGFACE_CO_URL_TEMPLATE": "/{repo_id}/resolve/{revision}/{filename}"}
        for name, path in places.items():  # as HF_ENDPOINT does when a process starts
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", hub.endpoint + path)
        pushed = run("push", "shop", "me/shop")
        commit = hub.repos["me/shop"][-1][0]
        assert pushed.code == 0
        assert f"{hub.endpoint}/me/shop at {commit}" in pushed.out
        assert "left out" in pushed.out
        pulled = run("pull", "me/shop", "--name", "back")
        assert f"{store / 'back'}: me/shop at {commit}" in pulled.out
        assert run("pull", "me/shop", "--name", "back").code == 2


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["verify", "none"], "no adapter 'none'"),
        (["remove", "../shop", "--yes"], "is no adapter name"),
        (["rename", "shop", "a/b"], "is no adapter name"),
        (["diff", "shop", "none"], "no adapter 'none'"),
        (["import", "nowhere"], "is no folder"),
        (["import", ".", "--base", "tiny", "--quantization", "int3"], "--quantization 'int3'"),
        (["push", "none", "me/x"], "no adapter 'none'"),
        (["pull", "..", "--name", ".x"], "is no adapter name"),
    ],
)
def test_mistakes_are_told_without_a_traceback(run: Run, arguments: list[str], cause: str) -> None:
    done = run(*arguments)
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert done.err.startswith("error: ")
    assert cause in done.err
