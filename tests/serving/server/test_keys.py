"""Who may ask, and adapters that come and go at run time."""

from __future__ import annotations

import re
import shutil

import openai
import pytest
from openai import OpenAI
from starlette.datastructures import Headers

from finetune.model.base import Base
from finetune.serving.server.auth import refuse
from finetune.serving.server.options import Options
from tests.serving.making import write_adapter
from tests.serving.server.conftest import ADMIN, KEY, SIZE, Live
from tests.serving.server.test_chat import ask, text_of

# ------------------------------------------------------------------ who may


@pytest.mark.parametrize("key", [None, "", "sk-tes", "sk-test2", "SK-TEST"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/anything"])
def test_without_the_key_nothing(live: Live, key: str | None, path: str) -> None:
    reply = live.call("GET", path, key=key)
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key"
    assert "sk-" not in reply.body.decode()


def test_the_client_says_who_is_not_let_in(live: Live) -> None:
    with live.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_key_is_asked_for_before_the_body_is_read(live: Live) -> None:
    assert live.call("POST", "/v1/chat/completions", b"x" * 70_000, key="wrong").status == 401


def test_adapters_need_the_admin_key(live: Live) -> None:
    body = {"lora_name": "a0"}
    assert live.call("POST", "/v1/unload_lora_adapter", body, KEY).error["code"] == "admin_required"
    assert live.call("POST", "/v1/unload_lora_adapter", body, "wrong").status == 401
    assert live.call("POST", "/v1/unload_lora_adapter", body, None).status == 401
    assert live.call("GET", "/v1/models", key=ADMIN).status == 200
    assert "a0" in live.app.catalogue.bank.names


def test_a_page_with_a_name_of_its_own_for_this_machine_gets_nothing(live: Live) -> None:
    reply = live.call("GET", "/v1/models", headers={"Host": "evil.example"})
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")
    assert live.call("GET", "/v1/models", headers={"Host": f"localhost:{live.port}"}).status == 200


def test_health_and_metrics(live: Live, client: OpenAI) -> None:
    health = live.call("GET", "/health", key=None)
    assert (health.status, health.json["status"], health.json["base"]) == (200, "ready", live.model)
    ask(client, "a0+0.25*a1")
    text = live.call("GET", "/metrics").body.decode()
    for sample in (
        r'finetune_requests_total\{endpoint="/v1/chat/completions",status="200"\} [1-9]',
        r'finetune_tokens_total\{kind="completion",model="blend"\} [1-9]',
        r'finetune_time_to_first_token_seconds_count\{model="blend"\} [1-9]',
        r"finetune_rows_running 0",
        r"finetune_adapters_loaded 8",
        r"process_open_fds [1-9]",
    ):
        assert re.search(sample, text), sample


# ------------------------------------------------------------------ adapters at run time


def test_an_adapter_comes_and_goes(live: Live, client: OpenAI) -> None:
    before = text_of(ask(client, "a6"))
    assert live.unload("a6").json == {"id": "a6", "object": "model", "deleted": True}
    assert "a6" not in [model.id for model in client.models.list()]
    for name in ("a6", "a0+a6"):
        with pytest.raises(openai.NotFoundError):
            ask(client, name)
    assert (live.unload("a6").status, live.unload("a6").error["code"]) == (404, "adapter_not_found")
    assert live.load("a6").json["id"] == "a6"
    assert text_of(ask(client, "a6")) == before
    assert live.load("a6").status == 200, "again is no mistake"


@pytest.mark.parametrize("name", ["nothing", "../a0", "/etc", "a0/../a1", "..", ".", "a0\0", "\ud800", "x" * 129, ""])
def test_only_names_of_the_store_are_loaded(live: Live, name: str) -> None:
    reply = live.load(name)
    assert reply.status in (400, 404), reply.body
    assert reply.error["param"] == "lora_name"
    assert str(live.store) not in reply.body.decode()


def test_a_path_is_never_followed(live: Live) -> None:
    body = {"lora_name": "b", "lora_path": str(live.store / "a0")}
    assert live.call("POST", "/v1/load_lora_adapter", body, ADMIN).error["param"] == "lora_path"
    body = {"lora_name": "a0", "lora_path": "a0"}
    assert live.call("POST", "/v1/load_lora_adapter", body, ADMIN).status == 200


def test_a_broken_adapter_changes_nothing(live: Live, client: OpenAI) -> None:
    folder = live.store / "broken"
    shutil.copytree(live.store / "a0", folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = live.app.catalogue.bank.names
    try:
        assert live.load("broken").error["code"] == "adapter_refused"
    finally:
        shutil.rmtree(folder)
    assert live.app.catalogue.bank.names == before


def test_new_weights_of_the_same_name_are_what_answers(live: Live, client: OpenAI, bare: Base) -> None:
    place = live.store / "fresh"
    write_adapter(place, bare, 50, size=SIZE)
    texts, prints = set(), set()
    try:
        for seed in (51, 52, 53):
            assert live.load("fresh").status == 200
            answer = ask(client, "fresh")
            texts.add(text_of(answer))
            prints.add(answer.system_fingerprint)
            shutil.rmtree(place)
            write_adapter(place, bare, seed, size=SIZE)
        assert (len(texts), len(prints)) == (3, 3)
    finally:
        live.unload("fresh")
        shutil.rmtree(place)


def test_a_server_without_an_admin_key_never_changes() -> None:
    for token in ("", "Bearer ", "Bearer x", "Bearer None"):
        refusal = refuse("/v1/load_lora_adapter", Headers({"authorization": token}), Options())
        assert refusal is not None
        assert (refusal.status_code, refusal.code) == (403, "admin_disabled")
