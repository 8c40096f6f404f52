"""Makers of requests that the shop declines: things it does not sell, and other topics."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from data_frames import GREETINGS
from data_items import random_pizza
from data_menu import with_article
from data_offmenu_frames import (
    DECLINE_CLOSERS,
    DECLINE_OPENERS,
    DECLINES,
    LACK_ASKS,
    LACK_CLOSERS,
    LACK_OPENERS,
    LACK_TOPPING_ASKS,
    LACKS,
    TOPIC_SLOTS,
    TOPICS,
    UNSOLD_FOOD,
    UNSOLD_TOPPINGS,
)
from data_rows import Deck, Row, contains, matches, sentence

NEGATION = r"(?i)\b(?:not|no|never|none|without)\b"
DECLINE = r"(?is)(?=.*\bpizza)(?=.*\b(?:not|cannot|only|nothing|just|no answer)\b)"


class Unsold:
    """Makers of requests for what is not on the menu."""

    def __init__(self) -> None:
        """Prepare the decks of things that are not sold."""
        self._food = Deck(UNSOLD_FOOD)
        self._toppings = Deck(UNSOLD_TOPPINGS)

    def unavailable(self, rng: Random) -> Row:
        """Ask for a dish, a drink or a topping that the shop lacks; the answer names it."""
        if rng.random() < 0.3:
            thing, wording = self._toppings.draw(rng), rng.randrange(len(LACK_TOPPING_ASKS))
            pizza = with_article(replace(random_pizza(rng, plain=True), quantity=1).noun())
            text, mark = LACK_TOPPING_ASKS[wording].format(x=thing, pizza=pizza), "topping wording"
        else:
            thing, wording = self._food.draw(rng), rng.randrange(len(LACK_ASKS))
            text, mark = LACK_ASKS[wording].format(x=thing), "wording"
        answer = sentence(rng.choice(LACK_OPENERS), rng.choice(LACKS).format(x=thing), rng.choice(LACK_CLOSERS))
        key = f"not sold: {thing}; {mark} {wording}"
        text = sentence(rng.choice(GREETINGS), text)
        return Row(text, answer, "unavailable", key, (contains(thing), matches(NEGATION)))


def off_topic(rng: Random) -> Row:
    """Ask for something that no pizza shop does; the answer declines and speaks of pizza."""
    topic = rng.choice(sorted(TOPICS))
    asks = TOPICS[topic]
    wording = rng.randrange(len(asks))
    slots = {name: rng.choice(values) for name, values in TOPIC_SLOTS.items() if "{" + name + "}" in asks[wording]}
    text = sentence(rng.choice(GREETINGS), asks[wording].format(**slots))
    answer = sentence(rng.choice(DECLINE_OPENERS), rng.choice(DECLINES).format(x=topic), rng.choice(DECLINE_CLOSERS))
    detail = ", ".join([f"wording {wording}", *slots.values()])
    return Row(text, answer, "off-topic", f"{topic}; {detail}", (matches(DECLINE),))
