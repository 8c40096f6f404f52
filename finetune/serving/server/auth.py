"""Who may ask: host names, API key, admin key. Checked before anything of a body is read."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.server.errors import ApiError
from finetune.serving.server.options import Options

ADMIN = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
GUARDED = ("/v1", "/metrics")


class Guard:
    """Turns away who may not ask; every response carries a request id."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = f"req_{uuid.uuid4().hex}"

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["X-Request-Id"] = name
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refusal = refuse(scope["path"], Headers(scope=scope), self.options)
        await (refusal.response() if refusal else self.app)(scope, receive, labelled)


def refuse(path: str, headers: Headers, options: Options) -> ApiError | None:
    """Say why a request may not go on, or None."""
    if options.hosts is not None and _host(headers.get("host", "")) not in options.hosts:
        message = "This server answers to localhost only; start it with --host to serve others"
        return ApiError(403, message, code="host_not_allowed")
    if not any(path == part or path.startswith(f"{part}/") for part in GUARDED):
        return None
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    is_admin = _matches(token, options.admin_key)
    if path in ADMIN:
        return None if is_admin else _no_admin(token, options)
    if options.api_key is None or is_admin or _matches(token, options.api_key):
        return None
    return _wrong_key(token)


def _no_admin(token: str, options: Options) -> ApiError:
    if options.admin_key is None:
        message = "Adapters cannot be changed while this server runs; start it with --admin-key"
        return ApiError(403, message, kind="permission_error", code="admin_disabled")
    if _matches(token, options.api_key):
        return ApiError(403, "This needs the admin key", kind="permission_error", code="admin_required")
    return _wrong_key(token)


def _wrong_key(token: str) -> ApiError:
    # The key itself is never repeated: answers end up in logs.
    message = "Incorrect API key provided" if token else "No API key: send it as Authorization: Bearer KEY"
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)


def _matches(token: str, key: str | None) -> bool:
    """Compare in a time that depends on neither; the digests are equally long whatever the texts."""
    if key is None:
        return False
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (token, key)]
    return hmac.compare_digest(*digests)


def _host(value: str) -> str:
    try:
        return urlsplit(f"//{value}").hostname or ""
    except ValueError:
        return ""
