"""Whatever is sent, the answer is an envelope and never the server's fault."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.server.conftest import ADMIN, KEY, Live
from tests.serving.server.test_chat import ASK

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
GOOD: dict[str, dict[str, Any]] = {
    PATHS[0]: {"model": "a0", "messages": ASK, "max_tokens": 1},
    PATHS[1]: {"model": "a0", "prompt": "Hello", "max_tokens": 1},
    PATHS[2]: {"lora_name": "a0"},
    PATHS[3]: {"lora_name": "nothing"},
}
FIELDS = (
    *("model", "messages", "prompt", "n", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "top_k"),
    *("min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "response_format", "logprobs", "tools"),
    *("top_logprobs", "max_tokens", "max_completion_tokens", "logit_bias", "lora_name", "lora_path", "echo", "best_of"),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 30),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["a0", "a0+0.5*a1", "../a0", "\0", "<|end|>", "json_object", "json_schema", "user", "x" * 600]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.sampled_from(FIELDS)), inner, max_size=4),
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]), "content": inner}),
        st.fixed_dictionaries(
            {"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"name": inner, "schema": inner})}
        ),
    ),
    max_leaves=8,
)
changes = st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=8)), values, min_size=1, max_size=4)
torn = st.tuples(st.binary(max_size=12), st.integers(0, 60), st.integers(0, 60))


def many(examples: int) -> Callable[..., Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )


def bodies() -> st.SearchStrategy[tuple[str, bytes]]:
    """A good body with some fields changed, or with some bytes of it replaced, or anything at all."""

    def spoil(path: str, change: dict[str, Any]) -> tuple[str, bytes]:
        return path, json.dumps({**GOOD[path], **change}).encode()

    def tear(path: str, wound: tuple[bytes, int, int]) -> tuple[str, bytes]:
        data, (new, start, size) = json.dumps(GOOD[path]).encode(), wound
        return path, data[:start] + new + data[start + size :]

    path = st.sampled_from(PATHS)
    return st.one_of(
        st.builds(spoil, path, changes),
        st.builds(tear, path, torn),
        st.tuples(path, values.map(lambda value: json.dumps(value).encode())),
    )


@pytest.mark.parametrize("examples", [80, pytest.param(20_000, marks=pytest.mark.slow)])
def test_malformed_requests(live: Live, examples: int) -> None:
    seen: dict[int, int] = {}

    @many(examples)
    @given(bodies())
    def send(case: tuple[str, bytes]) -> None:
        path, body = case
        reply = live.call("POST", path, body, ADMIN)
        seen[reply.status] = seen.get(reply.status, 0) + 1
        assert reply.status < 500, (path, body, reply.body)
        if reply.status >= 400:
            assert reply.error["message"]

    send()
    assert {200, 400} <= set(seen), seen
    assert live.call("GET", "/health").status == 200
    for name in ("a0", "a1"):
        live.load(name)


@pytest.mark.parametrize("examples", [2, pytest.param(300, marks=pytest.mark.slow)])
def test_the_server_keeps_to_its_own_description(live: Live, examples: int) -> None:
    description = live.call("GET", "/openapi.json").json
    schema = schemathesis.openapi.from_dict(description)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) >= 8

    for operation in operations:

        @many(examples)
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and "max_tokens" in case.body:
                case.body["max_tokens"] = min(case.body["max_tokens"] or 4, 4)
            reply = case.call(
                base_url=f"http://127.0.0.1:{live.port}", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60
            )
            case.validate_response(reply, checks=checks)

        send()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: local\xffhost\r\nConnection: close\r\n\r\n",
    ],
    ids=["tls", "version", "host", "length", "huge", "chunk", "head", "path", "name"],
)
def test_what_is_hardly_http(live: Live, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        connection.sendall(sent.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode(), 1))
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.split()[1][:1] == b"4", answer
    assert live.call("GET", "/health").status == 200
