"""Days named by the day on which something was said."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qraf.records import Evidence
from qraf.text.prompt import evidence_line
from qraf.text.saying import with_dates

MONDAY = datetime(2024, 1, 8, 15, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("yesterday", "7 January 2024"),
        ("Last night", "7 January 2024"),
        ("TODAY", "8 January 2024"),
        ("this morning", "8 January 2024"),
        ("Tomorrow's", "9 January 2024"),
        ("3 days ago", "5 January 2024"),
        ("a day ago", "7 January 2024"),
        ("two weeks ago", "about 25 December 2023"),
        ("a month ago", "December 2023"),
        ("thirteen... 13 months ago", "December 2022"),
        ("ten years ago", "2014"),
        ("last month", "December 2023"),
        ("next month", "February 2024"),
        ("last year", "2023"),
        ("next year’s", "2025"),
        ("last week", "the week before 8 January 2024"),
        ("next weekend", "the weekend after 8 January 2024"),
        ("last Monday", "1 January 2024"),
        ("last Sunday", "7 January 2024"),
        ("next Monday", "15 January 2024"),
        ("next tuesday", "9 January 2024"),
    ],
)
def test_what_is_meant(words, meant) -> None:
    assert with_dates(f"We met {words}, twice.", MONDAY) == f"We met {words} ({meant}), twice."


@pytest.mark.parametrize(
    "text",
    [
        "a few days ago",
        "some time ago, the other day",
        "this week",
        "on Friday",
        "at long last we spoke; next, weekly",
        "the last weekender",
        "yesterdays",
        "last week (the 2nd)",
        "yeſterday, laſt week, tonıght, last frıday, ſix days ago, ² days ago",
        "",
    ],
)
def test_what_is_uncertain_stays(text) -> None:
    assert with_dates(text, MONDAY) == text


def test_ends_of_the_calendar() -> None:
    assert with_dates("tomorrow", 253402300799.0) == "tomorrow"
    assert with_dates("next year, next month", 253402214400.0) == "next year, next month"
    assert with_dates("999 years ago", 86400.0) == "999 years ago (971)"
    assert with_dates("yesterday", 0.0) == with_dates("yesterday", 1e300) == "yesterday"


def test_only_what_was_said_is_dated() -> None:
    said = Evidence(seq=1, memory="s/a", node="n", score=1.0, text="We moved yesterday.", speaker="Ann", at=MONDAY)
    assert evidence_line(said) == "8 January 2024, Ann: We moved yesterday (7 January 2024)."
    written = Evidence(
        seq=1, memory="c/a", node="n", score=1.0, text="As of yesterday.", role="document", at=MONDAY, item_id="d"
    )
    assert evidence_line(written) == "[d] As of yesterday."
