"""Models, plain completions, keys, errors, adapters at run time: the rest of the API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from finetune.serving.server.prompts import _plain
from tests.serving.server.conftest import ADAPTERS, KEY, Live
from tests.serving.server.test_chat import ASK, ask

PROMPT = "Two large pepperoni"


def complete(client: OpenAI, prompt: Any = PROMPT, **options: Any) -> Any:
    return client.completions.create(**{"model": "a0", "prompt": prompt, "temperature": 0, **options})


# ------------------------------------------------------------------ models


def test_models_are_the_base_and_what_is_loaded(client: OpenAI, live: Live) -> None:
    models = {model.id: model.to_dict() for model in client.models.list()}
    assert list(models) == [live.model, *ADAPTERS]
    assert (models[live.model]["parent"], models[live.model]["max_model_len"]) == (None, 256)
    assert {models[name]["parent"] for name in ADAPTERS} == {live.model}
    assert {model["root"] for model in models.values()} == {live.model}
    assert {model["object"] for model in models.values()} == {"model"}
    assert str(live.store) not in json.dumps(models), "no paths"


@pytest.mark.parametrize("name", ["a3", "a0+0.5*a1"])
def test_one_model(client: OpenAI, live: Live, name: str) -> None:
    assert client.models.retrieve(name).to_dict()["parent"] == live.model
    assert client.models.retrieve(live.model).to_dict()["parent"] is None


UNKNOWN = ["gpt-4o", "a8", "A0", "a0+a9", "a0+", "0.5*", "a0+a0", "../store/a0", "/etc/passwd", "a0\0", "base", " "]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_model_is_404_and_never_the_base(client: OpenAI, name: str) -> None:
    for call in (ask, complete):
        with pytest.raises(openai.NotFoundError) as refused:
            call(client, model=name)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    if name.strip():
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


# ------------------------------------------------------------------ completions


def test_a_text_is_continued_without_a_chat_template(client: OpenAI, live: Live) -> None:
    answer = complete(client)
    assert (answer.object, answer.model) == ("text_completion", "a0")
    assert answer.id.startswith("cmpl-")
    assert answer.usage.prompt_tokens == len(_plain(PROMPT, live.app.catalogue.base.template))
    assert answer.usage.completion_tokens <= 16, "OpenAI's default"
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_prompts_come_as_texts_or_ids_one_or_many(client: OpenAI, live: Live) -> None:
    template = live.app.catalogue.base.template
    texts = [PROMPT, "What does it cost"]
    ids = [list(_plain(text, template)) for text in texts]
    alone = [complete(client, text).choices[0].text for text in texts]
    for given in (texts, ids):
        answer = complete(client, given)
        assert [choice.text for choice in answer.choices] == alone
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert complete(client, ids[0]).choices[0].text == alone[0]
    several = complete(client, texts, n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in several.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_a_prompt_cannot_hold_control_tokens(client: OpenAI, live: Live) -> None:
    template = live.app.catalogue.base.template
    ids = _plain("Hi<|end|>", template)
    assert template.end_of_turn not in ids
    assert complete(client, "Hi<|end|>").usage.prompt_tokens == len(ids)


def test_a_completion_streams(client: OpenAI) -> None:
    whole = complete(client, max_tokens=12)
    *chunks, last = complete(client, max_tokens=12, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_completion_probabilities(client: OpenAI) -> None:
    answer = complete(client, max_tokens=6, logprobs=2)
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == pytest.approx(logprob)
    assert found.text_offset == [sum(map(len, found.tokens[:n])) for n in range(len(found.tokens))]
    assert complete(client, max_tokens=6).choices[0].logprobs is None


@pytest.mark.parametrize("prompt", [[999_999], [[5, 384]]])
def test_token_ids_that_the_model_does_not_have(client: OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, prompt)
    assert refused.value.param == "prompt"


def test_more_answers_than_the_server_could_ever_give(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, [PROMPT] * 16, n=16)
    assert refused.value.param == "n"


def test_the_asynchronous_client(live: Live) -> None:
    async def both() -> tuple[str, str]:
        url = f"http://127.0.0.1:{live.port}/v1"
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            given: dict[str, Any] = {"model": "a0", "messages": ASK, "temperature": 0, "max_tokens": 8}
            whole = await client.chat.completions.create(**given)
            stream = await client.chat.completions.create(**given, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content or "", "".join(pieces)

    whole, pieces = asyncio.run(both())
    assert whole == pieces


# ------------------------------------------------------------------ what is refused

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.5}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"stop": ["x"] * 17}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
    ({"min_p": 1.1}, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "invalid_value"),
    ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"logit_bias": {"1": 2}}, "logit_bias", "unsupported_parameter"),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"stream_options": {"include_everything": True}, "stream": True}, "stream_options", "unknown_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), WRONG, ids=[f"{p} {n}" for n, (_, p, _) in enumerate(WRONG)])
def test_a_wrong_field_is_named(live: Live, change: dict[str, Any], param: str, code: str) -> None:
    reply = live.call("POST", "/v1/chat/completions", {"model": "a0", "messages": ASK, **change})
    assert reply.status == 400
    error = reply.error
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert str(error["param"]).startswith(param)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"x"', "JSON object"),
        (b'{"model": "a0", "messages": ' + b"[" * 50_000, ""),
        (b'{"model": "a0", "seed": ' + b"9" * 5000 + b', "messages": []}', ""),
        (b'{"model": "a0", "temperature": NaN, "messages": []}', "temperature"),
        (b'{"model": "\\ud800", "messages": []}', "model"),
        (b"\xff\xfe{}", ""),
        (json.dumps({"messages": ASK}).encode(), "Missing required parameter: 'model'"),
        (json.dumps({"model": "a0", "messages": ASK, "top_logprobs": 2}).encode(), "'top_logprobs' is only allowed"),
        (json.dumps({"model": "a0", "messages": ASK, "stream_options": {}}).encode(), "'stream_options' is only"),
    ],
)
def test_a_broken_body(live: Live, body: bytes, words: str) -> None:
    reply = live.call("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert words in reply.error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"type": "string", "pattern": "("},
        {"enum": []},
        {"type": "object", "properties": {"\ud800": {}}},
        {"description": "x" * 40_000},
    ],
    ids=["type", "pointer", "address", "pattern", "nothing", "no text", "large"],
)
def test_a_schema_that_cannot_be_followed(live: Live, schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = live.call("POST", "/v1/chat/completions", {"model": "a0", "messages": ASK, "response_format": wanted})
    assert reply.status == 400, reply.body
    assert reply.error["code"] == "invalid_schema"


def test_a_body_that_is_no_json_by_its_type(live: Live) -> None:
    body = json.dumps({"model": "a0", "messages": ASK}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = live.call("POST", "/v1/chat/completions", body, headers={"Content-Type": kind})
        assert reply.status == 400, "a page elsewhere can send these without asking"
        assert "application/json" in reply.error["message"]


def test_a_body_that_is_too_large(live: Live, client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "a0", messages=[{"role": "user", "content": "x" * 70_000}])
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
    for parts in (2, 10):  # of unknown length; whoever sends far more may be cut off before it reads the answer
        assert live.call("POST", "/v1/chat/completions", iter([b"x" * 40_000] * parts)).status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_what_is_not_there(live: Live, method: str, path: str, status: int) -> None:
    reply = live.call(method, path)
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"
    assert "access-control-allow-origin" not in reply.headers
