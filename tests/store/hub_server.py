"""A small Hub on a loopback port: repositories of files with commits, by the HTTP API of huggingface.co."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class SmallHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, list[tuple[str, Files]]] = {}  # repository -> commits, oldest first
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, files: Files) -> str:
        """Add files to the newest ones of a repository; return the commit."""
        history = self.repos.setdefault(repo, [])
        whole = {**(history[-1][1] if history else {}), **files}
        seed = json.dumps([len(history), repo, *((n, hashlib.sha1(d).hexdigest()) for n, d in sorted(whole.items()))])
        history.append((hashlib.sha1(seed.encode()).hexdigest(), whole))
        return history[-1][0]

    def at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        """Commit and files at a revision, None if it is not there."""
        history = self.repos.get(repo, [])
        if revision == "main":
            return history[-1] if history else None
        return next((entry for entry in history if entry[0] == revision), None)


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    server = SmallHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallHub

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            found = self.server.at(repo, rest[1] if len(rest) > 1 else "main")
            if found is None:
                self._missing(repo)
            elif rest[:1] == ["tree"]:
                self._json([self._entry(name, data) for name, data in found[1].items()])
            else:
                siblings = [{"rfilename": name} for name in found[1]]
                self._json({"_id": "0", "id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "tags": []})
            return
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        found = self.server.at(repo, revision)
        if found is None or name not in found[1]:
            self._missing(repo, entry=found is not None)
            return
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{hashlib.sha1(found[1][name]).hexdigest()}"'}
        self._send(200, found[1][name], headers)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repos.setdefault(repo, [])
            self._json({"url": f"{self.server.endpoint}/{repo}", "name": repo, "id": "0"})
        elif parts[4:5] == ["preupload"]:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files, "commitOid": "0" * 40})
        elif parts[4:5] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            repo = "/".join(parts[2:4])
            commit = self.server.commit(repo, files)
            self._json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}", "commitOid": commit})
        else:
            self._missing(path)

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _missing(self, repo: str, entry: bool = False) -> None:
        there = bool(self.server.repos.get(repo))
        code = "EntryNotFound" if entry else "RevisionNotFound" if there else "RepoNotFound"
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return
