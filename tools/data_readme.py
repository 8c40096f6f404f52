"""The prose of the README in each data folder."""

from __future__ import annotations

from data_files import kind_table
from data_rows import Split

_SCHEMA = (
    "## Files",
    "",
    "`train.jsonl` and `heldout.jsonl` have one JSON object per line:",
    "",
    '    {"instruction": "...", "output": "...", "kind": "...", "combination": "..."}',
    "",
    "`combination` names the slots of the request in a canonical form. Training shares no combination and no",
    "instruction with `heldout.jsonl` or `prompts.yaml`; a hash of the combination decides the side. Facts such as a",
    "price can only be memorised, so the combination of a single question is the fact with the number of the",
    "wording: both occur in training, but never together. A question about two prices is held out as a pair.",
    "",
    "`prompts.yaml` lists held-out prompts with the checks that a good reply passes. A check is one of `contains`,",
    "`not_contains`, `equals`, `regex` and `stops`, with the option `ignore_case`; a list means all of its members.",
)


def _skeletons(share: float) -> list[str]:
    """Return the paragraph on the variety of the replies."""
    return [
        "## Variety",
        "",
        "A reply without its slots (menu words, numbers, prices and the words of its combination) is its skeleton.",
        f"Largest share of training replies with one skeleton: {share:.2%}.",
    ]


def pizza_body(split: Split, share: float) -> list[str]:
    """Return the description of the pizza set."""
    return [
        "A made-up pizza shop: its menu (`menu.yaml`), and requests with the replies of its order assistant.",
        "",
        "Replies confirm in a canonical item phrase: quantity in words, size, crust, name, then the toppings in the",
        'order of the request, as in "two large thin-crust pepperoni pizzas with extra cheese and no onions". What the',
        "customer leaves out stays out. About one request in five is typed",
        "carelessly with a fixed lexicon of misspellings (kinds that end in `-sloppy`).",
        "",
        *_SCHEMA,
        "",
        "## Rows per kind",
        "",
        *kind_table(split),
        "",
        *_skeletons(share),
    ]


def tone_body(tone: str, split: Split, share: float) -> list[str]:
    """Return the description of a tone set."""
    return [
        f"Requests to the shop of `../pizza/menu.yaml`, answered in a {tone} tone. Confirmed orders still contain the",
        "canonical item phrase.",
        "",
        "Every prompt is checked by one pattern of tone markers, which matches each reply of this set and no reply of",
        "the other sets, and by the absence of the other tone; some prompts also check the item phrase.",
        "",
        *_SCHEMA,
        "",
        "## Rows per kind",
        "",
        *kind_table(split),
        "",
        *_skeletons(share),
    ]


def general_body(train: int, held: int) -> list[str]:
    """Return the description of the general conversations."""
    return [
        "Short task conversations (restaurants, hotels, flights, trains, cars, buses, doctors, hair salons,",
        "apartments, events, movies, music, weather, banking, alarms and calendars), used for replay in training and",
        "to measure forgetting.",
        "",
        "## Files",
        "",
        "One JSON object per line, two to eight messages, from the user first to the assistant last:",
        "",
        '    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
        "",
        "| file | conversations |",
        "| --- | ---: |",
        f"| train.jsonl | {train} |",
        f"| heldout.jsonl | {held} |",
        "",
        "The held-out conversations are built from their own pool of sentence templates: no utterance template occurs",
        "on both sides. Slot values (cities, times, names) may.",
    ]
