"""Checks of one row at a time: what its text and its tokens say about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.encoding import Encoded, control_tokens
from finetune.data.examples import Example
from finetune.data.lint.findings import Findings
from finetune.data.lint.secrets import find_secrets, redact
from finetune.data.messages import TEXT
from finetune.data.template import ChatTemplate

MAX_SHOWN = 60  # characters of a quoted text
# What assistants say about themselves; lower case.
_BOILERPLATE = (
    "as an ai language model", "as an ai model", "as an ai assistant", "as a large language model", "as an ai,",
    "as an artificial intelligence", "i am an ai language model", "i'm an ai language model", "i'm just an ai",
    "i am just an ai", "my knowledge cutoff", "my knowledge cut-off", "my training data", "developed by openai",
    "trained by openai", "created by openai", "created by anthropic", "trained by google",
    "i cannot fulfill your request", "i cannot fulfill that request", "i'm sorry, but i cannot",
    "i apologize, but i cannot",
    "regenerate response", "als ki-sprachmodell", "en tant que modèle de langage", "como modelo de lenguaje",
)  # fmt: skip
# UTF-8 read as Latin-1 or Windows-1252: a lead byte as a letter, a continuation byte as a sign.
_WRONGLY_DECODED = re.compile("\ufffd|[ÃÂ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|ðŸ|ï»¿")
# Zero-width space, direction marks and overrides, tags; not the joiners that emoji and Indic scripts need.
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u00ad\U000e0000-\U000e007f]")


class RowLint:
    """Looks at rows one by one and notes what it finds."""

    def __init__(self, findings: Findings, template: ChatTemplate) -> None:
        self.findings = findings
        self.unknown = template.tokenizer.unk_token_id
        control = sorted(control_tokens(template), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, control))) if control else None

    def look(self, example: Example) -> None:
        """Check the text of one example."""
        prompt = [message for message in example.prompt if message.role != "system"]
        if prompt and prompt[-1].role == "user" and not prompt[-1].content.strip():
            self.findings.add("D006", example.where, "the prompt is empty")
        for message in example.messages:
            text = message.content
            self._secrets(text + message.extra if message.extra else text, example.where)
            self._characters(text, example.where)
            if message.trained and message.role != TEXT:
                self._boilerplate(text.lower(), example.where)

    def look_at_tokens(self, encoded: Encoded) -> None:
        """Check the tokens of one example."""
        if not any(encoded.loss_mask[1:]):
            self.findings.add("D104", encoded.where, "no token of this row is trained")
        if self.unknown is not None and self.unknown in encoded.ids:
            count = encoded.ids.count(self.unknown)
            self.findings.add("D106", encoded.where, f"{count} unknown token{'s' * (count > 1)}")

    def _boilerplate(self, text: str, where: str) -> None:
        # A plain search for each phrase: a pattern of all of them has no common start to skip to.
        if phrase := next((phrase for phrase in _BOILERPLATE if phrase in text), None):
            self.findings.add("D024", where, f"the answer says {phrase!r}")

    def _secrets(self, text: str, where: str) -> None:
        for found in find_secrets(text):
            code = "D021" if found.personal else "D020"
            self.findings.add(code, where, f"{found.kind}: {redact(text, found)}")

    def _characters(self, text: str, where: str) -> None:
        if self.control is not None and (found := self.control.search(text)):
            self.findings.add("D022", where, f"the text holds {found[0]!r}")
        if text.isascii():
            return
        if found := _WRONGLY_DECODED.search(text):
            self.findings.add("D026", where, f"the text holds {quoted(text, *found.span())}")
        if found := _INVISIBLE.search(text):
            self.findings.add("D027", where, f"the text holds U+{ord(found[0]):04X} at character {found.start() + 1}")


def quoted(text: str, start: int, end: int) -> str:
    """Quote a place of a text with a little around it."""
    return repr(text[max(0, start - 10) : min(len(text), end + 10, start + MAX_SHOWN)])


def joined(example: Example) -> str:
    """What of an example is compared with others: all it says, without the system prompt."""
    return "\n".join(message.content for message in example.messages if message.role != "system")


def answers(example: Example) -> Sequence[str]:
    return [message.content for message in example.messages if message.trained]
