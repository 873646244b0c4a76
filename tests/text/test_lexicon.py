from __future__ import annotations

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.text.lexicon import ID_BITS, STOP_WORDS, stems, term_id, term_ids, words
from tests.examples import examples


def test_forms_of_a_word_share_a_stem() -> None:
    assert len({stem for text in ("run", "runs", "running", "RUNNING") for stem in stems(text)}) == 1


def test_stop_words_and_marks_are_left_out() -> None:
    assert stems("What is it, then? I'm sure they've had the -- tea!") == ["sure", "tea"]
    assert stems("the of and") == stems("?!… 🙂") == stems("") == []


def test_other_scripts_keep_words_or_characters() -> None:
    assert stems("Где мой зонт?") == ["где", "мой", "зонт"]
    assert stems("猫が好き") == ["猫", "が", "好", "き"]
    assert stems("ﬁne Ｔｅａ") == stems("fine tea")  # compatibility forms


def test_ids_are_the_same_everywhere() -> None:
    # recorded: journals and advertisements of other machines depend on these numbers
    assert [term_id(stem) for stem in ("tea", "kite", "猫")] == [111589407, 31906093, 116690086]


def test_counts_add_up_to_the_length() -> None:
    ids, counts, length = term_ids("tea and tea and more tea for two")
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        term_id("tea"): 3,
        term_id("more"): 1,
        term_id("two"): 1,
    }
    assert length == 5


@settings(deadline=None, max_examples=examples(60))
@given(st.text(max_size=200))
def test_any_text_gives_ascending_ids(text: str) -> None:
    ids, counts, length = term_ids(text)
    assert ids.dtype == np.uint32
    assert counts.dtype == np.uint16
    assert (np.diff(ids.astype(np.int64)) > 0).all()
    assert int(counts.sum()) == length == len(stems(text))
    assert all(int(term) < 1 << ID_BITS for term in ids)
    assert not set(stems(text)) & {""}
    assert words(text) >= 0


def test_a_very_long_run_is_cut() -> None:
    [stem] = stems("x" * 100_000)
    assert len(stem) <= 64


def test_a_run_that_is_many_tokens_is_many_words() -> None:
    assert words("a" * 16) == words("ж" * 8) == 1
    assert words("a" * 17) == words("a" * 20) == words("ж" * 10) == 2
    assert words("\ud800" + "x" * 100_003) == 24_998


def test_words_are_what_stands_between_spaces() -> None:
    assert words("I'm here,\n at  last — 2 p.m.") == 7
    assert words("猫が好き tea") == 5


def test_stemming_is_safe_from_many_threads() -> None:
    texts = [" ".join(f"{stem}{ending}" for ending in ("ing", "ed", "s")) for stem in map(chr, range(97, 123))] * 20
    expected = [stems(text) for text in texts]
    stems.__globals__["_stem"].cache_clear()
    found: dict[int, list[list[str]]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [stems(text) for text in texts]})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == expected for n in range(4))


def test_the_stop_list_is_small() -> None:
    assert 50 < len(STOP_WORDS) < 120
    assert {"the", "what", "who"} <= STOP_WORDS
