"""What browsers ask for: the page's files, cards and reports of adapters, and the policies they come with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.server.conftest import Live

HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>"
REPORT = f"<!doctype html><title>mine</title><p id=here>{HOSTILE}</p><script>document.title = origin</script>"


@pytest.fixture(scope="module")
def report(live: Live) -> Iterator[Path]:
    """A report that came with an adapter from anywhere."""
    file = live.store / "a0" / "report" / "report.html"
    file.parent.mkdir()
    file.write_text(REPORT)
    yield file
    file.unlink()
    file.parent.rmdir()


def test_the_page_runs_only_its_own_files(live: Live) -> None:
    index = live.call("GET", "/", key=None)
    assert index.status == 200
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name, kind in (("chat.js", "text/javascript"), ("style.css", "text/css")):
        part = live.call("GET", f"/web/{name}", key=None)
        assert (part.status, part.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    for path in ("/web/nothing.js", "/web/../server/app.py", "/web/%2e%2e%2fserver%2fapp.py", "/index.html"):
        assert live.call("GET", path, key=None).error["code"] == "not_found"


def test_a_card_needs_the_key_and_holds_no_path(live: Live) -> None:
    assert live.call("GET", "/v1/adapters/a7", key=None).status == 401
    reply = live.call("GET", "/v1/adapters/a7")
    assert reply.json["card"]["system"] == "Be short."
    assert reply.json["report"] is None
    assert str(live.store).encode() not in reply.body


@pytest.mark.parametrize("name", ["a9", "%2e%2e", "a0%2f..%2fa1", "a0+a1", "%00", "%ff"])
def test_an_unknown_name_has_no_card_and_no_report(live: Live, name: str) -> None:
    assert live.call("GET", f"/v1/adapters/{name}").status == 404
    assert live.call("GET", f"/reports/{name}").status in (403, 404)


def test_a_report_opens_with_its_proof_alone(live: Live, report: Path) -> None:
    address = "/" + live.call("GET", "/v1/adapters/a0").json["report"]
    shown = live.call("GET", address, key=None)
    assert (shown.status, shown.body.decode()) == (200, REPORT)
    policy = shown.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox allow-scripts", "form-action 'none'"} <= set(policy)
    for wrong in ("/reports/a0", f"{address}0", address.replace("a0", "a1", 1), "/reports/a0?proof=%F0%9F%98%80"):
        assert live.call("GET", wrong, key=None).error["code"] == "link_ended"


def test_a_report_outside_the_folder_is_none(live: Live, report: Path, tmp_path: Path) -> None:
    address = "/" + live.call("GET", "/v1/adapters/a0").json["report"]
    text = report.read_text()
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    report.unlink()
    report.symlink_to(secret)
    try:
        assert live.call("GET", "/v1/adapters/a0").json["report"] is None
        assert live.call("GET", address, key=None).error["code"] == "report_not_found"
    finally:
        report.unlink()
        report.write_text(text)
