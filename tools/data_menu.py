"""The menu of Luna Pizza and the canonical phrase of every item on it."""

from __future__ import annotations

from dataclasses import dataclass

SHOP = "Luna Pizza"
HOURS = ("11 am", "10 pm")
DELIVERY_FEE = 4

SIZES = ("small", "medium", "large")
# Crust name -> surcharge in dollars.
CRUSTS = {"thin": 0, "thick": 0, "stuffed": 2, "gluten-free": 3}


@dataclass(frozen=True)
class Pizza:
    """One named pizza: a price per size and what is on it."""

    prices: tuple[int, int, int]
    ingredients: tuple[str, ...]
    removable: tuple[str, ...]


PIZZAS = {
    "margherita": Pizza((8, 11, 14), ("mozzarella", "tomatoes", "basil"), ("tomatoes", "basil")),
    "pepperoni": Pizza((9, 12, 15), ("pepperoni", "mozzarella", "oregano"), ("oregano",)),
    "Hawaiian": Pizza((9, 12, 15), ("ham", "pineapple", "mozzarella"), ("ham", "pineapple")),
    "veggie": Pizza((8, 11, 14), ("mushrooms", "onions", "peppers", "olives"), ("mushrooms", "onions", "peppers")),
    "four-cheese": Pizza((10, 13, 16), ("mozzarella", "cheddar", "parmesan", "blue cheese"), ("blue cheese",)),
    "barbecue chicken": Pizza((10, 13, 16), ("chicken", "onions", "barbecue sauce"), ("onions",)),
    "meat feast": Pizza((11, 14, 17), ("ham", "bacon", "sausage", "beef"), ("ham", "bacon")),
    "seafood": Pizza((11, 14, 17), ("prawns", "tuna", "olives"), ("tuna", "olives")),
}

TOPPINGS = {
    "cheese": 2,
    "mushrooms": 1,
    "onions": 1,
    "olives": 1,
    "peppers": 1,
    "jalapenos": 1,
    "pineapple": 1,
    "spinach": 1,
    "tomatoes": 1,
    "bacon": 2,
    "chicken": 2,
    "ham": 2,
}

DRINKS = {"cola": 2, "lemonade": 3, "orange juice": 4, "iced tea": 3, "sparkling water": 2, "root beer": 3}
SIDES = {"garlic bread": 4, "green salad": 5, "box of wings": 7, "portion of fries": 4, "brownie": 3, "tiramisu": 5}

INGREDIENT_WORDS = tuple(sorted({word for pizza in PIZZAS.values() for word in pizza.ingredients}))
NUMBERS = ("one", "two", "three", "four", "five", "six")
PLURALS = {"box of wings": "boxes of wings", "portion of fries": "portions of fries"}


def plural(noun: str) -> str:
    """Return the plural of a menu noun."""
    return PLURALS.get(noun, noun + "s")


def with_article(noun: str) -> str:
    """Return the noun phrase with "a" or "an" in front."""
    return ("an " if noun[0].lower() in "aeio" else "a ") + noun


def join_words(words: list[str] | tuple[str, ...], last: str = "and") -> str:
    """Join words as "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + f" {last} " + words[-1]


def crust_word(crust: str) -> str:
    """Return the crust as it stands in a canonical phrase."""
    return crust if crust == "gluten-free" else f"{crust}-crust"


@dataclass(frozen=True)
class Item:
    """One ordered line; drinks and sides use only `quantity` and `name`."""

    name: str
    quantity: int = 1
    size: str = ""
    crust: str = ""
    changes: tuple[tuple[str, str], ...] = ()  # ("extra" | "no", topping), in the customer's order

    @property
    def is_pizza(self) -> bool:
        """Tell a pizza from a drink or a side."""
        return self.name in PIZZAS

    def noun(self) -> str:
        """Return the noun phrase without quantity and toppings."""
        if not self.is_pizza:
            return self.name if self.quantity == 1 else plural(self.name)
        words = [self.size, crust_word(self.crust) if self.crust else "", self.name]
        return " ".join(w for w in words if w) + (" pizza" if self.quantity == 1 else " pizzas")

    def phrase(self) -> str:
        """Return the canonical phrase, which every confirming reply contains."""
        return f"{NUMBERS[self.quantity - 1]} {self.noun()}{self.toppings()}"

    def toppings(self) -> str:
        """Return the canonical " with ..." tail, or nothing."""
        if not self.changes:
            return ""
        return " with " + join_words([f"{how} {topping}" for how, topping in self.changes])


def phrases(items: list[Item]) -> str:
    """Return the canonical phrase of a whole order, in the customer's order."""
    return join_words([item.phrase() for item in items])


def priced_items() -> dict[str, int]:
    """Map the name of everything that is sold on its own to its price."""
    table = {f"{s} {n} pizza": p.prices[i] for n, p in PIZZAS.items() for i, s in enumerate(SIZES)}
    return table | DRINKS | SIDES


def menu_yaml() -> str:
    """Return the menu as the text of menu.yaml."""
    lines = [f'shop: "{SHOP}"', f'hours: {{open: "{HOURS[0]}", close: "{HOURS[1]}"}}']
    lines += ["currency: USD", f"delivery_fee: {DELIVERY_FEE}", f"sizes: [{', '.join(SIZES)}]"]
    lines += ["crusts:  # surcharge"] + [f"  {name}: {price}" for name, price in CRUSTS.items()]
    lines.append("pizzas:")
    for name, pizza in PIZZAS.items():
        prices = ", ".join(f"{s}: {p}" for s, p in zip(SIZES, pizza.prices, strict=True))
        lines.append(f"  {name}: {{prices: {{{prices}}}, ingredients: [{', '.join(pizza.ingredients)}]}}")
    tables = (("toppings", TOPPINGS), ("drinks", DRINKS), ("sides", SIDES))
    for title, table in tables:
        lines += [f"{title}:"] + [f"  {name}: {price}" for name, price in table.items()]
    return "\n".join(lines) + "\n"
