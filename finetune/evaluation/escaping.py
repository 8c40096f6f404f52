"""What a model or a data file wrote, made visible and harmless before a person sees it.

Each kind of output has its own rules of escaping; what they share is here. Nothing heavy is imported.
"""

from __future__ import annotations

import re

# Control characters, what turns the direction of text, what is invisible, halves of a pair, and non-characters.
# White space (tab, line feed) stays, and so do the joiners (U+200C, U+200D) that scripts and emoji need.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
    + "".join(f"{chr(plane * 0x10000 + 0xFFFE)}{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(1, 17))
    + "]"
)
_LINE_ENDS = re.compile(r"\s*(?:\r\n|[\n\r\x0b\x0c\x85\u2028\u2029])\s*")


def visible(text: str) -> str:
    """Replace every character that is not seen, or moves others, by a symbol or its code point."""
    return _UNSEEN.sub(_symbol, text)


def one_line(text: str) -> str:
    """Make text visible, and its line ends too."""
    return visible(_LINE_ENDS.sub(" ↵ ", text).replace("\t", " "))


def clip(text: str, limit: int, rest: str = "more characters") -> str:
    """Cut text after `limit` characters and say how many follow."""
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit]}… ({left:,} {rest})"


def _symbol(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"[U+{code:04X}]"
