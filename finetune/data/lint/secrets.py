r"""Secrets and personal data in a text: keys and tokens, passwords in URLs, and what personal.py finds.

A few fast tests show that most texts hold none; the libraries are imported for the first text that may. Placeholders
and published examples are left out, and so are IP addresses, which version numbers look like. Nothing is ever sent
anywhere: of detect-secrets only the patterns are used.

To add a kind of token, add a line to _OWN: the kind, the strings of which one stands in every text with such a token,
and the pattern; the token is the group `secret`, where there is one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from finetune.data.lint.personal import (
    GAP,
    HARMLESS,
    PERSONAL,
    Span,
    accounts,
    addresses,
    cards,
    phones,
    social_security,
)

SHOWN = 4  # characters of a secret that a message may show, and never more than a quarter of it
MIN_DISTINCT = 8  # different characters in a token


class Found(NamedTuple):
    kind: str
    start: int
    end: int
    personal: bool


def find_secrets(text: str) -> list[Found]:
    """List what a text should not hold, in the order it stands there, without overlaps."""
    finders: list[Callable[[str], Iterator[Span]]] = []
    if _LONG_RUN in text.encode("utf-8", "replace").translate(_RUNS):
        finders += [_private_keys, _tokens]
    if "@" in text:
        finders += [_urls, addresses]
    if _NINE_DIGITS.search(text):
        finders += [accounts, cards, social_security, phones]
    if not finders:
        return []
    if "\\" in text:
        text = _ESCAPES.sub("  ", text)  # in code and JSON; their letter would hide where a secret begins
    kept: list[Span] = []
    for span in sorted((span for find in finders for span in find(text)), key=lambda span: span.start):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return [Found(*span, span.kind in PERSONAL) for span in kept if span.kind != HARMLESS]


def redact(text: str, found: Found) -> str:
    """Say what may be shown of a secret: its first characters and its length."""
    length = found.end - found.start
    return f"{text[found.start : found.start + min(SHOWN, length // 4)]}… ({length} characters)"


_ESCAPES = re.compile(r"\\[nrt]")
_LONG_RUN = b"w" * 20  # stands in every token, when the bytes of _RUN_BYTES are made w
_RUN_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/="
_RUNS = bytes(ord("w") if byte in _RUN_BYTES else ord(" ") for byte in range(256))
_DATE = r"(?:(?<=[12])[0-9]{3}[-./][0-9]{1,2}[-./][0-9]{1,2}|[0-9]?[-./][0-9]{1,2}[-./](?:19|20)[0-9]{2})(?![0-9])"
_NINE_DIGITS = re.compile(  # a number of personal data has no fewer; a date and a time often have
    rf"[0-9](?<![0-9].)(?!{_DATE})(?:{GAP}{{0,3}}[0-9]){{8}}"
)


class _Rule(NamedTuple):
    kind: str
    source: str  # a pattern, or module.Class
    is_plugin: bool  # of detect-secrets


_PLUGINS = """
AWS access key        | AKIA ASIA ABIA ACCA A3T           | aws.AWSKeyDetector
Azure storage key     | AccountKey=                       | azure_storage_key.AzureStorageKeyDetector
Cloudant credentials  | cloudant CLOUDANT                 | cloudant.CloudantDetector
GitHub token          | ghp_ gho_ ghu_ ghs_ ghr_          | github_token.GitHubTokenDetector
GitLab token          | glpat- gldt- glft- glsoat- glrt- GR1348941 glcbt- glptt- | gitlab_token.GitLabTokenDetector
Mailchimp key         | -us                               | mailchimp.MailchimpDetector
OpenAI key            | T3BlbkFJ                          | openai.OpenAIDetector
PyPI token            | pypi-Ag                           | pypi_token.PypiTokenDetector
SendGrid key          | SG.                               | sendgrid.SendGridDetector
Slack token           | xox hooks.slack.com               | slack.SlackDetector
SoftLayer credentials | softlayer SOFTLAYER               | softlayer.SoftlayerDetector
Square secret         | sq0csp-                           | square_oauth.SquareOAuthDetector
Stripe key            | sk_live_ rk_live_                 | stripe.StripeDetector
Telegram bot token    | :AA                               | telegram_token.TelegramBotTokenDetector
"""
_OWN = r"""
AWS secret key     | aws AWS Aws | (?i)aws.{0,20}?(?:key|secret).{0,20}?(?<![\w/+])(?P<secret>[a-z0-9/+]{40})(?![\w/+=])
Airtable token     | pat                | pat[A-Za-z0-9]{14}\.[a-f0-9]{64}
Anthropic key      | sk-ant-            | sk-ant-[a-z0-9]{2,12}-[A-Za-z0-9_-]{60,}
Atlassian token    | ATATT3             | ATATT3[A-Za-z0-9_=-]{100,}
Databricks token   | dapi               | dapi[a-f0-9]{32}
DigitalOcean token | _v1_               | do[opr]_v1_[a-f0-9]{64}
Discord bot token  | .                  | [MNO][DTjz][A-Za-z0-9_-]{22,24}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}
Discord webhook    | /api/webhooks/     | https://discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[A-Za-z0-9_-]{60,}
Docker Hub token   | dckr_              | dckr_[po]at_[A-Za-z0-9_-]{27}
Doppler token      | dp.                | dp\.(?:pt|st|sa|ct|scim|audit)\.[A-Za-z0-9._-]{40,}
GitHub token       | github_pat_        | github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}
Google key         | AIza GOCSPX- ya29. | AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{40,}
Grafana token      | glsa_ glc_         | glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}|glc_[A-Za-z0-9+/]{40,}
Groq key           | gsk_               | gsk_[A-Za-z0-9]{52}
Hugging Face token | hf_ api_org_       | (?:hf|api_org)_[A-Za-z0-9]{34,40}
JSON Web Token     | .eyJ               | eyJ[A-Za-z0-9_-]{6,1000}\.eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*
Linear key         | lin_               | lin_(?:api|oauth)_[A-Za-z0-9]{40,64}
New Relic key      | NRAK-              | NRAK-[A-Z0-9]{27}
Notion token       | ntn_ secret_       | ntn_[A-Za-z0-9]{46}|secret_[A-Za-z0-9]{43}
OpenAI key         | sk-                | sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{40,}|sk-[A-Za-z0-9]{48}
OpenRouter key     | sk-or-             | sk-or-v1-[0-9a-f]{64}
API key            | sk-                | sk-[A-Za-z0-9]{32,}
Perplexity key     | pplx-              | pplx-[A-Za-z0-9]{40,}
Postman key        | PMAK-              | PMAK-[a-f0-9]{24}-[a-f0-9]{34}
Replicate token    | r8_                | r8_[A-Za-z0-9]{37}
Sentry token       | sntry              | sntryu_[a-f0-9]{64}|sntrys_eyJ[A-Za-z0-9_=+/-]{60,}
Shopify token      | shp                | shp(?:at|ca|pa|ss|tka)_[a-fA-F0-9]{32}
Supabase token     | sbp_               | sbp_[a-f0-9]{40}
Terraform token    | .atlasv1.          | [A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,}
Twilio key         | SK                 | SK[a-f0-9]{32}
Vault token        | hvs. hvb.          | hv[sb]\.[A-Za-z0-9_-]{24,}
age secret key     | AGE-SECRET-KEY-1   | AGE-SECRET-KEY-1[0-9A-Z]{58}
npm token          | npm_ _authToken=   | npm_[A-Za-z0-9]{36}|_authToken=(?P<secret>[0-9a-f]{8}-[0-9a-f-]{27})
xAI key            | xai-               | xai-[A-Za-z0-9]{70,}
"""

_REST = re.compile(r"[A-Za-z0-9_-]{0,500}")  # newer tokens are longer than the patterns say
_ALONE = re.compile(r"(?<![A-Za-z0-9])")
_PLACEHOLDERS = "example placeholder your dummy sample redacted changeme change_me insert replace fake xxxx"
_PLACEHOLDER = re.compile(
    f"{'|'.join(f'{_PLACEHOLDERS} {_PLACEHOLDERS.upper()}'.split())}"
    r"|1234567890|0123456789|(?i:abcdefgh|([a-z0-9])\1{7})"
)
_PUBLISHED = (
    "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6Ikpva",  # the token of jwt.io
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",  # the key of Azure's storage emulator
)
_PRIVATE_KEY = re.compile(  # a marker alone, without key material, is documentation
    r"-----BEGIN ((?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----[\s\S]{0,300}?[A-Za-z0-9+/]{40}"
    r"(?:[\s\S]{0,8000}?-----END \1-----|[A-Za-z0-9+/=\\\s]*)"
    r"|PuTTY-User-Key-File-[23]: [\s\S]{0,8000}?Private-Lines: [0-9]+\s+[A-Za-z0-9+/=\s]{40,}"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*$")
_CREDENTIALS = re.compile(r"""://([^\s:/?#@"'<>`]{0,100}):([^\s/?#@"'<>`]{1,200})@[\w.\[-]*""")
_DATABASE = re.compile(
    r"(?i)(?:postgres(?:ql)?|mysql|mariadb|mongodb|rediss?|amqps?|mssql|oracle|clickhouse|cockroachdb)(?:\+.*)?"
)
_NO_PASSWORD = re.compile(
    r"(?i)(?:(?:my|the|db)?[_-]?(?:pass(?:word|wd|phrase)?|pw|pwd|secret|user|token|(?:api[_-]?)?key|admin|root|guest"
    r"|test|foo|bar|x+|\*+|\.+|…)[0-9]{0,3}|\$.*|%[^0-9a-f].*|.*[{}\[\]].*|.*(?:example|your|change_?me).*)"
)


@cache
def _literals() -> tuple[tuple[str, _Rule], ...]:
    found = []
    for table in (_PLUGINS, _OWN):
        for line in table.strip().splitlines():
            kind, literals, source = (cell.strip() for cell in line.split("|", 2))
            found += [(literal, _Rule(kind, source, table is _PLUGINS)) for literal in literals.split()]
    return tuple(found)


@cache
def _patterns(rule: _Rule) -> tuple[re.Pattern[str], ...]:
    return tuple(_plugin(rule.source).denylist) if rule.is_plugin else (re.compile(rule.source),)


def _plugin(name: str) -> Any:
    module, _, kind = name.rpartition(".")
    return getattr(import_module(f"detect_secrets.plugins.{module}"), kind)


def _tokens(text: str) -> Iterator[Span]:
    for rule in dict.fromkeys([rule for literal, rule in _literals() if literal in text]):
        for pattern in _patterns(rule):
            for match in pattern.finditer(text):
                yield from _token(rule.kind, match)


def _token(kind: str, match: re.Match[str]) -> Iterator[Span]:
    text = match.string
    start, end = match.span("secret" if match.groupdict().get("secret") else 0)
    rest = _REST.match(text, end)
    if rest is None or not _ALONE.match(text, start):
        return
    end = rest.end()
    secret = text[start:end]
    if kind in _CHECKS and not _CHECKS[kind](secret):
        return
    known = _PLACEHOLDER.search(secret) or any(published in secret for published in _PUBLISHED)
    yield Span(HARMLESS if known or len(set(secret)) < MIN_DISTINCT else kind, start, end)


def _is_web_token(secret: str) -> bool:
    try:
        valid: bool = _plugin("jwt.JwtTokenDetector").is_formally_valid(secret.rpartition(".")[0])
    except RecursionError:  # thousands of brackets
        return False
    return valid


def _is_discord_token(secret: str) -> bool:
    """Say whether the first part is an account's number."""
    number = secret.partition(".")[0]
    return len(number) % 4 != 1 and base64.urlsafe_b64decode(number + "=" * (-len(number) % 4)).isdigit()


def _is_mixed(secret: str) -> bool:
    """Say whether it is more than a hexadecimal hash or a path."""
    return all(re.search(characters, secret) for characters in ("[a-z]", "[A-Z]", "[0-9]"))


_CHECKS: dict[str, Callable[[str], bool]] = {
    "AWS secret key": _is_mixed,
    "Discord bot token": _is_discord_token,
    "JSON Web Token": _is_web_token,
}


def _private_keys(text: str) -> Iterator[Span]:
    if "PRIVATE KEY" in text or "PuTTY-User-Key-File-" in text:
        yield from (Span("private key", *match.span()) for match in _PRIVATE_KEY.finditer(text))


def _urls(text: str) -> Iterator[Span]:
    for match in _CREDENTIALS.finditer(text):
        scheme = _SCHEME.search(text, max(0, match.start() - 30), match.start())
        if scheme:
            user, password = match.groups()
            harmless = user == password or _NO_PASSWORD.fullmatch(password)
            database = _DATABASE.fullmatch(scheme[0])
            kind = "database URL with a password" if database else "URL with a password"
            yield Span(HARMLESS if harmless else kind, scheme.start(), match.end())
