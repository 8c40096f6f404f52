"""One question to an OpenAI-compatible endpoint. Every trouble is an error that names it."""

from __future__ import annotations

import json
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from finetune.errors import FinetuneError
from finetune.evaluation.checks.structure import strict_json
from finetune.evaluation.checks.values import one_line

KEY_VARIABLE = "FINETUNE_JUDGE_KEY"
TIMEOUT = 120.0  # seconds for one reply
LARGEST = 1024 * 1024  # bytes of a reply
PAUSES = (1.0, 4.0)  # seconds before a request is repeated
BUSY = (429, 500, 502, 503, 504)


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to wherever the endpoint likes."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class _Again(Exception):
    """Trouble that may have passed in a moment."""


def ask(endpoint: str, key: str, model: str, messages: list[dict[str, str]]) -> str:
    """Return the reply's text, greedily decoded.

    Raises FinetuneError naming the endpoint, after it was tried again where that can help.
    """
    url = endpoint if endpoint.endswith("/chat/completions") else f"{endpoint}/chat/completions"
    if not (key.isascii() and key.isprintable()):  # the library's own message would show it
        raise FinetuneError(f"{KEY_VARIABLE} holds characters that no key has", fix="set it again, on one line")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    body = json.dumps({"model": model, "temperature": 0, "messages": messages}).encode()
    trouble = ""
    for pause in (*PAUSES, None):
        try:
            return _text_of(_post(Request(url, body, headers)))
        except _Again as error:
            trouble = str(error)
        except (OSError, HTTPException, ValueError) as error:
            trouble = one_line(f"{type(error).__name__}: {error}")
            break
        if pause is not None:
            time.sleep(pause)
    trouble = trouble.replace(key, "[key]") if key else trouble  # some endpoints repeat what they refuse
    fix = f"check the endpoint and {KEY_VARIABLE}; the verdicts so far are kept"
    raise FinetuneError(f"the judge {model!r} cannot be asked: {trouble}", where=url, fix=fix)


def _post(request: Request) -> bytes:
    deadline = time.monotonic() + TIMEOUT
    chunks: list[bytes] = []
    try:
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(65536):
                chunks.append(chunk)
                if sum(map(len, chunks)) > LARGEST:
                    raise ValueError(f"the reply is larger than {LARGEST // 1024} KiB")
                if time.monotonic() > deadline:  # a byte now and then would never time out by itself
                    raise TimeoutError("the reply took too long")
    except HTTPError as error:
        with error:
            what = one_line(f"HTTP {error.code} {error.reason}: {error.read(500).decode('utf-8', 'replace')}")
        raise (_Again if error.code in BUSY else ValueError)(what) from None
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise _Again(one_line(f"{type(error).__name__}: {getattr(error, 'reason', '') or error}")) from None
    return b"".join(chunks)


def _text_of(reply: bytes) -> str:
    tree = strict_json(reply.decode())
    try:
        text = tree["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the reply has no choices[0].message.content") from None
    if not isinstance(text, str):
        raise ValueError("choices[0].message.content is no text")
    return text
