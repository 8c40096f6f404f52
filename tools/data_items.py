"""Random orders, and the many ways in which a customer words them."""

from __future__ import annotations

import re
from random import Random

from data_menu import CRUSTS, DRINKS, NUMBERS, PIZZAS, SIDES, SIZES, TOPPINGS, Item, join_words, plural, with_article
from data_rows import Maker, Row, retitled

# Clean stem -> the sloppy forms; this lexicon is fixed, and training shows every form.
SLOPPY: dict[str, tuple[str, ...]] = {
    "large": ("lg", "lrg"),
    "medium": ("med",),
    "small": ("sm",),
    "thin-crust": ("thin crust",),
    "thick-crust": ("thick crust",),
    "stuffed": ("stufed",),
    "gluten-free": ("gf",),
    "pepperoni": ("peperoni", "pep"),
    "margherita": ("margarita",),
    "hawaiian": ("hawaian",),
    "veggie": ("vegie",),
    "four-cheese": ("4-cheese",),
    "barbecue": ("bbq",),
    "meat feast": ("meatfeast",),
    "seafood": ("sea food",),
    "pizza": ("piza",),
    "cheese": ("chese",),
    "mushrooms": ("mushrom",),
    "onions": ("onion",),
    "olives": ("olive",),
    "jalapenos": ("jalapeno",),
    "pineapple": ("pineaple",),
    "spinach": ("spinich",),
    "tomatoes": ("tomatos",),
    "cola": ("coke",),
    "lemonade": ("lemonad",),
    "orange juice": ("oj",),
    "iced tea": ("ice tea",),
    "sparkling water": ("sparkling wtr",),
    "root beer": ("rootbeer",),
    "garlic bread": ("garlic bred",),
    "green salad": ("grn salad",),
    "wings": ("wngs",),
    "fries": ("frys",),
    "brownie": ("browny",),
    "tiramisu": ("tiramissu",),
    "extra": ("xtra",),
    "with": ("w/",),
    "without": ("w/o",),
    "and": ("n", "&"),
    "please": ("pls", "plz"),
    "thanks": ("thx",),
    "you": ("u",),
    "what": ("wat",),
    "how much": ("how mch",),
}
CRUST_TAILS = (" on a {} crust", " with a {} crust", " with {} crust")
_STEMS = re.compile(r"(?<![\w-])(" + "|".join(sorted(SLOPPY, key=len, reverse=True)) + r")(s?)(?![\w-])")
_FORMS = re.compile(r"(?<!\S)(" + "|".join(re.escape(f) for forms in SLOPPY.values() for f in forms) + r")s?(?![\w-])")
_ARTICLE = re.compile(r"\ban? (?=(?:" + "|".join([*SIZES, *CRUSTS, *PIZZAS, *DRINKS, *SIDES]).lower() + r")\b)")
_QUANTITY = re.compile(r"\b(" + "|".join(NUMBERS) + r")\b(?!-| question)")


def random_changes(rng: Random, pizza: str) -> tuple[tuple[str, str], ...]:
    """Draw no, one or two changes to the toppings of a pizza."""
    count = rng.choices((0, 1, 2), (46, 41, 13))[0]
    extras = [("extra", t) for t in rng.sample(sorted(set(TOPPINGS) - set(PIZZAS[pizza].removable)), 2)]
    removed = [("no", t) for t in PIZZAS[pizza].removable]
    pool = [extras[0], rng.choice(removed)] if rng.random() < 0.7 else extras
    return tuple(rng.sample(pool, count))


def random_pizza(rng: Random, plain: bool = False) -> Item:
    """Draw a pizza with a size; `plain` leaves the toppings alone."""
    name = rng.choice(sorted(PIZZAS))
    crust = rng.choice(sorted(CRUSTS)) if rng.random() < 0.5 else ""
    changes = () if plain else random_changes(rng, name)
    return Item(name, rng.choices((1, 2, 3, 4, 5, 6), (34, 24, 16, 11, 8, 7))[0], rng.choice(SIZES), crust, changes)


def random_extra(rng: Random) -> Item:
    """Draw a drink or a side."""
    return Item(rng.choice(sorted(DRINKS | SIDES)), rng.choices((1, 2, 3, 4, 5, 6), (30, 25, 17, 12, 9, 7))[0])


def random_order(rng: Random) -> list[Item]:
    """Draw two or three different items, at least one of them a pizza."""
    items = [random_pizza(rng, plain=rng.random() < 0.5), random_extra(rng)]
    third = rng.random()
    if third < 0.06:
        items.append(random_extra(rng))
    elif third < 0.12:
        items.append(random_pizza(rng, plain=True))
    rng.shuffle(items)
    names = {item.name for item in items}
    return items if len(names) == len(items) else random_order(rng)


def say_quantity(rng: Random, quantity: int, noun: str) -> str:
    """Say how many: in digits, in a word, or with an article."""
    if quantity == 1 and rng.random() < 0.75:
        return with_article(noun)
    number = NUMBERS[quantity - 1] if rng.random() < 0.55 else str(quantity)
    return f"{number} {noun}"


def _say_toppings(rng: Random, item: Item, comma: bool) -> str:
    """Say the toppings in the order of the item."""
    if not item.changes:
        return ""
    style = rng.random()
    words = [f"{how} {topping}" for how, topping in item.changes]
    if comma and style < 0.35:
        return ", " + ", ".join(words)
    if len(words) == 1 and words[0].startswith("no ") and style < 0.9:
        return " without " + words[0][3:]
    mixed = [how for how, _ in item.changes] == ["extra", "no"]
    return " with " + (" but ".join(words) if mixed and style < 0.6 else join_words(words))


def say_item(rng: Random, item: Item, comma: bool = True) -> str:
    """Word one item as a customer would; `comma` allows commas inside it."""
    if not item.is_pizza:
        return say_quantity(rng, item.quantity, item.noun())
    bare = Item(item.name, item.quantity, item.size)
    tail = _say_toppings(rng, item, comma)
    style = rng.random()
    if style < 0.45 or (not item.crust and style < 0.75):
        return say_quantity(rng, item.quantity, item.noun()) + tail
    if style > 0.88 and comma and item.size:
        crust = f", {item.crust} crust" if item.crust else ""
        name = item.name + (" pizza" if item.quantity == 1 else " pizzas")
        return f"{say_quantity(rng, item.quantity, name)}, {item.size}{crust}{tail}"
    noun = bare.noun()
    if style > 0.72 and item.quantity == 1:
        noun = noun.removesuffix(" pizza")
    where = rng.choice(CRUST_TAILS).format(item.crust) if item.crust else ""
    tail = tail.replace(" with ", " and ") if " with " in where else tail
    return say_quantity(rng, item.quantity, noun) + where + tail


def say_order(rng: Random, items: list[Item]) -> str:
    """Word a whole order."""
    words = [say_item(rng, item, comma=len(items) == 1) for item in items]
    if len(words) == 1:
        return words[0]
    last = rng.choice((" and ", " and ", ", and ", " plus ", " and also "))
    return ", ".join(words[:-1]) + last + words[-1]


def _misspell(rng: Random, text: str, chance: float) -> str:
    """Replace lexicon words by their sloppy forms, each with the given chance."""

    def swap(match: re.Match[str]) -> str:
        """Return one sloppy form, keeping a plural s."""
        if rng.random() > (chance / 2 if match[1] == "pizza" else chance):
            return match[0]
        return rng.choice(SLOPPY[match[1]]) + match[2]

    return _STEMS.sub(swap, text)


def _digits(rng: Random, match: re.Match[str]) -> str:
    """Write a quantity as a digit, sometimes with an x."""
    return str(NUMBERS.index(match[1]) + 1) + rng.choice(("", "", "x", " x"))


def make_sloppy(rng: Random, text: str) -> str:
    """Type the request carelessly: lower case, digits, misspellings, little punctuation."""
    text = _QUANTITY.sub(lambda m: _digits(rng, m) if rng.random() < 0.7 else m[0], text.lower())
    text = _ARTICLE.sub("", text) if rng.random() < 0.5 else text
    text = _misspell(rng, text, 0.75)
    text = re.sub(r"[.!?;:]", "", text) if rng.random() < 0.8 else text
    text = re.sub(r",", "", text) if rng.random() < 0.5 else text
    return re.sub(r"\s+", " ", text).strip()


def sloppy(maker: Maker) -> Maker:
    """Return a maker of the same requests, typed carelessly."""

    def make(rng: Random) -> Row:
        """Draw until the careless form differs by more than its case."""
        while True:
            row = maker(rng)
            text = make_sloppy(rng, row.instruction)
            if _FORMS.search(text):
                return retitled(row, f"{row.kind}-sloppy", text)

    return make


def other_plural(item: Item, name: str) -> str:
    """Return another drink or side in the item's number."""
    return name if item.quantity == 1 else plural(name)
