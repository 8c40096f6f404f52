"""Short task conversations; training and held-out ones use different sentence templates throughout."""

from __future__ import annotations

import re
from random import Random

from data_general_a import SCENES_A
from data_general_b import SCENES_B
from data_general_c import SCENES_C
from data_general_values import COMMON, VALUES
from data_rows import capital

Message = dict[str, str]
Pools = dict[str, list[str]]
ARTICLE = re.compile(r"\b([Aa]) (?=[AEIOaeio])")  # "a" where "an" is meant
SLOT = re.compile(r"\{(\w+)\}")
LENGTHS = ((2, 10), (4, 35), (6, 35), (8, 20))  # (messages, weight)


def parse_pools(text: str, held: bool) -> Pools:
    """Read "key: template" lines; a star in front marks the held-out pool."""
    pools: Pools = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("*") == held:
            key, template = line.lstrip("*").split(": ", 1)
            pools.setdefault(key, []).append(template)
    return pools


def parse_scenes(held: bool) -> dict[str, Pools]:
    """Return the pools of every scene on one side of the split, with the common sentences mixed in."""
    common = parse_pools(COMMON, held)
    scenes = {}
    for block in (SCENES_A + SCENES_B + SCENES_C).split("# ")[1:]:
        name, body = block.split("\n", 1)
        scenes[name.strip()] = common | parse_pools(body, held)
    return scenes


class Conversation:
    """One conversation in the making: the pools, the slots filled so far, and the messages."""

    def __init__(self, rng: Random, pools: Pools) -> None:
        """Start with no slot filled and nothing said."""
        self._rng = rng
        self._pools = pools
        self._slots: dict[str, str] = {}
        self.messages: list[Message] = []

    def said(self, slot: str) -> bool:
        """Tell whether the slot was named before."""
        return slot in self._slots

    def steps(self) -> list[str]:
        """Return the slots that the assistant asks for, in the order of the scene."""
        return [key.removeprefix("ask.") for key in self._pools if key.startswith("ask.")]

    def topics(self) -> list[str]:
        """Return what the user may ask about after an offer."""
        return [key.removeprefix("q.") for key in self._pools if key.startswith("q.")]

    def say(self, *keys: str) -> None:
        """Say one template of each key, filling new slots on the way; roles alternate."""
        text = " ".join(capital(SLOT.sub(self._fill, self._rng.choice(self._pools[key]))) for key in keys)
        text = ARTICLE.sub(r"\1n ", text)
        role = "assistant" if len(self.messages) % 2 else "user"
        self.messages.append({"role": role, "content": text})

    def _fill(self, match: re.Match[str]) -> str:
        """Return the value of a slot, drawing it when it is new."""
        slot = match[1]
        if slot not in self._slots:
            self._slots[slot] = self._rng.choice(VALUES[slot])
        return self._slots[slot]


def converse(rng: Random, pools: Pools) -> list[Message]:
    """Play one conversation of two to eight messages that ends with the assistant."""
    length = rng.choices([n for n, _ in LENGTHS], [w for _, w in LENGTHS])[0]
    talk, rounds = Conversation(rng, pools), length // 2 - 1
    talk.say("open")
    missing = [slot for slot in talk.steps() if not talk.said(slot)]
    asked = min(len(missing), rng.randint(max(0, rounds - 3), max(1, rounds - 1)), rounds)
    for slot in missing[:asked]:
        talk.say(f"ask.{slot}")
        talk.say(f"say.{slot}")
    talk.say("offer")
    finish(rng, talk, rounds - asked)
    return talk.messages


def finish(rng: Random, talk: Conversation, rounds: int) -> None:
    """Play the rest after the offer: a question, the agreement and the goodbye, as many as fit."""
    asks, leaves = rounds == 3 or (rounds == 2 and rng.random() < 0.5), rounds == 3
    leaves = leaves or (rounds == 2 and not asks)
    if asks:
        topic = rng.choice(talk.topics())
        talk.say(f"q.{topic}")
        talk.say(f"a.{topic}")
    if rounds:
        talk.say("accept")
        talk.say(*(("done", "more") if leaves or rng.random() < 0.5 else ("done",)))
    if leaves:
        talk.say("thanks")
        talk.say("bye")


def general_rows(count: int, held: bool) -> list[dict[str, list[Message]]]:
    """Return that many different conversations, all scenes in turn."""
    rng, scenes = Random(f"general-{held}"), parse_scenes(held)
    rows: list[dict[str, list[Message]]] = []
    seen: set[str] = set()
    while len(rows) < count:
        messages = converse(rng, scenes[sorted(scenes)[len(rows) % len(scenes)]])
        if str(messages) not in seen:
            seen.add(str(messages))
            rows.append({"messages": messages})
    rng.shuffle(rows)
    return rows
