from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.records import DateMention as Date
from qraf.text.mentions import dates, named, without_names
from tests.examples import examples


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on 7 May 2023", [Date(2023, 5, 7)]),
        ("on the 7th of May, 2023?", [Date(2023, 5, 7)]),
        ("May 7, 2023", [Date(2023, 5, 7)]),
        ("may 7th 2023", [Date(2023, 5, 7)]),
        ("Sept. 3rd, 2021", [Date(2021, 9, 3)]),
        ("2023-05-07T10:00:00Z", [Date(2023, 5, 7)]),
        ("in 2023-05", [Date(2023, 5)]),
        ("in May 2023", [Date(2023, 5)]),
        ("in May, 2023", [Date(2023, 5)]),
        ("during June", [Date(None, 6)]),
        ("in May?", [Date(None, 5)]),
        ("on 3 June", [Date(None, 6, 3)]),
        ("on June 3rd", [Date(None, 6, 3)]),
        ("on may 12", [Date(None, 5, 12)]),
        ("in 2022", [Date(2022)]),
        ("between June 2022 and 4 July 2023", [Date(2023, 7, 4), Date(2022, 6)]),
        ("June and June", [Date(None, 6)]),
        ("29 February 2023", [Date(2023, 2)]),
        ("29 February", [Date(None, 2, 29)]),
        ("30 February", [Date(None, 2)]),
    ],
)
def test_dates_are_read(text: str, expected: list[Date]) -> None:
    assert list(dates(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "May I come in?",
        "we march on",
        "March on!",
        "room 2022b",
        "it cost $2000",
        "2000 people came",
        "1,999 steps",
        "call 555-2019-22",
        "version 3.2021.1",
        "",
        "yesterday",
    ],
)
def test_what_is_no_date_is_left_alone(text: str) -> None:
    assert dates(text) == ()


def test_names_are_found_whole_in_any_case() -> None:
    speakers = ["Ann Lee", "Bob", "Mary-Jo", "Anna", "O'Neil"]
    assert named("anna told BOB", speakers) == ("bob", "anna")
    assert named("Ann's kite, O'Neil's lamp and Mary-Jo", speakers) == ("ann lee", "mary-jo", "o'neil")
    assert named("the annex of bobsleighs", speakers) == ()
    assert named("Ann  Lee", speakers) == ("ann lee",)
    assert named("anything", ["", "  "]) == ()


def test_names_that_are_words_count_only_as_written() -> None:
    assert named("will it rain in may?", ["Will", "May Li"]) == ()
    assert named("What will Will say to May?", ["Will", "May Li"]) == ("will", "may li")


def test_names_are_cut_out_with_their_endings() -> None:
    speakers = ("Ann Lee", "Bob")
    assert without_names("What did Ann Lee's and Bob’s dog eat?", speakers) == "What did and dog eat?"
    assert without_names("Did Ann call?", speakers) == "Did call?"
    assert without_names("two  spaces stay", speakers) == "two  spaces stay"


@settings(deadline=None, max_examples=examples(60))
@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=8), max_size=3))
def test_any_text_and_any_names_are_read(text: str, speakers: list[str]) -> None:
    cut = without_names(text, speakers)
    assert len(cut) <= len(text)
    for found in named(text, speakers):
        assert found in {" ".join(name.split()) for name in map(str.casefold, map(str.strip, speakers))} | {
            name.strip().casefold() for name in speakers
        }
    for mention in dates(text):
        assert mention.month is None or 1 <= mention.month <= 12
