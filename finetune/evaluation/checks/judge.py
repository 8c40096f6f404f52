"""The check that asks another model."""

from __future__ import annotations

import os
from statistics import fmean
from urllib.parse import urlsplit

from finetune.data.messages import Message
from finetune.errors import FinetuneError
from finetune.evaluation.checks.chat import KEY_VARIABLE, ask
from finetune.evaluation.checks.core import Answer, Context, check_at_load
from finetune.evaluation.checks.questions import Reply, question, read_reply
from finetune.evaluation.checks.values import Score, Text, one_line
from finetune.journal import Journal, key_of

URL_VARIABLE = "FINETUNE_JUDGE_URL"
ATTEMPTS = 2  # at a reply that is not as it was asked for
VERSION = 1  # of the questions: raise it when their wording changes, or old verdicts stand for new ones


def _configured(rubric: str, *, model: str, endpoint: str = "", at_least: float = 4.0) -> None:
    url = _endpoint(endpoint)
    if not url:
        raise ValueError(f"no judge is configured; set {URL_VARIABLE} (and {KEY_VARIABLE}) or the option endpoint")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # reading a bad port raises
        raise ValueError(f"endpoint {url!r} should be a URL such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"the endpoint should be a plain URL; a key belongs into {KEY_VARIABLE}")


@check_at_load(_configured)
def judge(
    answer: Answer, rubric: Text, context: Context, *, model: Text, endpoint: Text = "", at_least: Score = 4.0
) -> str | None:
    """Another model scores the answer by a rubric, from 1 to 5, and the mean of two scores is at least `at_least`.

    It is asked twice, at temperature 0: the rubric before the answer with 5 as the best score, and behind
    it with 1 as the best, so that a liking for a place or for a number cancels out. `endpoint` is the base
    URL of an OpenAI-compatible API, by default the variable `FINETUNE_JUDGE_URL`; without either the check
    is refused. The key in `FINETUNE_JUDGE_KEY` is sent to the URL in that variable and to no other.
    Verdicts are kept, so an answer is judged once.

    Example: {judge: "Friendly, and repeats the whole order.", model: qwen3-32b, at_least: 4}
    """
    url = _endpoint(endpoint)
    verdicts = context.verdicts if context.verdicts is not None else Journal()
    talk = [(turn.role, turn.content, turn.extra) for turn in context.messages]
    key = key_of(VERSION, url, model, rubric, talk, answer.text)
    replies = _kept(verdicts.get(key))
    if replies is None:
        replies = [_ask(url, model, rubric, context.messages, answer.text, reverse) for reverse in (False, True)]
        verdicts.put(key, replies)
    mean = fmean(reply.score for reply in replies)
    if mean >= at_least:
        return None
    scores = ", ".join(f"{reply.score:g}" for reply in replies)
    return f"scored {mean:g} ({scores}): {one_line(min(replies).reason)}"


def _ask(url: str, model: str, rubric: str, messages: tuple[Message, ...], answer: str, reverse: bool) -> Reply:
    wrong = ""
    for _ in range(ATTEMPTS):
        said = ask(url, _key_for(url), model, question(rubric, messages, answer, reverse))
        try:
            return read_reply(said, reverse)
        except ValueError as error:
            wrong = f"the judge {model!r} did not reply as asked: {error}: {one_line(said)!r}"
    raise FinetuneError(wrong, where=url, fix="use a model that follows instructions; verdicts so far are kept")


def _kept(stored: object) -> list[Reply] | None:
    """Read a stored verdict; one that somebody damaged is asked for again."""
    try:
        replies = [Reply(float(score), str(reason)) for score, reason in stored]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None
    return replies if len(replies) == 2 and all(1 <= reply.score <= 5 for reply in replies) else None


def _endpoint(option: str) -> str:
    return (option or os.environ.get(URL_VARIABLE, "")).rstrip("/")


def _key_for(url: str) -> str:
    """Return the key, for its own endpoint alone: a prompts file of somebody else's must not send it away."""
    return os.environ.get(KEY_VARIABLE, "") if url == _endpoint("") else ""
