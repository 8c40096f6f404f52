"""Secrets and personal data: what is planted is found, and ordinary text, code and numbers are left alone."""

from __future__ import annotations

import base64
import json
import random
import socket
import string
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from finetune.data.lint.secrets import find_secrets, redact

DATA = Path(__file__).parents[3] / "data"
WORD = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
WEB = WORD + "-_"
PER_KIND = 50
TALK = """the order was late and nobody in town had seen a courier since the storm so we called to ask which road is
open again before lunch while two of our friends were baking bread for everybody who came by train from the coast"""
WORDS = TALK.split()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("tries to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class Maker:
    """Makes secrets by the rules of their formats; none is in this file, and none was ever issued."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, characters: str, count: int) -> str:
        return "".join(self.random.choices(characters, k=count))

    def sentence(self, count: int = 9) -> str:
        return " ".join(self.random.choices(WORDS, k=count))

    def day(self) -> str:
        return (
            f"{self.random.randrange(1990, 2030)}-{self.random.randrange(1, 13):02}-{self.random.randrange(1, 29):02}"
        )

    def clock(self) -> str:
        return ":".join(f"{self.random.randrange(limit):02}" for limit in (24, 60, 60))

    def web_token(self) -> str:
        parts = {"alg": "HS256", "typ": "JWT"}, {"sub": self.some(WORD, 12), "iat": self.random.randrange(10**9)}
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*encoded, self.some(WEB, 43)])

    def private_key(self) -> str:
        name = self.random.choice(("RSA ", "EC ", "OPENSSH ", "")) + "PRIVATE" + " KEY"
        body = "\n".join(self.some(WORD + "+/", 64) for _ in range(5))
        return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----"

    def discord(self) -> str:
        account = base64.urlsafe_b64encode(self.some("123456789", 18).encode()).decode()
        return f"{account}.{self.some(WEB, 6)}.{self.some(WEB, 27)}"

    def card(self) -> str:
        start, length = self.random.choice((("4", 16), ("53", 16), ("37", 15), ("6011", 16)))
        digits = start + self.some(string.digits, length - len(start) - 1)
        digits += luhn.calc_check_digit(digits)
        cut = (4, 8, 12) if length == 16 else (4, 10)
        sign = self.random.choice(("", " ", "-"))
        return sign.join(digits[a:b] for a, b in zip((0, *cut), (*cut, None), strict=True))

    def account(self) -> str:
        land, letters, digits = self.random.choice((("DE", 0, 18), ("GB", 4, 14), ("NL", 4, 10), ("AT", 0, 16)))
        inner = self.some(string.ascii_uppercase, letters) + self.some(string.digits, digits)
        number = land + iban.calc_check_digits(land + "00" + inner) + inner
        return self.random.choice((number, iban.format(number)))

    def phone(self) -> str:
        r, some = self.random, self.some
        area, exchange = r.choice(("212", "415", "617", "303", "206")), r.choice("246") + some("3456", 2)
        line, four, two = some(string.digits, 4), some("2345", 4), some("2345", 2)
        return r.choice(
            (
                f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"{area}.{exchange}.{line}",
                f"+1 {area} {exchange} {line}", f"1-{area}-{exchange}-{line}", f"+1{area}{exchange}{line}",
                f"+44 7{four[:3]} {four}{two}", f"+49 151 2{four} {two}{two[:1]}", f"+81 90-{four}-{line}",
            )
        )  # fmt: skip

    def url(self, *schemes: str) -> str:
        login = f"{self.random.choice(WORDS)}:{self.some(WORD + '!-_~', 12)}"
        return f"{self.random.choice(schemes)}://{login}@db-{self.some(HEX, 3)}.internal:5432/main"

    def address(self) -> str:
        name = f"{self.random.choice(WORDS)}{self.random.choice(('.', '_', '+', ''))}{self.some(HEX, 4)}"
        top = self.random.choice(("com", "org", "de", "co.uk"))
        return f"{name}@{self.random.choice(WORDS)}-{self.some(HEX, 2)}.{top}"


def kinds(m: Maker) -> dict[str, Callable[[], str]]:
    any_of = m.random.choice
    return {
        "AWS access key": lambda: any_of(("AK", "AS")) + "IA" + m.some(string.ascii_uppercase + "234567", 16),
        "AWS secret key": lambda: f"aws_secret_access_key = '{m.some(WORD + '+/', 40)}'",
        "Azure storage key": lambda: "Account" + "Key=" + m.some(WORD + "+/", 86) + "==",
        "GitHub token": lambda: any_of(
            ("gh" + "p_" + m.some(WORD, 36), "github" + "_pat_" + m.some(WORD, 22) + "_" + m.some(WORD, 59))
        ),
        "GitLab token": lambda: "gl" + "pat-" + m.some(WEB, 20),
        "Mailchimp key": lambda: m.some(HEX, 32) + "-us" + any_of(("1", "12")),
        "OpenAI key": lambda: "s" + "k-proj-" + m.some(WEB, 74) + "T3Blbk" + "FJ" + m.some(WEB, 74),
        "PyPI token": lambda: "py" + "pi-AgEIcHlwaS5vcmc" + m.some(WEB, 120),
        "SendGrid key": lambda: "S" + "G." + m.some(WEB, 22) + "." + m.some(WEB, 43),
        "Slack token": lambda: "xo" + "xb-" + m.some("2345", 12) + "-" + m.some("6789", 13) + "-" + m.some(WORD, 24),
        "Stripe key": lambda: "s" + "k_live_" + m.some(WORD, any_of((24, 99))),
        "Telegram bot token": lambda: m.some("3456", 10) + ":" + "AA" + m.some(WEB, 33),
        "Anthropic key": lambda: "s" + "k-ant-api03-" + m.some(WEB, 93) + "AA",
        "Databricks token": lambda: "da" + "pi" + m.some(HEX, 32),
        "DigitalOcean token": lambda: "do" + "p_v1_" + m.some(HEX, 64),
        "Discord bot token": m.discord,
        "Google key": lambda: "AI" + "za" + m.some(WEB, 35),
        "Hugging Face token": lambda: "h" + "f_" + m.some(WORD, 34),
        "JSON Web Token": m.web_token,
        "npm token": lambda: "np" + "m_" + m.some(WORD, 36),
        "Shopify token": lambda: "shp" + "at_" + m.some(HEX, 32),
        "Twilio key": lambda: "S" + "K" + m.some(HEX, 32),
        "private key": m.private_key,
        "URL with a password": lambda: m.url("https", "ftp", "smtp"),
        "database URL with a password": lambda: m.url("postgres", "mysql", "mongodb+srv", "redis"),
        "card number": m.card,
        "bank account": m.account,
        "phone number": m.phone,
        "e-mail address": m.address,
        "social security number": lambda: f"{m.random.randrange(100, 600)}-{m.some('2345', 2)}-{m.some('6789', 4)}",
    }


PLACES: tuple[Callable[[Maker, str], str], ...] = (
    lambda m, s: f"{m.sentence()} {s} {m.sentence()}.",
    lambda m, s: f"{m.sentence()}:\n{s}\n{m.sentence()}",
    lambda m, s: f"{m.sentence()}, use {s}.",
    lambda m, s: json.dumps({"instruction": m.sentence(), "value": s, "next": 1}),
    lambda m, s: json.dumps({"output": f"{m.sentence()}\n{s}\n"}),
    lambda m, s: f'client = Client(name="main", value="{s}")  # {m.sentence(3)}',
    lambda m, s: f"VALUE={s}\nexport VALUE",
    lambda m, s: f"| {m.sentence(2)} | `{s}` |",
    lambda m, s: f"{m.sentence()} ({s}), {m.sentence()}",
    lambda m, s: s,
)


def core(kind: str, secret: str) -> str:
    """The part that must not be seen."""
    if kind == "AWS secret key":
        return secret.split("'")[1]
    return secret.split(":")[2].partition("@")[0] if "URL" in kind else secret


def test_what_is_planted_is_found() -> None:
    maker, missed = Maker(7), Counter[str]()
    for kind, make in kinds(maker).items():
        for number in range(PER_KIND):
            secret = make()
            text = PLACES[number % len(PLACES)](maker, secret)
            found = [text[f.start : f.end].replace("\\n", "\n") for f in find_secrets(text) if f.kind == kind]
            missed[kind] += not any(core(kind, secret) in piece for piece in found)
    assert len(missed) * PER_KIND >= 1000
    assert {kind: count for kind, count in missed.items() if count > 0.05 * PER_KIND} == {}
    assert sum(missed.values()) <= 0.01 * len(missed) * PER_KIND, missed


def shipped_rows() -> Iterator[str]:
    for path in sorted(DATA.glob("*/*.jsonl")):
        yield from path.read_text(encoding="utf-8").splitlines()


def ordinary(m: Maker) -> Iterator[str]:
    """Endless text with what looks like secrets and is none."""
    below, word = m.random.randrange, lambda: m.random.choice(WORDS)
    makers: tuple[Callable[[], str], ...] = (
        lambda: f"The price is ${below(9999)}.{below(100):02} or {below(10**6):,} yen.",
        lambda: f"Order {m.some(string.digits, below(5, 13))} of {m.day()} came at {m.clock()}.",
        lambda: f"{below(1, 13):02}/{below(1, 29):02}/{below(1990, 2030)} {m.clock()}, then {m.day()}T{m.clock()}Z",
        lambda: f"commit {m.some(HEX, 40)}\nsha256 {m.some(HEX, 64)} and {m.some(HEX, 7)}",
        lambda: f"id {uuid.UUID(int=m.random.getrandbits(128))}, colour #{m.some(HEX, 6)}",
        lambda: f"mac {':'.join(m.some(HEX, 2) for _ in range(6))}, x = {[below(1000) for _ in range(20)]}",
        lambda: f"Version {below(99)}.{below(99)}.{below(999)} runs on 192.168.{below(256)}.{below(256)}:8080.",
        lambda: f"ISBN 978-{below(10)}-{m.some('12345', 4)}-{m.some('12345', 4)}-{below(10)}, pages {below(99)}-104.",
        lambda: f"It stands at {m.random.uniform(-90, 90):.6f}, {m.random.uniform(-180, 180):.6f}.",
        lambda: f"{below(10**9)} * {below(10**9)} = {below(10**18)}; pi is 3.{m.some(string.digits, 15)}",
        lambda: f"data = base64.b64decode('{m.some(WORD + '+/', 60)}')  # {below(10**12)} bytes",
        lambda: f"See https://www.{word()}-{word()}.com/{m.day()}/{word()}?id={m.some(WORD, 24)}&page=2#top.",
        lambda: f"for i in range({below(10**6)}):\n    total += weights[i] @ inputs[i].T  # {m.clock()}",
        lambda: f"@app.route('/{word()}')\ndef handle_{word()}_{word()}_and_return(self): ...",
        lambda: f"ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB{m.some(WORD + '+/', 200)} {word()}@laptop",
        lambda: f"Thanks @{word()}_{word()}! git clone git@github.com:{word()}/{word()}.git",
        lambda: f"timestamp={below(10**9, 2 * 10**9)}{below(999)} user={below(10**9)} took {m.random.random():.12f}s",
        lambda: f"npm install {word()}@{below(20)}.{below(20)}.0 'sha512-{m.some(WORD + '+/', 86)}=='",
        lambda: f"call me after {m.day()} {m.clock()} about invoice {m.some(string.digits, 8)}-{below(99)}",
        lambda: f"tracking 1Z{m.some(string.digits, 16)}, {below(100)} of {below(100)}, room {below(999)}",
        lambda: f"Table 3: {'  '.join(f'{below(1000) / 10}' for _ in range(12))} (+{below(100) / 10})",
    )
    while True:
        yield " ".join((m.sentence(), m.random.choice(makers)(), m.sentence(), m.random.choice(makers)()))


def test_ordinary_rows_are_left_alone() -> None:
    made = ordinary(Maker(11))
    for rows in (list(shipped_rows()), [next(made) for _ in range(10_000)]):
        assert len(rows) >= 10_000
        flagged = [(f.kind, row[f.start : f.end]) for row in rows if (found := find_secrets(row)) for f in found[:1]]
        assert len(flagged) <= 0.005 * len(rows), flagged[:20]


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfi" + "CYEXAMPLEKEY",
        "api_key = 'your-api-key'; token = <token>; key = sk-...",
        "OPENAI_API_KEY=sk-" + "x" * 48,
        "export HF_TOKEN=hf_" + "your_token_here" + "A" * 20,
        "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
        "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
        "postgres://user:password@localhost/db and https://me:${TOKEN}@host.com and redis://:<secret>@cache:6379",
        "postgresql://postgres:postgres@db:5432/app",
        "4111 1111 1111 1111 or 4242-4242-4242-4242 or 378282246310005 or 4000 0000 0000 3220",
        "4539 5787 6362 1487 has a wrong check digit, and +4915123.456789 is no phone number",
        "X" + "AKIA" + "QWERTZUIOPASDFGH",
        "call 123-456-7890, (212) 555-0123, 1-800-742-5877 or +44 20 7946 0018",
        "write to jane@example.com, bob@mail.example.org, a@b.invalid, x@y.test, noreply@shop.com, me@yourdomain.com",
        "GB82 WEST 1234 5698 7654 32 and DE89370400440532013000",
        "My SSN is 078-05-1120, 123-45-6789, 987-65-4321 or 000-12-3456.",
        "model.w@layer.to(device), image@2x.png, deploy@shop.com:~/files",
        "order 2127365000, version 212.736.50, ticket #212-736-5000 and 12-212-736-5000",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6Ikpva" + "G4gRG9lIn0.c2lnbmF0dXJlc2lnbmF0dXJl",
    ],
)
def test_placeholders_and_reserved_examples_are_no_secrets(text: str) -> None:
    assert find_secrets(text) == []


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Call me at 2127365000 today", "phone number", "2127365000"),
        ("+1 212 736 5000 24 hours", "phone number", "+1 212 736 5000"),
        ("IBAN AT483200000012345864 THIS YEAR", "bank account", "AT483200000012345864"),
        ("my social security number: 536 90 4399", "social security number", "536 90 4399"),
        ("邮箱zhang.wei@qq.com谢谢", "e-mail address", "zhang.wei@qq.com"),
        ("ends with bob@acme-pizza.com.", "e-mail address", "bob@acme-pizza.com"),
        (r"two\nlines\nbob@acme-pizza.com", "e-mail address", "bob@acme-pizza.com"),
        ("redis://:s3cr3tpw@cache:6379", "database URL with a password", "redis://:s3cr3tpw@cache"),
    ],
)
def test_the_place_is_exact(text: str, kind: str, what: str) -> None:
    (found,) = find_secrets(text)
    assert (found.kind, text[found.start : found.end]) == (kind, what)


def test_personal_data_is_told_from_keys() -> None:
    maker = Maker(3)
    personal = {kind: find_secrets(make())[0].personal for kind, make in kinds(maker).items()}
    assert {kind for kind, is_personal in personal.items() if is_personal} == {
        "card number", "bank account", "phone number", "e-mail address", "social security number"
    }  # fmt: skip


def test_several_are_listed_in_order_without_overlap() -> None:
    maker = Maker(5)
    planted = [maker.address(), maker.card(), maker.phone(), "h" + "f_" + maker.some(WORD, 34), maker.address()]
    text = " and ".join(planted)
    found = find_secrets(text)
    assert [text[f.start : f.end] for f in found] == planted
    url = find_secrets(f"see https://bob:{maker.some(WORD, 9)}@acme-pizza.com/x")
    assert [f.kind for f in url] == ["URL with a password"]  # and no e-mail address at acme-pizza.com


def test_a_message_shows_little_of_a_secret() -> None:
    maker = Maker(5)
    for make in kinds(maker).values():
        secret = make()
        found = find_secrets(secret)[0]
        shown, _, length = redact(secret, found).partition("… ")
        assert secret[found.start :].startswith(shown)
        assert len(shown) <= min(4, (found.end - found.start) / 4)
        assert length == f"({found.end - found.start} characters)"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a1 @.-+:/\\n\ud800é\nsk_eyJAKI=漢"), max_size=60) | st.text(max_size=80))
def test_any_text_is_taken(text: str) -> None:
    ends = [0, *(place for f in find_secrets(text) for place in (f.start, f.end)), len(text)]
    assert ends == sorted(ends)


def test_what_only_looks_like_a_token_is_left_alone() -> None:
    payload = base64.urlsafe_b64encode(b'{"a":' + b"[" * 100_000).decode()
    assert find_secrets(f"eyJhbGciOiJIUzI1NiJ9.{payload}.c2lnbmF0dXJl") == []
    assert (
        find_secrets(
            f"MT{'a' * 23}.{'b' * 6}.{'c' * 27} or NDrum_and_bass_festivals.in_may.are_loud_and_go_on_for_days"
        )
        == []
    )


@pytest.mark.parametrize("piece", ["AKIA", "glpat-", "eyJ", "a@", "://a:", "1-", "+1 ", "GB82 1234 ", "aws key ", "a."])
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = f"{piece * (100_000 // len(piece))}.eyJ@ 123456789"
    start = time.process_time()
    assert len(find_secrets(text)) <= 1
    assert time.process_time() - start < 2  # a tenth of that; far more where the time is quadratic


def test_clean_text_loads_no_library() -> None:
    code = (
        "import sys; from finetune.data.lint.secrets import find_secrets\n"
        "assert find_secrets('We baked 12 pizzas on 2024-05-17 at 18:30:22 for $9.50; see www.pizza.com/menu.') == []\n"
        "print([n for n in ('detect_secrets', 'requests', 'phonenumbers', 'stdnum') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
