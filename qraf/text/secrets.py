"""Obvious secrets in what people write: keys of well-known forms, private keys, tokens, card numbers.

Only forms that hardly anything else has are looked for, so that a warning means something: a prefix that its issuer
chose to be found by, a header that decodes, a check digit. Passwords and keys without a form are not found. A card
number is one that an issuer could have given (prefix and length, ISO/IEC 7812-1) with its check digit (Luhn, US patent
2,950,048); one in ten of other numbers with such a prefix and length has it too.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["KINDS", "Secret", "find_secrets", "mask_secrets", "secrets_within"]

KINDS = ("api_key", "aws_key", "card_number", "jwt", "private_key")
"""What a secret can be."""


class Secret(NamedTuple):
    """A secret in a text: what it is, and where, in characters."""

    kind: str
    start: int
    end: int


# (kind, what must stand in the text at all, the form); the words of a form are bounded, so that it takes linear time
_FORMS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (kind, hint, re.compile(form))
    for kind, hint, form in (
        ("private_key", "PRIVATE KEY", r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"),
        ("aws_key", "AKIA", r"(?<![A-Za-z0-9])AKIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
        ("aws_key", "ASIA", r"(?<![A-Za-z0-9])ASIA[A-Z2-7]{16}(?![A-Za-z0-9])"),
        ("jwt", "eyJ", r"(?<![\w-])eyJ[\w-]{8,4096}\.eyJ[\w-]{2,16384}\.[\w-]{16,4096}"),
        ("api_key", "sk-", r"(?<![\w-])sk-(?:proj-|svcacct-|ant-(?:api|admin)\d\d-)?[A-Za-z0-9_]{20}[\w-]{0,300}"),
        ("api_key", "gh", r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}"),
        ("api_key", "github_pat_", r"(?<!\w)github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
        ("api_key", "glpat-", r"(?<![\w-])glpat-[\w-]{20,300}"),
        ("api_key", "xox", r"(?<![\w-])xox[abeoprs]-(?:\d{8,14}-){1,3}[A-Za-z0-9]{16,64}"),
        ("api_key", "k_live_", r"(?<!\w)[rs]k_live_[A-Za-z0-9]{20,250}"),
        ("api_key", "k_test_", r"(?<!\w)[rs]k_test_[A-Za-z0-9]{20,250}"),
        ("api_key", "AIza", r"(?<![\w-])AIza[\w-]{35}(?![\w-])"),
        ("api_key", "hf_", r"(?<!\w)hf_[A-Za-z]{34}(?!\w)"),
        ("api_key", "npm_", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)"),
        ("api_key", "pypi-AgE", r"(?<![\w-])pypi-AgE[\w-]{50,1000}"),
        ("api_key", "SG.", r"(?<![\w-])SG\.[\w-]{22}\.[\w-]{43}(?![\w-])"),
        ("api_key", "do", r"(?<!\w)do[oprt]_v1_[0-9a-f]{64}(?!\w)"),
        ("api_key", "qraf_", r"(?<!\w)qraf_[0-9a-z]{12}_[\w-]{43}"),
    )
)
# beside its name, because the secret itself has no form
_AWS_SECRET = re.compile(
    r"(?i:aws|secret)[\w. -]{0,24}(?i:secret|key)\w{0,4}[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
    r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)
_END_OF_KEY = re.compile(r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
# all at once, or in the groups that are printed on cards
_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})"
    r"(?![\w-]|[.,]\d)",
    re.ASCII,
)
_THIRTEEN = re.compile(r"[0-9](?:[ -]?[0-9]){12}")


def find_secrets(text: str) -> list[Secret]:
    """The secrets of a text, in order, none within another.

    >>> find_secrets("my card is 4111 1111 1111 1111, thanks")
    [Secret(kind='card_number', start=11, end=30)]
    """
    found = sorted(_found(text), key=lambda one: (one.start, -one.end))
    kept: list[Secret] = []
    for one in found:
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
        elif one.end > kept[-1].end:
            kept[-1] = kept[-1]._replace(end=one.end)
    return kept


def mask_secrets(text: str, secrets: Sequence[Secret]) -> str:
    """The text with `[KIND]` in place of each of `find_secrets(text)`.

    >>> mask_secrets("card 4111111111111111.", find_secrets("card 4111111111111111."))
    'card [card_number].'
    """
    parts, last = [], 0
    for one in secrets:
        parts += [text[last : one.start], f"[{one.kind}]"]
        last = one.end
    return "".join((*parts, text[last:]))


def secrets_within(value: Any) -> tuple[Any, list[Secret]]:
    """A JSON value with its strings masked, and what was found; the value itself when that is nothing."""
    match value:
        case str():
            found = find_secrets(value)
            return (mask_secrets(value, found), found) if found else (value, found)
        case dict():
            pairs = {name: secrets_within(inner) for name, inner in value.items()}
            found = [one for _, inner in pairs.values() for one in inner]
            return ({name: clean for name, (clean, _) in pairs.items()}, found) if found else (value, found)
        case list() | tuple():
            cleaned = [secrets_within(inner) for inner in value]
            found = [one for _, inner in cleaned for one in inner]
            return ([clean for clean, _ in cleaned], found) if found else (value, found)
        case _:
            return value, []


def _found(text: str) -> Iterator[Secret]:
    for kind, hint, form in _FORMS:
        if hint not in text:
            continue
        for match in form.finditer(text):
            start, end = match.span()
            if kind == "private_key":
                over = _END_OF_KEY.search(text, end)
                end = len(text) if over is None else over.end()
            elif kind == "jwt" and not _has_algorithm(match[0]):
                continue
            yield Secret(kind, start, end)
    lowered = text.lower()
    if "aws" in lowered or "secret" in lowered:
        for match in _AWS_SECRET.finditer(text):
            if _is_mixed(match[1]):
                yield Secret("aws_key", *match.span(1))
    if _THIRTEEN.search(text):
        for match in _CARD.finditer(text):
            if _is_card(match[0].replace(" ", "").replace("-", "")):
                yield Secret("card_number", *match.span())


def _has_algorithm(token: str) -> bool:
    """Whether the first part is a JOSE header (RFC 7519, section 5)."""
    head = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return False
    return isinstance(header, dict) and "alg" in header


def _is_mixed(word: str) -> bool:
    """Not a hash in hexadecimal, nor a path or a word."""
    return any(c.isupper() for c in word) and any(c.islower() for c in word) and any(c.isdigit() for c in word)


def _is_card(digits: str) -> bool:
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    is_issued = (
        (digits[0] == "4" and size in (13, 16, 19))
        or (size == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))
        or (size == 15 and two in (34, 37))
        or (size in (16, 19) and (four == 6011 or two == 65 or 644 <= four // 10 <= 649))
        or (size == 16 and 3528 <= four <= 3589)
        or (size == 14 and (two in (36, 38, 39) or 300 <= four // 10 <= 305))
    )
    return is_issued and len(set(digits)) > 1 and _checksum(digits) % 10 == 0


def _checksum(digits: str) -> int:
    """Luhn's sum: every second digit from the right doubled, nines cast out."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total
