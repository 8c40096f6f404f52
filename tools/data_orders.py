"""Makers of order rows: plain orders, changes, pickup and delivery."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import data_frames as frames
from data_change_frames import CANCEL_FRAMES, CANCEL_REPLIES, CHANGE_CLAUSES, CHANGE_LEADS, CHANGE_REPLIES
from data_items import other_plural, random_extra, random_order, random_pizza, say_item, say_order
from data_menu import CRUSTS, DRINKS, NUMBERS, PIZZAS, SIDES, SIZES, Item, phrases, with_article
from data_rows import Check, Row, contains, copied, lacks, matches, sentence

# What would follow an item phrase if the reply invented a topping, without and with toppings before it.
_MORE = {False: ("with",), True: ("and extra", "and no")}
_ADDED = ("cheese", "olives", "mushrooms", "spinach", "bacon", "jalapenos")


def order_key(items: list[Item]) -> str:
    """Return the combination of an order, whatever the order of its items."""
    return "; ".join(sorted(item.phrase() for item in items))


def order_checks(items: list[Item]) -> tuple[Check, ...]:
    """Check every item phrase, and that no topping was invented."""
    phrase = [item.phrase() for item in items]
    invented = [
        f"{text} {tail}" for text, item in zip(phrase, items, strict=True) for tail in _MORE[bool(item.changes)]
    ]
    return contains(*phrase), lacks(*invented)


def ask(rng: Random, items: str) -> str:
    """Word the request for an order."""
    if rng.random() < 0.05:
        return rng.choice(frames.STORIES).format(items=items)
    body = rng.choice(frames.ASKS).format(items=items)
    tail = "" if "thanks" in body else rng.choice(frames.THANKS)
    return sentence(rng.choice(frames.GREETINGS), body, tail)


def reply(rng: Random, bodies: tuple[str, ...], closers: tuple[str, ...] = frames.CLOSERS, **slots: str) -> str:
    """Answer with one of the bodies and perhaps a closer."""
    return sentence(rng.choice(bodies).format(**slots), rng.choice(closers))


def order(rng: Random) -> Row:
    """Order one item, mostly a pizza."""
    items = [random_pizza(rng) if rng.random() < 0.93 else random_extra(rng)]
    return confirmed(rng, items, "order")


def multi(rng: Random) -> Row:
    """Order two or three items."""
    return confirmed(rng, random_order(rng), "multi-order")


def confirmed(rng: Random, items: list[Item], kind: str) -> Row:
    """Return the row of an order that is simply confirmed."""
    text = ask(rng, say_order(rng, items))
    answer = reply(rng, frames.CONFIRMS, items=phrases(items))
    return Row(text, answer, kind, order_key(items), order_checks(items))


def delivery(rng: Random) -> Row:
    """Order for delivery; the address is repeated."""
    items = _short_order(rng)
    address = f"{rng.randint(2, 99)} {rng.choice(frames.STREETS)}"
    text = rng.choice(frames.DELIVERY_ASKS).format(items=say_order(rng, items), address=address)
    answer = reply(rng, frames.DELIVERY_REPLIES, frames.WAY_CLOSERS, items=phrases(items), address=address)
    checks = (*order_checks(items), copied(address))
    text = sentence(rng.choice(frames.GREETINGS), text)
    return Row(text, answer, "delivery", f"{order_key(items)}; {address}", checks)


def pickup(rng: Random) -> Row:
    """Order for pickup; the time is repeated."""
    items, time = _short_order(rng), rng.choice(frames.TIMES)
    text = rng.choice(frames.PICKUP_ASKS).format(items=say_order(rng, items), time=time)
    answer = reply(rng, frames.PICKUP_REPLIES, frames.WAY_CLOSERS, items=phrases(items), time=time)
    checks = (*order_checks(items), copied(time))
    text = sentence(rng.choice(frames.GREETINGS), text)
    return Row(text, answer, "pickup", f"{order_key(items)}; {time}", checks)


def _short_order(rng: Random) -> list[Item]:
    """Draw one pizza, sometimes with a drink or a side."""
    items = [random_pizza(rng, plain=True)]
    return [*items, random_extra(rng)] if rng.random() < 0.3 else items


def change(rng: Random) -> Row:
    """Change one slot of an order; the answer confirms the new item."""
    what = rng.choice(("size", "size", "crust", "pizza", "quantity", "extra", "no", "swap", "cancel", "cancel"))
    if what == "cancel":
        return _cancel(rng)
    old = random_extra(rng) if what == "swap" else random_pizza(rng, plain=True)
    new = _changed(rng, old, what)
    text = rng.choice(CHANGE_LEADS) + rng.choice(CHANGE_CLAUSES[what])
    text = text.format(old=say_item(rng, old, comma=False), **_slots(new))
    checks = order_checks([new])
    return Row(
        sentence(rng.choice(frames.GREETINGS), text),
        reply(rng, CHANGE_REPLIES, item=new.phrase()),
        "change",
        f"{old.phrase()} -> {new.phrase()}",
        checks,
    )


def _changed(rng: Random, old: Item, what: str) -> Item:
    """Return the item with one slot changed."""
    if what == "size":
        return replace(old, size=rng.choice([s for s in SIZES if s != old.size]))
    if what == "crust":
        return replace(old, crust=rng.choice([c for c in sorted(CRUSTS) if c != old.crust]))
    if what == "quantity":
        return replace(old, quantity=rng.choice([n for n in range(2, 7) if n != old.quantity]))
    if what == "swap":
        group = DRINKS if old.name in DRINKS else SIDES
        return replace(old, name=rng.choice([n for n in sorted(group) if n != old.name]))
    if what == "pizza":
        return replace(old, name=rng.choice([n for n in sorted(PIZZAS) if n != old.name]))
    pool = PIZZAS[old.name].removable if what == "no" else _ADDED
    return replace(old, changes=((what, rng.choice(pool)),))


def _slots(new: Item) -> dict[str, str]:
    """Return the words that a change clause may use."""
    return {
        "size": new.size,
        "crust": new.crust,
        "pizza": new.name,
        "number": NUMBERS[new.quantity - 1],
        "topping": new.changes[0][1] if new.changes else "",
        "other": with_article(new.name) if new.quantity == 1 else other_plural(new, new.name),
    }


def _cancel(rng: Random) -> Row:
    """Take one line off the order."""
    item = random_extra(rng) if rng.random() < 0.6 else random_pizza(rng, plain=True)
    text = rng.choice(CANCEL_FRAMES).format(old=say_item(rng, item, comma=False))
    answer = reply(rng, CANCEL_REPLIES, item=item.phrase())
    checks = (contains(item.phrase()), matches(r"(?i)\b(cancell?ed|removed|taken|took|off|gone|without)\b"))
    return Row(sentence(rng.choice(frames.GREETINGS), text), answer, "change", f"cancel {item.phrase()}", checks)


def tone_order(rng: Random) -> tuple[str, str, list[Item]]:
    """Draw an order for the tone sets: kind, request and items."""
    single = rng.random() < 0.6
    items = [random_pizza(rng, plain=rng.random() < 0.6) if rng.random() < 0.85 else random_extra(rng)]
    items = items if single else random_order(rng)
    return "order" if single else "multi-order", ask(rng, say_order(rng, items)), items
