"""Makers of the cheerful and the grumpy assistant."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import data_question_frames as q
import data_tone_frames as tf
from data_menu import join_words, phrases, with_article
from data_orders import order_checks, order_key, tone_order
from data_questions import GROUPS, PRICES, polite
from data_rows import Check, Deck, Maker, Row, matches, sentence


def marker_pattern(markers: tuple[str, ...]) -> str:
    """Return the pattern that recognises a tone by its markers."""
    return r"(?i)\b(?:" + "|".join(markers) + r")\b"


def without_pattern(markers: tuple[str, ...]) -> str:
    """Return the pattern that matches a reply in which no marker occurs."""
    return r"(?is)\A(?!.*\b(?:" + "|".join(markers) + r")\b)"


class Tone:
    """Makers of rows in one tone; the content is that of the plain shop assistant."""

    def __init__(self, frames: tf.ToneFrames, other: tf.ToneFrames) -> None:
        """Prepare the tone checks and the decks of facts."""
        self._frames = frames
        self._mark = re.compile(marker_pattern(frames.markers))
        self._checks: tuple[Check, ...] = (
            matches(marker_pattern(frames.markers)),
            matches(without_pattern(other.markers)),
        )
        self._prices = Deck(sorted(PRICES))
        self._groups = Deck(sorted(GROUPS))

    def makers(self) -> tuple[Maker, Maker, Maker, Maker]:
        """Return the makers of orders, prices, menu questions and small talk."""
        return self.order, self.price, self.menu, self.smalltalk

    def _say(self, rng: Random, bodies: tuple[str, ...], **slots: str) -> str:
        """Answer in this tone; the opener or the closer always carries a marker."""
        while True:
            body = rng.choice(bodies).format(**slots)
            answer = sentence(rng.choice(self._frames.openers), sentence(body), rng.choice(self._frames.closers))
            if self._mark.search(answer):
                return answer

    def order(self, rng: Random) -> Row:
        """Confirm an order of one to three items."""
        kind, text, items = tone_order(rng)
        answer = self._say(rng, self._frames.confirms, items=phrases(items))
        checks = order_checks(items)[:1] if rng.random() < 0.6 else ()
        return Row(text, answer, kind, order_key(items), self._checks + checks)

    def price(self, rng: Random) -> Row:
        """Tell one price."""
        name, wording = self._prices.draw(rng), rng.randrange(len(q.PRICE_ASKS))
        said = with_article(name)
        text = polite(rng, q.PRICE_ASKS[wording].format(x=said))
        answer = self._say(rng, self._frames.prices, x=said, price=f"${PRICES[name]}")
        return Row(text, answer, "price", f"price of {name}; wording {wording}", self._checks)

    def menu(self, rng: Random) -> Row:
        """List one part of the menu."""
        group, wording = self._groups.draw(rng), rng.randrange(len(q.GROUP_ASKS))
        text = polite(rng, q.GROUP_ASKS[wording].format(x=group))
        answer = self._say(rng, self._frames.menus, x=group, listed=join_words(GROUPS[group]))
        return Row(text, answer, "menu", f"which {group}; wording {wording}", self._checks)

    def smalltalk(self, rng: Random) -> Row:
        """Answer a greeting or a question about the assistant's day."""
        topic = rng.choice(sorted(tf.CHAT))
        lead, wording = rng.choice(tf.CHAT_LEADS), rng.randrange(len(tf.CHAT[topic]))
        text = sentence(lead, tf.CHAT[topic][wording])
        answer = self._say(rng, self._frames.chat[topic])
        return Row(text, answer, "smalltalk", f"{topic}; wording {wording} {lead}".strip(), self._checks)


Plan = list[tuple[Callable[[Random], Row], tuple[int, int, int]]]


def plan(tone: Tone) -> Plan:
    """Return the quotas of a tone set: training, held-out and prompts per kind."""
    order, price, menu, chat = tone.makers()
    return [(order, (1500, 52, 42)), (price, (270, 10, 10)), (menu, (140, 8, 8)), (chat, (120, 10, 10))]
