"""What browsers ask for: the chat page, which runs no script but its own and asks nobody else, and adapters' reports.

A browser opens a link without the API key. A report's address therefore holds a proof that whoever it was given to
had the key; it ends with the server. A report may come from elsewhere with its adapter: it is shown in a sandbox,
where it is no part of this server and reaches nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from finetune.errors import AdapterError
from finetune.serving.bank import AdapterBank
from finetune.serving.server.errors import ApiError
from finetune.serving.server.replies import AdapterReply
from finetune.store.folders import StoredAdapter
from finetune.store.places import opened

WEB = Path(__file__).parents[1] / "web"
INDEX = "index.html"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
REPORT = "report/report.html"
MAX_REPORT = 64 << 20  # bytes
_COMMON = {"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = f"{_NOTHING}; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
_INLINE = "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
REPORT_POLICY = f"{_NOTHING}; {_INLINE}; sandbox allow-scripts"


class Reports:
    """Cards and reports of the adapters that are loaded; a name is looked up and never becomes a path."""

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank
        self._secret = secrets.token_bytes(32)

    def card(self, name: str) -> AdapterReply:
        """Card and report address of an adapter. Raises ApiError 404."""
        stored = self._stored(name)
        address = f"reports/{name}?proof={self._proof(name)}" if _report(stored) is not None else None
        return AdapterReply(id=name, card=stored.card, report=address)

    def read(self, name: str, proof: str) -> bytes:
        """The page of a report. Raises ApiError 403 or 404."""
        if not hmac.compare_digest(proof.encode("utf-8", "replace"), self._proof(name).encode()):
            message = "This link to a report is not one of this server's, or is older than it: open the report anew"
            raise ApiError(403, message, kind="permission_error", code="link_ended")
        page = _report(self._stored(name), whole=True)
        if page is None:
            raise ApiError(404, f"The adapter {name!r} has no report", code="report_not_found")
        return page

    def _proof(self, name: str) -> str:
        return hmac.new(self._secret, name.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _stored(self, name: str) -> StoredAdapter:
        if name in self.bank.names:
            try:
                return self.bank.stored(name)
            except AdapterError:  # unloaded a moment ago
                pass
        raise ApiError(404, f"No adapter {name!r} is loaded", param="name", code="adapter_not_found")


def cards(reports: Reports) -> APIRouter:
    """The card of an adapter, for everybody with the API key."""
    router = APIRouter()

    @router.get("/v1/adapters/{name}")
    async def adapter(name: str) -> AdapterReply:
        """The card of a loaded adapter, and where a browser finds its report."""
        return await asyncio.to_thread(reports.card, name)

    return router


def pages(reports: Reports) -> APIRouter:
    """Addresses for browsers; they are no part of the API's schema."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in WEB.iterdir() if path.suffix in KINDS}

    @router.get("/")
    async def index() -> Response:
        return _file(files[INDEX])

    @router.get("/web/{name}")
    async def part(name: str) -> Response:
        if name not in files:
            raise ApiError(404, "Not Found: no such address", code="not_found")
        return _file(files[name])

    @router.get("/reports/{name}")
    async def report(name: str, proof: str = "") -> Response:
        page = await asyncio.to_thread(reports.read, name, proof)
        return _answer(page, KINDS[".html"], REPORT_POLICY)

    return router


def _report(stored: StoredAdapter, *, whole: bool = False) -> bytes | None:
    """An adapter's report (b"" for it, unless the whole is wanted); None: no file, or a link out of the folder."""
    try:
        with opened(stored.folder, REPORT) as file:
            if file.seek(0, os.SEEK_END) > MAX_REPORT:
                return None
            file.seek(0)
            return file.readall() if whole else b""
    except AdapterError:
        return None


def _file(path: Path) -> Response:
    return _answer(path.read_bytes(), KINDS[path.suffix], PAGE_POLICY)


def _answer(body: bytes, kind: str, policy: str) -> Response:
    headers = {**_COMMON, "Content-Security-Policy": policy, "Content-Type": f"{kind}; charset=utf-8"}
    return Response(body, headers=headers)
