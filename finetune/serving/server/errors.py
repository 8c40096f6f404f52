"""OpenAI's error envelope: {"error": {"message", "type", "param", "code"}} and its codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finetune.errors import FinetuneError
from finetune.serving.limits import ContextTooLong, EngineStopped, QueueFull
from finetune.serving.server.schemas import UNSUPPORTED
from finetune.serving.structured import SchemaError

MAX_MESSAGE = 1000  # characters; a message may quote what the client sent
_TAGS = {"str", "int", "float", "bool", "list", "dict", "text", "json_object", "json_schema"}


class ApiError(HTTPException):
    """An answer that is no answer; status and code as OpenAI documents them."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.kind, self.param, self.code = kind, param, code

    def envelope(self) -> dict[str, Any]:
        # What a client sent may hold halves of UTF-16 pairs, which cannot be written as UTF-8.
        message = self.detail[:MAX_MESSAGE].encode("utf-8", "replace").decode()
        param = self.param.encode("utf-8", "replace").decode() if self.param else None
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    def response(self) -> Response:
        body = json.dumps(self.envelope(), ensure_ascii=False)
        return Response(body, self.status_code, self.headers, media_type="application/json")


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model {name!r} does not exist", param="model", code="model_not_found")


def overloaded(retry_after: float) -> ApiError:
    seconds = {"Retry-After": str(max(1, math.ceil(retry_after)))}
    message = "The server is answering as many requests as it may and its queue is full; try again later"
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=seconds)


def draining() -> ApiError:
    message = "The server is shutting down: it finishes what it has begun and takes nothing new"
    return ApiError(503, message, kind="server_error", code="draining", headers={"Retry-After": "5"})


def from_engine(error: Exception, param: str | None = None) -> ApiError:
    """Turn down a request that the engine turned down; only messages meant for people leave the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return overloaded(error.retry_after)
    if isinstance(error, EngineStopped):
        return draining()
    if isinstance(error, SchemaError):
        place = "response_format.json_schema.schema"
        return ApiError(400, said(error), param=place, code="invalid_schema")
    if isinstance(error, ContextTooLong):
        return ApiError(400, said(error), param=param, code="context_length_exceeded")
    if isinstance(error, FinetuneError):
        return ApiError(400, said(error), param=param)
    raise error


def failed(error: Exception) -> ApiError:
    """Say that an answer broke off; the cause is for people only if it is one of ours."""
    if isinstance(error, SchemaError):
        return from_engine(error)
    cause = said(error) if isinstance(error, FinetuneError) else "the engine failed at this answer"
    return ApiError(500, cause, kind="server_error", code="generation_failed")


def said(error: FinetuneError) -> str:
    """The message without `where`: a client has no business with paths of the server."""
    return f"{error.what}; {error.fix}" if error.fix else error.what


def install(app: FastAPI) -> None:
    """Make every answer that is an error an envelope."""

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return _known(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()).response()

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return ApiError(500, "internal error", kind="server_error", code="internal_error").response()


def _known(error: HTTPException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    status = HTTPStatus(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status.value)
    message = error.detail if error.detail != status.phrase else f"{status.phrase}: no such address, or not this method"
    return ApiError(status.value, message, code=code, headers=error.headers)


def from_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """Report the first problem of a body, named as OpenAI names it."""
    problem = problems[0]
    kind = str(problem["type"])
    path = [str(part) for part in problem["loc"] if part != "body" and (isinstance(part, int) or _is_name(part))]
    if kind == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {problem['ctx']['error']}", code="invalid_json")
    if path:
        return _wrong_field(kind, path, str(problem["msg"]))
    if kind == "value_error":  # two fields that do not go together; the first one stands in quotes
        message = str(problem["msg"]).removeprefix("Value error, ")
        return ApiError(400, message, param=message.split("'")[1], code="invalid_value")
    return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json")


def _wrong_field(kind: str, path: Sequence[str], reason: str) -> ApiError:
    name = ".".join(path)
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if path[0] in UNSUPPORTED:
        message = f"'{path[0]}' is not supported by this server; leave it out"
        return ApiError(400, message, param=path[0], code="unsupported_parameter")
    return ApiError(400, f"Invalid '{name}': {reason}", param=name, code="invalid_value")


def _is_name(part: object) -> bool:
    """Whether a step of a location is a key of the body, and not a branch that the validation tried."""
    return isinstance(part, str) and part not in _TAGS and not set(part) & set("[](),")
