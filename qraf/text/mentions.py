"""What a prompt names: participants and dates. Plain patterns, no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from functools import lru_cache

from qraf.records import DateMention
from qraf.text.lexicon import STOP_WORDS

__all__ = ["dates", "named", "without_names"]

_MONTH_LIST = "january february march april may june july august september october november december"
_MONTHS = _MONTH_LIST.split()
_NUMBER = (
    {name: number for number, name in enumerate(_MONTHS, 1)}
    | {name[:3]: number for number, name in enumerate(_MONTHS, 1)}
    | {"sept": 9}
)
# "May", "march", "Sep." are words, verbs and names too: alone they must be capitalised, and "may", "march" not open
# a sentence; beside a day or a year they may be written anyhow
_ANY_MONTH = "|".join([*_MONTHS, *(rf"{name[:3]}\.?" for name in _MONTHS), r"sept\.?"])
_DAY = r"(?P<day>3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>1[89]\d\d|2[01]\d\d)"
# names that are everyday words count only as they are written: "Will", not "will"
_PLAIN_WORDS = STOP_WORDS | set(
    "angel art bill chance chase dawn dean drew faith frank grace grant guy hope iris ivy jade joy june lance "
    "lane lily mark may mercy miles olive page patience pearl penny pierce ray reed rich rob rod "
    "rose ruby rusty sky skip sunny sue summer violet wade ward will".split()
)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{_YEAR}-(?P<number>1[0-2]|0[1-9])-(?P<day>3[01]|[12]\d|0[1-9])(?=\b|T)",
        rf"\b{_YEAR}-(?P<number>1[0-2]|0[1-9])\b(?!-)",
        rf"\b{_DAY}\s+(?:of\s+)?(?P<month>{_ANY_MONTH})\b,?\s+(?:of\s+)?{_YEAR}\b",
        rf"\b(?P<month>{_ANY_MONTH})\s+(?:the\s+)?{_DAY}\b,?\s+(?:of\s+)?{_YEAR}\b",
        rf"\b(?P<month>{_ANY_MONTH})\b,?\s+(?:of\s+)?{_YEAR}\b",
        rf"\b{_DAY}\s+(?:of\s+)?(?P<month>{_ANY_MONTH})\b",
        rf"\b(?P<month>{_ANY_MONTH})\s+(?:the\s+)?{_DAY}\b(?!\s*%)",
    )
)
_MONTH_ALONE = re.compile(
    r"\b(?P<month>January|February|April|June|July|August|September|October|November|December)\b"
    r"|(?<=\S\s)\b(?P<verb>May|March)\b"
)
_YEAR_ALONE = re.compile(rf"(?<![\d.,$€£#-])\b{_YEAR}\b(?![.,]?\d|\s*(?:%|dollars|euros|pounds|people|years?\b))")


def named(text: str, speakers: Iterable[str]) -> tuple[str, ...]:
    """The participants whose full or first name stands in a text, casefolded, in the order of `speakers`.

    >>> named("What did Ann's brother tell bob?", ["Ann Lee", "Bob", "Anna"])
    ('ann lee', 'bob')
    """
    found: dict[str, None] = {}
    for speaker in speakers:
        pattern = _name_pattern(speaker)
        if pattern is not None and pattern.search(text):
            found[speaker.strip().casefold()] = None
    return tuple(found)


def without_names(text: str, speakers: Iterable[str]) -> str:
    """A text without the participants' names and their possessive endings, spaces closed up.

    >>> without_names("When did Ann Lee's brother visit Bob?", ["Ann Lee", "Bob"])
    'When did brother visit ?'
    """
    cut = text
    for speaker in sorted(set(speakers), key=lambda name: (-len(name), name)):
        pattern = _name_pattern(speaker)
        if pattern is not None:
            cut = pattern.sub("", cut)
    return text if cut == text else " ".join(cut.split())


def dates(text: str) -> tuple[DateMention, ...]:
    """The dates that a text names, each once, the fuller ones first; impossible days are no dates.

    >>> dates("What happened on 7 May 2023, and what in June?")
    (DateMention(year=2023, month=5, day=7), DateMention(year=None, month=6, day=None))
    >>> dates("May I go?")
    ()
    """
    rest, found = text, dict[DateMention, None]()
    for pattern in (*_PATTERNS, _MONTH_ALONE, _YEAR_ALONE):
        taken = list(_mentions(pattern, rest))
        for (start, end), _ in reversed(taken):
            rest = rest[:start] + "\0" * (end - start) + rest[end:]  # a date is read once, by its fullest pattern
        found.update(dict.fromkeys(mention for _, mention in taken))
    return tuple(found)


def _mentions(pattern: re.Pattern[str], text: str) -> Iterator[tuple[tuple[int, int], DateMention]]:
    for match in pattern.finditer(text):
        part = match.groupdict()
        month = None
        if part.get("number"):
            month = int(part["number"])
        elif name := part.get("month") or part.get("verb"):
            month = _NUMBER[name.rstrip(".").lower()]
        year = int(part["year"]) if part.get("year") else None
        day = int(part["day"]) if part.get("day") else None
        if day is None or _exists(year, month, day):
            yield match.span(), DateMention(year, month, day)


def _exists(year: int | None, month: int | None, day: int) -> bool:
    try:
        date(2000 if year is None else year, month or 1, day)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _name_pattern(speaker: str) -> re.Pattern[str] | None:
    parts = speaker.split()
    if not parts:
        return None
    forms = [parts] if len(parts) == 1 or len(parts[0]) == 1 else [parts, parts[:1]]
    choices = "|".join(_form_pattern(form) for form in forms)
    return re.compile(rf"(?<!\w)(?:{choices})(?:['’]s)?(?!\w)")


def _form_pattern(form: list[str]) -> str:
    spelled = r"\s+".join(map(re.escape, form))
    is_plain_word = len(form) == 1 and form[0].lower() in _PLAIN_WORDS
    return spelled if is_plain_word else f"(?i:{spelled})"
