"""Recipes that nobody means well with: generators of texts, files and overrides, repeatable by their number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune.recipe.keys import walk
from finetune.recipe.synonyms import ABSENT, SYNONYMS
from tests.recipe.helpers import REQUIRED, SHIPPED

MAIN = "recipe.yaml"
LARGE = 0.04  # share of cases that fill what a file may hold
REAL = [path.read_bytes() for path in SHIPPED if path.parent.name == "recipes"]
KEYS = [key.name.rpartition(".")[2] for key in walk()]
KEYS += ["<<", "1", "null", "METRIC", "prompts.gain", "perplexity.heldout", '"a\\nb\\x1b"', '"\\ud800"']
WORDS = "~ null true no 1 -1 0 0.5 1e400 -.inf .nan 0x 0xff 0o17 1_0 2001-99-99 12:30:45 tiny nf4 cpu a:b text alpaca"
SCALARS = [*WORDS.split(), '"\\ud800"', '"\\UFFFFFFFF"', '"\\x00"', '"\\q"', "'", '"', "|\n  x", ">-\n  x", "9" * 5000]
SCALARS += [
    "*a",
    "&a b",
    "*zz",
    "!foo x",
    "!!binary aa",
    "!!timestamp x",
    "!!omap [a: b]",
    "!!set {a}",
    "!!int x",
    "! x",
]
SCALARS += ["{path: a, weight: 1}", "[{path: a, weight: 1}]", "{at_least: .nan}", "[]", "{}", "[[[]]]", "{? [a] : b}"]
SCALARS += [
    "&b [*b]",
    "!!python/name:os.system",
    "%YAML 9",
    "---",
    "...",
    "\t",
    "#",
    "- 1",
    "@",
    "`",
    "\ufeff",
    "\u2028",
]
SCALARS += ["\x85", "größe", "\U0001f600", "é" * 300]
NOISE = [b"\x00", b"\xff", b"\xef\xbb\xbf", b"\t", b"\x80", b"\xc3", b"\x1b", b"\r", b"\x85", b"\n"]
NOISE += [bytes([sign]) for sign in b"&*!{[\"':"]
NESTS = ["[", "{", "- ", "? ", "{a: ", "[[", "a: [", ": ", "- - ", "&a [", "!a [", "[{", "? - ", "<<: {"]
PATHS = [MAIN, "./recipe.yaml", "a.yaml", "b.yaml", "c/d.yaml", "missing.yaml", "..", ".", "/", "/dev/zero", "~"]
PATHS += ['"a\\0b"', "x" * 300]
DOTTED = [key.name for key in walk()]
DOTTED += [
    "extends",
    "",
    ".",
    "a..b",
    "data.mix.0.path",
    "eval.gates.prompts.gain",
    "x" * 200,
    "train.a\x1bb",
    "seed\n",
]


@dataclass(frozen=True)
class Case:
    files: dict[str, bytes]
    overrides: list[str] = field(default_factory=list)


def make_case(number: int) -> Case:
    """Make one case; the same number gives the same case."""
    rng = random.Random(number)
    return rng.choice(MAKERS)(rng)


def _one(text: str | bytes, overrides: list[str] | None = None) -> Case:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return Case({MAIN: data}, overrides or [])


def _size(rng: random.Random, small: int, large: int) -> int:
    return rng.randint(large // 2, large) if rng.random() < LARGE else rng.randint(1, small)


def _value(rng: random.Random, depth: int = 3) -> str:
    kind = rng.random() if depth else 1.0
    if kind < 0.15:
        return f"[{', '.join(_value(rng, depth - 1) for _ in range(rng.randint(0, 4)))}]"
    if kind < 0.3:
        return f"{{{', '.join(f'{rng.choice(KEYS)}: {_value(rng, depth - 1)}' for _ in range(rng.randint(0, 4)))}}}"
    return rng.choice(SCALARS)


def alias_bomb(rng: random.Random) -> Case:
    """Each level repeats the one before; lists, mappings and merges, in the places of real keys."""
    levels, width = rng.randint(1, 16), rng.randint(1, 12)
    kind = rng.choice(["list", "map", "merge", "mixes"])
    lines = ["a0: &a0 {path: x, weight: 1}" if kind in ("merge", "mixes") else "a0: &a0 [x, x]"]
    for level in range(1, levels + 1):
        before = [f"*a{level - 1}"] * width
        inner = {"map": "{" + ", ".join(f"k{n}: {name} " for n, name in enumerate(before)) + "}"}
        inner |= {"list": f"[{', '.join(before)}]", "merge": f"{{<<: [{', '.join(before)}], k{level}: 1}}"}
        lines.append(f"a{level}: &a{level} {inner.get(kind, inner['list'])}")
    lines.append(
        rng.choice(["data: {mix: *a%d }", "base: *a%d", "train: {<<: *a%d }", "eval: {gates: *a%d }"]) % levels
    )
    return _one("\n".join([*lines, rng.choice(["", REQUIRED])]))


def odd_lines(rng: random.Random) -> Case:
    indents = ["", "", "  ", "    ", "- ", "\t"]
    lines = [f"{rng.choice(indents)}{rng.choice(KEYS)}: {_value(rng)}" for _ in range(rng.randint(0, 12))]
    return _one(rng.choice(["", REQUIRED, "\ufeff"]) + "\n".join(lines))


def known_keys(rng: random.Random) -> Case:
    """A whole recipe in which some keys have values of any kind."""
    names = rng.sample(DOTTED, rng.randint(1, 3))
    return _one(REQUIRED, [f"{name}={_value(rng)}" for name in names])


def cut(rng: random.Random) -> Case:
    data = rng.choice(REAL)
    return _one(data[: rng.randint(0, len(data))])


def mutated(rng: random.Random) -> Case:
    data = bytearray(rng.choice(REAL))
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(data))
        data[start : start + rng.choice([0, 0, 1, 1, 30])] = rng.choice([*NOISE, bytes([rng.randrange(256)])])
    return _one(bytes(data))


def shuffled(rng: random.Random) -> Case:
    """Lines of real recipes, doubled, dropped and moved: duplicate keys and wrong levels."""
    lines = rng.choice(REAL).splitlines(True)
    picked = [rng.choice(lines) if rng.random() < 0.2 else line for line in lines if rng.random() < 0.9]
    return _one(b"".join(picked))


def deep(rng: random.Random) -> Case:
    nest = "".join(rng.choice(NESTS) for _ in range(rng.randint(1, 2)))
    text = nest * _size(rng, 200, 60_000 // len(nest))
    indented = "".join(f"{' ' * level}a:\n" for level in range(_size(rng, 40, 340)))
    return _one(rng.choice([text, f"a: {text}", f"{REQUIRED}eval: {text}", indented]))


def long(rng: random.Random) -> Case:
    size = _size(rng, 400, 65_000)
    parts = ["x", "x ", "\\x41", "é", "# ", "\n", " ", "\t", ",", "x,", "'", "a: b\n", "- a\n", "&a ", "!a ", "---\n"]
    part = rng.choice(parts)
    text = part * (size // len(part.encode()))
    return _one(
        rng.choice(
            ["{}", "name: {}", 'name: "{}"', "name: '{}'", "name: |\n  {}", "{}: a", "name: [{}]", "#{}"]
        ).format(text)
    )


def many_wrong_keys(rng: random.Random) -> Case:
    words = [*SYNONYMS, *ABSENT, *filter(str.isidentifier, KEYS)]
    names = {f"{rng.choice(words)}{rng.choice('_sx')}{n}" for n in range(_size(rng, 40, 2500))}
    return _one(REQUIRED + "".join(f"{name}: 1\n" for name in names))


def chain(rng: random.Random) -> Case:
    names = [MAIN, "a.yaml", "b.yaml", "c/d.yaml", *(f"{n}.yaml" for n in range(rng.randint(0, 9)))]
    files = {}
    for name in names:
        target = rng.choice([*PATHS, *names, *names, _value(rng)])
        body = rng.choice([b"", REQUIRED.encode(), rng.choice(REAL), mutated(rng).files[MAIN], b"- a", b"\xff"])
        files[name] = b"" if rng.random() < 0.05 else f"extends: {target}\n".encode("utf-8", "surrogatepass") + body
    return Case(files)


def hostile_overrides(rng: random.Random) -> Case:
    overrides = []
    for _ in range(rng.randint(1, 12)):
        value = rng.choice([_value(rng), rng.choice(NESTS) * _size(rng, 60, 5000), "\x00", "\ud800", "x" * 3000])
        overrides.append(rng.choice([f"{rng.choice(DOTTED)}={value}", value, f"{'a.' * rng.randint(1, 3000)}b=1", "="]))
    return _one(rng.choice([REQUIRED.encode(), *REAL]), overrides * (30 if rng.random() < LARGE else 1))


def noise(rng: random.Random) -> Case:
    data = rng.randbytes(rng.randint(0, 300))
    return _one(rng.choice([data, bytes(byte & 0x7F for byte in data), REQUIRED.encode() + data]))


MAKERS: list[Callable[[random.Random], Case]] = [alias_bomb, chain, cut, deep, hostile_overrides, known_keys]
MAKERS += [long, many_wrong_keys, mutated, noise, odd_lines, shuffled]
