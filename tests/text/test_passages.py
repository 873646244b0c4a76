"""Passages: nothing lost, nothing too long, headings kept, linear time."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.text.passages import passages
from tests.examples import examples

LONG = " ".join(f"Sentence number {i} says something short." for i in range(60))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


pieces = st.sampled_from(
    [
        "word",
        "Two words.",
        "What? ",
        "\n",
        "\n\n",
        "# Head\n",
        "Title\n=====\n",
        "    code(x)\n",
        "```\n",
        ">>> f(1)\n",
        "- item\n",
        "1.5 e.g. this",
        "字は。",
        " ",
        "\t",
        "x" * 300,
        "\0",
        "\u2028",
    ]
)
texts = st.one_of(st.lists(pieces, max_size=60).map("".join), st.text(max_size=300))


@settings(max_examples=examples(200), deadline=None)
@given(texts, st.integers(2, 40))
def test_no_character_of_a_word_is_lost_and_order_is_kept(text: str, max_words: int) -> None:
    assert is_subsequence(list("".join(words(text))), list("".join(words("".join(passages(text, max_words))))))


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.sampled_from(["one", "two.", "Three!", "\n", "\n\n", "# Head\n", "    code\n", "- it\n"]), max_size=80)
)
def test_no_word_is_lost_or_torn(parts: list[str]) -> None:
    text = " ".join(parts)
    assert is_subsequence(words(text), words(" ".join(passages(text, 10))))


@settings(max_examples=examples(100), deadline=None)
@given(texts)
def test_no_passage_is_empty_and_none_is_too_long(text: str) -> None:
    for passage in passages(text, 20):
        assert passage.strip() == passage != ""
        # the words of headings are on top: at most the title's and one more of each section that shares the passage
        body = [line for line in passage.splitlines() if not line.startswith(("Head", "Title"))]
        assert len(" ".join(body).split()) <= 20 + 14


def test_passages_end_where_sentences_end() -> None:
    found = passages(LONG, 30)
    assert all(passage.endswith("short.") for passage in found)
    assert " ".join(found) == LONG


def test_short_text_is_one_passage_as_it_is() -> None:
    assert passages("  # A\n\nb  ") == ["# A\n\nb"]


def test_empty_text_has_no_passage() -> None:
    assert passages("") == passages(" \n\t ") == []


def test_title_and_section_stand_before_every_passage() -> None:
    text = f"# Guide\n\nIntro.\n\n## Install\n\n{LONG}"
    found = passages(text, 40)
    assert found[0].startswith("Guide\nIntro.\nInstall\n")
    assert all(passage.startswith("Guide\nInstall\n") for passage in found[1:])


def test_underlined_headings_lose_their_line() -> None:
    found = passages(f"Parameters\n----------\n{LONG}", 40)
    assert all(passage.startswith("Parameters\nSentence") for passage in found)


def test_first_line_of_a_docstring_is_its_title() -> None:
    assert all(passage.startswith("Sort a list.\n") for passage in passages(f"Sort a list.\n\n{LONG}", 40))


def test_short_sections_share_a_passage() -> None:
    text = "\n\n".join(f"## S{i}\n\nSome text here." for i in range(20))
    assert len(passages(text, 30)) <= 4


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    sentence = "It is e.g. version 3.11 i.e. new and this goes on."
    assert all(passage.endswith("goes on.") for passage in passages(" ".join([sentence] * 9), 22))


def test_code_keeps_its_lines() -> None:
    code = "\n".join(f"    line_{i} = {i}" for i in range(50))
    found = passages(f"Text before it.\n\n```\n{code}\n```\n", 30)
    assert "\n".join(found).count("\n    line_") >= 40
    assert not any("= 1 line_2" in passage for passage in found)


def test_a_session_keeps_its_output_beside_it() -> None:
    found = passages(f"{LONG}\n\n>>> f(1)\n[0, 1]\n>>> g(2)\n[2]\n\n{LONG}", 60)
    assert any(">>> f(1)\n[0, 1]\n>>> g(2)\n[2]" in passage for passage in found)


def test_a_sentence_that_is_too_long_is_cut_between_words() -> None:
    text = " ".join(f"w{i}" for i in range(100))
    found = passages(text, 30)
    assert [len(passage.split()) for passage in found] == [30, 30, 30, 10]
    assert " ".join(found) == text


def test_text_without_spaces_is_cut() -> None:
    found = passages("字" * 5000, 100)
    assert len(found) > 3
    assert "".join(found).count("字") == 5000


def test_headings_without_text_are_kept() -> None:
    assert "".join(passages("\n".join(f"# h{i}" for i in range(400)), 50)).count("h3") >= 100
