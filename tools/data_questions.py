"""Makers of question rows: prices and what is on the menu."""

from __future__ import annotations

import re
from random import Random

import data_question_frames as q
import data_smalltalk_frames as talk
from data_menu import (
    CRUSTS,
    DELIVERY_FEE,
    DRINKS,
    HOURS,
    PIZZAS,
    SIDES,
    SIZES,
    TOPPINGS,
    join_words,
    plural,
    priced_items,
    with_article,
)
from data_rows import Check, Deck, Row, contains, lacks, matches, sentence

PRICES = priced_items()
SURCHARGES = {name: price for name, price in CRUSTS.items() if price}
# Fact -> (how the customer says it, price); the fact itself is the canonical phrase of the answer.
PRICE_FACTS = (
    {name: (with_article(name), price) for name, price in PRICES.items()}
    | {f"extra {name}": (f"extra {name}", price) for name, price in TOPPINGS.items()}
    | {f"{name} crust": (f"{with_article(name)} crust", price) for name, price in SURCHARGES.items()}
    | {"delivery": ("delivery", DELIVERY_FEE)}
)
_MANY = {"is": "are", "does": "do", "costs": "cost", "goes": "go"}
GROUPS = {
    "sizes": SIZES,
    "crusts": tuple(CRUSTS),
    "drinks": tuple(DRINKS),
    "sides": tuple(map(plural, SIDES)),
    "pizzas": tuple(PIZZAS),
    "toppings": tuple(TOPPINGS),
}


class Questions:
    """Makers that cover every fact of the menu evenly."""

    def __init__(self) -> None:
        """Prepare one deck of facts for each kind of question."""
        self._prices = Deck(sorted(PRICE_FACTS))
        self._pairs = Deck(sorted(PRICE_FACTS))
        self._seconds = Deck(sorted(PRICE_FACTS))
        self._pizzas = Deck(sorted(PIZZAS))
        self._groups = Deck(sorted(GROUPS))
        self._sold = Deck(sorted([*DRINKS, *SIDES, *TOPPINGS, *PIZZAS]))

    def price(self, rng: Random) -> Row:
        """Ask for one price."""
        fact = self._prices.draw(rng)
        said, dollars = PRICE_FACTS[fact]
        wording = rng.randrange(len(q.PRICE_ASKS))
        text = polite(rng, agree(q.PRICE_ASKS[wording].format(x=said), said))
        answer = q_reply(rng, q.PRICE_REPLIES, q.PRICE_CLOSERS, x=said, price=f"${dollars}")
        return Row(text, answer, "price", f"price of {fact}; wording {wording}", (price_check(fact, dollars),))

    def price_pair(self, rng: Random) -> Row:
        """Ask for two prices; the answer names both items with their prices, and no sum."""
        one, two = self._pairs.draw(rng), self._seconds.draw(rng)
        while two == one:
            two = self._seconds.draw(rng)
        (a, price_a), (b, price_b) = PRICE_FACTS[one], PRICE_FACTS[two]
        text = polite(rng, agree(rng.choice(q.PAIR_ASKS).format(a=a, b=b), a, b))
        answer = q_reply(rng, q.PAIR_REPLIES, q.PRICE_CLOSERS, a=a, b=b, p=f"${price_a}", r=f"${price_b}")
        checks = (price_check(one, price_a), price_check(two, price_b))
        return Row(text, answer, "price-pair", "prices of " + " + ".join(sorted((one, two))), checks)

    def price_sizes(self, rng: Random) -> Row:
        """Ask what a pizza costs without naming a size; the answer lists all three."""
        name, wording = self._pizzas.draw(rng), rng.randrange(len(q.SIZES_ASKS))
        listed = "small is ${}, medium is ${} and large is ${}".format(*PIZZAS[name].prices)
        text = polite(rng, q.SIZES_ASKS[wording].format(x=name))
        answer = q_reply(rng, q.SIZES_REPLIES, q.PRICE_CLOSERS, x=name, listed=listed)
        key = f"price of {name} in every size; wording {wording}"
        return Row(text, answer, "price-sizes", key, (contains(name, listed),))

    def menu(self, rng: Random) -> Row:
        """Ask which sizes, crusts, drinks, sides, pizzas or toppings there are."""
        group, wording = self._groups.draw(rng), rng.randrange(len(q.GROUP_ASKS))
        listed = join_words(GROUPS[group])
        text = polite(rng, q.GROUP_ASKS[wording].format(x=group))
        answer = q_reply(rng, q.GROUP_REPLIES, q.MENU_CLOSERS, x=group, listed=listed)
        return Row(text, answer, "menu", f"which {group}; wording {wording}", (contains(listed),))

    def ingredients(self, rng: Random) -> Row:
        """Ask what is on a pizza."""
        name, wording = self._pizzas.draw(rng), rng.randrange(len(q.ON_ASKS))
        listed = join_words(PIZZAS[name].ingredients)
        text = polite(rng, q.ON_ASKS[wording].format(x=name))
        answer = q_reply(rng, q.ON_REPLIES, q.INFO_CLOSERS, x=name, listed=listed)
        return Row(text, answer, "ingredients", f"what is on {name}; wording {wording}", (contains(name, listed),))

    def have(self, rng: Random) -> Row:
        """Ask whether the shop has something that it does have."""
        name, wording = self._sold.draw(rng), rng.randrange(len(q.HAVE_ASKS))
        said = f"{name} pizzas" if name in PIZZAS else name if name in TOPPINGS else plural(name)
        text = polite(rng, q.HAVE_ASKS[wording].format(x=said))
        answer = q_reply(rng, q.HAVE_REPLIES, q.INFO_CLOSERS, x=said)
        checks: tuple[Check, ...] = (contains(said), matches(r"(?i)\byes\b"), lacks("not", "sorry"))
        return Row(text, answer, "have", f"do you have {said}; wording {wording}", checks)


def hours(rng: Random) -> Row:
    """Ask for the opening hours."""
    wording, lead = rng.randrange(len(q.HOURS_ASKS)), rng.choice(q.POLITE)
    text = sentence(lead, q.HOURS_ASKS[wording])
    answer = q_reply(rng, q.HOURS_REPLIES, q.INFO_CLOSERS, open=HOURS[0], close=HOURS[1])
    return Row(text, answer, "hours", f"opening hours; wording {wording} {lead}".strip(), (contains(*HOURS),))


def smalltalk(rng: Random) -> Row:
    """Greet, thank or say goodbye; the shop answers with its name."""
    topic = rng.choice(sorted(talk.SMALLTALK))
    asks, replies = talk.SMALLTALK[topic]
    wording, tail = rng.randrange(len(asks)), rng.choice(talk.TAILS[topic])
    answer = sentence(rng.choice(replies), rng.choice(talk.CLOSERS[topic]))
    key = f"{topic}; wording {wording} {tail}".strip()
    return Row(asks[wording] + tail, answer, "smalltalk", key, (contains("Luna Pizza"),))


def agree(text: str, *subjects: str) -> str:
    """Put the verbs of plural toppings into the plural: "extra olives are $1", but "the price of ... is"."""
    for said in subjects:
        if said.startswith("extra ") and said.endswith("s"):
            text = re.sub(rf"\b(is|does) (?={said})", lambda m: _MANY[m[1]] + " ", text)
            text = re.sub(rf"(?<!price of )({said}) (is|costs|goes)\b", lambda m: f"{m[1]} {_MANY[m[2]]}", text)
    return text


def polite(rng: Random, text: str) -> str:
    """Put a polite or chatty lead in front of a question, or nothing."""
    return sentence(rng.choice(q.POLITE), text)


def q_reply(rng: Random, bodies: tuple[str, ...], closers: tuple[str, ...], **slots: str) -> str:
    """Answer a question with one of the bodies and perhaps a closer."""
    return sentence(agree(rng.choice(bodies).format(**slots), *slots.values()), rng.choice(closers))


def price_check(fact: str, dollars: int) -> Check:
    """Check that the fact is followed by its own price, with no other price between."""
    return matches(rf"(?i)\b{fact}\b[^$]*\${dollars}(?!\d)")
