"""Personal data in a text: e-mail addresses, card numbers, bank accounts, phone and social security numbers.

Left out is what belongs to nobody: addresses at domains reserved for examples (RFC 2606) and other usual
placeholders, published test cards and accounts, phone numbers reserved for fiction (555-0100 to 555-0199), and
toll-free numbers. Phone numbers are found in the international form and as usual in the United States; ten digits
without any sign between them only after a word such as "call", because order numbers look the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ADDRESS, CARD, ACCOUNT, SECURITY, PHONE = (
    "e-mail address", "card number", "bank account", "social security number", "phone number"
)  # fmt: skip
PERSONAL = frozenset((ADDRESS, CARD, ACCOUNT, SECURITY, PHONE))
HARMLESS = ""  # kind of what looks like something and is nothing; it hides what else could be seen in it
GAP = r"[ \t\xa0\u202f.()/\u2010-\u2015-]"  # between the digits of a number
CONTEXT = 40  # characters before a number in which a word may say what it is
MADE_UP = 3  # different digits of a number that is surely no real one


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


class Span(NamedTuple):
    kind: str
    start: int
    end: int


_ADDRESS = re.compile(
    r"(?a)(?<![\w.+%/@-])([A-Za-z0-9][\w.+%-]{0,63})@((?:[A-Za-z0-9-]{1,63}\.)+([A-Za-z]{2,24}))"
    r"(?![\w(\[=-])(?!:[\w~/])"  # user@host:path, and calls in code
)
_TOP_LEVEL = _set(  # the two letters of a country besides; other endings are mostly those of files and code
    "academy agency app biz blog business care center church cloud club com company consulting design dev digital edu"
    " email energy engineering events finance foundation fun global gmbh gov group health host info int international"
    " jobs law legal life live llc ltd marketing media mil mobi money name net network news one online ooo org page"
    " partners photography pizza plus pro restaurant school services shop site social software solutions space store"
    " studio support systems team tech technology today tools top travel university wiki work works world xyz zone"
)  # fmt: skip
_NOBODY = _set(
    "you your user username name email someone somebody noreply no-reply donotreply do-not-reply git root first.last"
    " firstname.lastname your.name your.email yourname youremail"
)
_NOWHERE = re.compile(
    r"(?i)(?:.*\.)?(?:example\.[a-z]+(?:\.[a-z]+)?"
    r"|(?:your|my)?[_-]?(?:domain|company|email|site|website|organization|org)\.(?:com|org|net)|(?:foo|bar|test)\.com)"
)
# Some patterns look back from behind their first characters: to search for a set of characters is fast.
_IBAN = re.compile(
    r"[A-Z]{2}[0-9]{2}(?<![A-Za-z0-9]....)(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_PUBLISHED_ACCOUNTS = _set(
    "GB82WEST12345698765432 GB29NWBK60161331926819 GB33BUKB20201555555555 DE89370400440532013000"
    " FR1420041010050500013M02606 NL91ABNA0417164300 BE68539007547034 ES9121000418450200051332"
    " IT60X0542811101000000123456 CH9300762011623852957 AT611904300234573201 IE29AIBK93115212345678"
)
_CARD = re.compile(
    r"(?a)[2-6][0-9]{3}(?<![\w.,+#-]....)(?:([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}|([ -]?)[0-9]{6}\2[0-9]{4,5})"
    r"(?![\w-]|[.,][0-9])"
)
_ISSUERS = re.compile(
    r"4[0-9]{15}|(?:5[1-5]|62)[0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12}|35(?:2[89]|[3-8][0-9])[0-9]{12}|3[47][0-9]{13}"
    r"|3(?:0[0-5]|[68][0-9])[0-9]{11}"
)
_TEST_CARDS = _set(
    "4012888888881881 4000056655665556 4000002500003155 4242424242424242 5105105105105100 5200828282828210"
    " 2223003122003222 2223000048400011 5425233430109903 378282246310005 371449635398431 378734493671000"
    " 6011000990139424 6011981111111113 30569309025904 38520000023237 3566002020360505 3530111333300000"
)
_ROUND = re.compile(r"([0-9])\1{7}")
_SECURITY = re.compile(r"(?a)[0-9]{3}(?<![\w.,+#-]...)([ -]?)[0-9]{2}\1[0-9]{4}(?![\w-]|[.,][0-9])")
_SECURITY_WORD = re.compile(r"(?ai)\bssns?\b|social[ _-]security")
_INTERNATIONAL = re.compile(rf"(?a)\+[1-9](?<![\w+]..)(?:{GAP}{{0,3}}[0-9]){{7,14}}(?!\w)")
_NATIONAL = re.compile(
    rf"(?a)(?<![\w$€£.,/+#-])(?:1{GAP}?)?(?:[2-9][0-9]{{2}}|\([2-9][0-9]{{2}}\)){GAP}?[2-9][0-9]{{2}}{GAP}?[0-9]{{4}}"
    r"(?![\w-]|[.,][0-9])"
)
_WITH_SIGNS = re.compile(r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?[0-9]{3}[ .-]|[0-9]{3}([.-])[0-9]{3}\1)[0-9]{4}")
_PHONE_WORD = re.compile(
    r"(?ai)(?<![a-z])(?:(?:tele|cell)?phone|tel|call|mobile|cell|fax|whatsapp|text|sms|ring|dial|reach|contact)(?![a-z])"
    r"(?:[\s:.=\"'#_-]|\b(?:me|us|him|her|them|at|on|is|was|number|no|to|back|my|our|the|work|home|under|by)\b)+$"
)
_LAST_GROUP = re.compile(rf"(?:^|{GAP}+)[0-9+]*$")
_DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")
_FICTION = re.compile(r"\+1[0-9]{3}55501[0-9]{2}|\+44(?:1[0-9]{2}4960|2079460|1632960|7700900)[0-9]{3}")


def addresses(text: str) -> Iterator[Span]:
    """Yield the e-mail addresses."""
    for match in _ADDRESS.finditer(text):
        name, domain, top = match.groups()
        if len(top) == 2 or top.lower() in _TOP_LEVEL:
            nobody = name.lower() in _NOBODY or _NOWHERE.fullmatch(domain)
            yield Span(HARMLESS if nobody else ADDRESS, *match.span())


def accounts(text: str) -> Iterator[Span]:
    """Yield the international bank account numbers (IBAN)."""
    for match in _IBAN.finditer(text):
        from stdnum import iban  # here: slow to import

        number = match[0]
        while number and not iban.is_valid(number):
            number = number.rpartition(" ")[0]  # a word in capitals may follow
        if number:
            published = iban.compact(number) in _PUBLISHED_ACCOUNTS
            yield Span(HARMLESS if published else ACCOUNT, match.start(), match.start() + len(number))


def cards(text: str) -> Iterator[Span]:
    """Yield the numbers of credit cards: right length for the issuer, right check digit."""
    for match in _CARD.finditer(text):
        digits = re.sub("[ -]", "", match[0])
        if _ISSUERS.fullmatch(digits):
            from stdnum import luhn  # here: slow to import

            if luhn.is_valid(digits):
                made_up = digits in _TEST_CARDS or len(set(digits)) <= MADE_UP or _ROUND.search(digits)
                yield Span(HARMLESS if made_up else CARD, *match.span())


def social_security(text: str) -> Iterator[Span]:
    """Yield the social security numbers of the United States; without hyphens, only after those words."""
    for match in _SECURITY.finditer(text):
        if match[1] == "-" or _SECURITY_WORD.search(text, max(0, match.start() - CONTEXT), match.start()):
            from stdnum.us import ssn  # here: slow to import

            digits = re.sub("[ -]", "", match[0])
            if ssn.is_valid(digits):
                made_up = digits == "123456789" or len(set(digits)) < MADE_UP
                yield Span(HARMLESS if made_up else SECURITY, *match.span())


def phones(text: str) -> Iterator[Span]:
    """Yield the phone numbers that the numbering plans of their countries have."""
    for match in _INTERNATIONAL.finditer(text):
        number = match[0]
        while number and (kind := _phone(number)) is None:
            number = _LAST_GROUP.sub("", number)  # another number may follow
        if number and kind is not None:
            yield Span(kind, match.start(), match.start() + len(number))
    for match in _NATIONAL.finditer(text):
        before = text[max(0, match.start() - CONTEXT) : match.start()]
        if (_WITH_SIGNS.fullmatch(match[0]) or _PHONE_WORD.search(before)) and (kind := _phone(match[0])) is not None:
            yield Span(kind, *match.span())


def _phone(number: str) -> str | None:
    import phonenumbers  # here: slow to import

    try:
        parsed = phonenumbers.parse(number, "US")
    except phonenumbers.NumberParseException:
        return None
    if _DECIMAL.fullmatch(number) or not phonenumbers.is_valid_number(parsed):
        return None
    types = phonenumbers.PhoneNumberType
    public = phonenumbers.number_type(parsed) in (types.TOLL_FREE, types.PREMIUM_RATE, types.SHARED_COST, types.UAN)
    fiction = _FICTION.fullmatch(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
    return HARMLESS if public or fiction else PHONE
