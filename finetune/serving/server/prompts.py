"""Bodies -> token ids, through the code that training used: a text can never become a control token."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.encoding import encode_batch, encode_prompt
from finetune.data.examples import Example
from finetune.data.messages import TEXT, Message
from finetune.data.template import ChatTemplate
from finetune.errors import DataError
from finetune.serving.server.schemas import ChatMessage, ChatRequest, CompletionRequest

Prompt = tuple[int, ...]


def chat_prompt(body: ChatRequest, system: str | None, template: ChatTemplate) -> Prompt:
    """Encode a conversation; `system` is what the adapter was trained with, for one that brings none of its own."""
    messages = [_message(message) for message in body.messages]
    if system is not None and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return tuple(encode_prompt(messages, template))


def text_prompts(body: CompletionRequest, template: ChatTemplate) -> list[Prompt]:
    """Encode prompts without a chat template; ids are taken as they are. Raises DataError."""
    given = body.prompt
    if isinstance(given, str):
        return [_plain(given, template)]
    if isinstance(given[0], int):
        return [tuple(token for token in given if isinstance(token, int))]
    return [_plain(each, template) if isinstance(each, str) else _ids(each) for each in given]


def _ids(given: object) -> Prompt:
    return tuple(given) if isinstance(given, Sequence) else ()


def _plain(text: str, template: ChatTemplate) -> Prompt:
    """What training makes of a row that is plain text: the start token if there is one, no end."""
    (encoded,) = encode_batch([Example((Message(TEXT, text),), "prompt")], template)
    if isinstance(encoded, DataError):
        raise encoded
    if not encoded.ids[:-1]:
        raise DataError("the prompt is empty")
    return tuple(encoded.ids[:-1])


def _message(given: ChatMessage) -> Message:
    content = given.content if isinstance(given.content, str) else "".join(part.text for part in given.content)
    return Message("system" if given.role == "developer" else given.role, content)
