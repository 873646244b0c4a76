from __future__ import annotations

import math

import numpy as np
import pytest

from qraf.errors import InvalidState
from qraf.memory.memory import Memory, code_bytes
from qraf.records import Item, Prompt, RecallQuery, RecallSettings
from qraf.states import quantize
from qraf.text.lexicon import term_ids
from tests.memory.conftest import DIM, MAY, Bench, many, talk

NO_CONTEXT = RecallSettings(previous=(), following=())


def prompt(*amplitudes: float, text: str = "", **facts: object) -> RecallQuery:
    ids, counts, _ = term_ids(text)
    return RecallQuery(Prompt(np.array(amplitudes, np.float32), ids, counts.astype(np.float32), **facts))  # type: ignore[arg-type]


def test_orthogonal_items_have_scores_computed_by_hand() -> None:
    memory = Memory("s/x", 2, RecallSettings(), bits=32)
    items = [Item(seq=1, item_id="a", text="tea", at=0.0), Item(seq=2, item_id="b", text="sun", at=10.0)]
    memory.absorb(items, np.eye(2, dtype=np.float32))
    [answer] = memory.recall([prompt(0.6, 0.8, text="tea")])
    # both stems have idf = ln(1 + 1.5 / 1.5) = ln 2 and l_i = sqrt(ln 2), so A_l is 1 for the first item and 0 for
    # the other; A = (.5 .6 + .5 1, .5 .8) = (.8, .4); p = (.64, .16); the next gives .25, the previous .4
    assert {one.seq: pytest.approx(one.score, abs=1e-6) for one in answer.evidence} == {
        1: 0.64 + 0.25 * 0.16,
        2: 0.16 + 0.4 * 0.64,
    }
    assert answer.mass == pytest.approx(0.68 + 0.416, abs=1e-6)
    assert sum(one.probability for one in answer.evidence) == pytest.approx(1)
    assert answer.items_scanned == 2


def test_negative_amplitudes_are_no_evidence() -> None:
    memory = Memory("s/x", 2, NO_CONTEXT, bits=32)
    memory.absorb([Item(seq=1, item_id="a", text="tea")], np.array([[-1.0, 0]], np.float32))
    [answer] = memory.recall([prompt(1, 0, text="sun")])
    assert answer.evidence == ()
    assert answer.mass == 0


def test_silence_parts_two_stretches() -> None:
    settings = RecallSettings(episode_gap_s=60)
    memory = Memory("s/x", 2, settings, bits=32)
    items = [Item(seq=n, item_id=str(n), at=at) for n, at in ((1, 0.0), (2, 60.0), (3, 121.0))]
    memory.absorb(items, np.array([[0, 1], [1, 0], [0, 1]], np.float32))
    [answer] = memory.recall([prompt(1, 0)])
    assert {one.seq: pytest.approx(one.score) for one in answer.evidence} == {2: 0.25, 1: 0.25 * 0.25}


def test_documents_do_not_mix_and_do_not_part_turns() -> None:
    memory = Memory("s/x", 2, RecallSettings(), bits=32)
    items = [
        Item(seq=1, item_id="1", at=0.0),
        Item(seq=2, item_id="2", at=5.0, role="document"),
        Item(seq=3, item_id="3", at=10.0),
    ]
    memory.absorb(items, np.array([[1, 0], [0, 1], [0, 1]], np.float32))
    [answer] = memory.recall([prompt(1, 0)])
    assert {one.seq: pytest.approx(one.score) for one in answer.evidence} == {1: 0.25, 3: 0.4 * 0.25}


def test_named_speaker_gains_unless_all_are_named(bench: Bench) -> None:
    bench.absorb(talk([("Ann", "kites fly"), ("Bob", "kites fly")]))
    one, both = bench.query("What did Bob say of kites?", explain=True), bench.query("Ann and Bob kites", explain=True)
    speakers = [
        {e.seq: e.terms.speaker for e in answer.evidence if e.terms} for answer in bench.memory.recall([one, both])
    ]
    assert speakers == [{1: 1.0, 2: 2.5}, {1: 1.0, 2: 1.0}]


def test_short_questions_lose(bench: Bench) -> None:
    texts = ["kites?", "kites " * 25 + "?", "kites.", 'kites?"']
    bench.absorb(talk([(None, text) for text in texts]))
    [answer] = bench.memory.recall([bench.query("kites", explain=True)])
    assert {e.seq: e.terms.question for e in answer.evidence if e.terms} == {1: 0.6, 2: 1.0, 3: 1.0, 4: 0.6}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kites on 7 May 2023", 7.0),
        ("kites on 7 May", 7.0),
        ("kites on 3 May 2023", 1 + 6 * math.exp(-0.5)),
        ("kites", 1.0),
    ],
)
def test_named_dates_raise_what_is_near(bench: Bench, text: str, expected: float) -> None:
    bench.absorb([Item(seq=1, item_id="1", text="kites", at=MAY)])
    [answer] = bench.memory.recall([bench.query(text, explain=True)])
    assert answer.evidence[0].terms is not None
    assert answer.evidence[0].terms.clock == pytest.approx(expected)


def test_explained_terms_make_up_the_score() -> None:
    bench = Bench(half_life_s=86400.0)
    bench.absorb(many(60))
    [answer] = bench.memory.recall([bench.query("Did Bob see word3 word7 in May 2023?", k=60, explain=True)])
    assert len(answer.evidence) > 20
    for one in answer.evidence:
        t = one.terms
        assert t is not None
        score = (t.dense + t.lexical + t.interference + t.neighbours) * t.speaker * t.question * t.clock * t.decay
        assert one.score == pytest.approx(score, rel=1e-5, abs=1e-9)


def test_batch_equals_single_prompts() -> None:
    bench = Bench()
    bench.absorb(many(100))
    queries = [bench.query(f"word{n} word{n + 9} Ann") for n in range(8)]
    for query, together in zip(queries, bench.memory.recall(queries), strict=True):
        [alone] = bench.memory.recall([query])
        assert [one.seq for one in alone.evidence] == [one.seq for one in together.evidence]
        assert [one.score for one in alone.evidence] == pytest.approx(
            [one.score for one in together.evidence], abs=1e-6
        )


def test_equal_scores_come_in_order_of_time() -> None:
    memory = Memory("s/x", 2, NO_CONTEXT)
    items = [Item(seq=n, item_id=str(n), at=float(at)) for n, at in ((1, 500), (2, 100), (3, 100), (4, 300))]
    memory.absorb(items, np.tile(np.array([[1.0, 0]], np.float32), (4, 1)))
    assert [one.seq for one in memory.recall([prompt(1, 0)])[0].evidence] == [2, 3, 4, 1]
    query = RecallQuery(prompt(1, 0).prompt, k=2)
    assert [one.seq for one in memory.recall([query])[0].evidence] == [2, 3]


def test_empty_memory_answers_with_nothing(bench: Bench) -> None:
    [answer] = bench.memory.recall([bench.query("anything")])
    assert (answer.evidence, answer.mass, answer.items_scanned) == ((), 0.0, 0)
    figures = bench.memory.figures()
    assert (figures.items, figures.entropy_bits, figures.fidelity) == (0, 0.0, 1.0)
    assert bench.memory.advertisement("n").bitmap == bytes(256)
    assert bench.memory.recall([]) == []
    assert bench.memory.absorb([], np.zeros((0, DIM), np.float32)) == []


@pytest.mark.parametrize("text", ["风筝在哪里", "the of and is", "?!", "", "\0\0", "🙂"])
def test_prompts_without_known_words_give_numbers(bench: Bench, text: str) -> None:
    bench.absorb(talk())
    [answer] = bench.memory.recall([bench.query(text, explain=True)])
    assert math.isfinite(answer.mass)
    assert all(math.isfinite(one.score) and one.score > 0 for one in answer.evidence)


def test_items_without_amplitudes_are_found_by_words() -> None:
    memory = Memory("s/x", 4)
    memory.absorb([Item(seq=1, item_id="1", text="kites")], np.zeros((1, 4), np.float32))
    [answer] = memory.recall([prompt(0, 0, 0, 0, text="kite")])
    assert [one.seq for one in answer.evidence] == [1]
    assert memory.figures().entropy_bits == 0


def test_absorb_is_idempotent(bench: Bench) -> None:
    first = bench.absorb(talk())
    version, figures, nbytes = bench.memory.version, bench.memory.figures(), bench.memory.nbytes
    assert bench.absorb(talk()) == first
    assert bench.absorb([*talk()[:1], *talk()[:1]]) == [first[0], first[0]]
    assert (bench.memory.version, bench.memory.figures(), bench.memory.nbytes) == (version, figures, nbytes)


def test_one_call_may_repeat_a_seq_and_hold_recalled_items(bench: Bench) -> None:
    item, other = talk()[:2]
    recalled = Item(seq=9, item_id="9", text="an old answer", role="recalled")
    codes = bench.absorb([item, item, recalled, other])
    assert [len(code) for code in codes] == [code_bytes(DIM)] * 2 + [0] + [code_bytes(DIM)]
    assert list(bench.memory.seqs) == [1, 2]


def test_seqs_are_a_set_of_what_was_here(bench: Bench) -> None:
    bench.absorb(talk())
    seqs = bench.memory.seqs
    bench.memory.forget([2])
    assert (2 in seqs, 2 in bench.memory.seqs, 3 in bench.memory.seqs, 7 in seqs, "x" in seqs) == (
        True,
        False,
        True,
        False,
        False,
    )


def test_large_seqs_and_many_speakers_widen_their_columns() -> None:
    memory = Memory("s/x", 2)
    items = [Item(seq=2**33 + n, item_id=str(n), text=f"tea {n}", speaker=f"P{n}") for n in range(300)]
    memory.absorb(items, np.ones((300, 2), np.float32))
    memory.absorb([Item(seq=5, item_id="old", text="cake", speaker="Old")], np.ones((1, 2), np.float32))
    evidence = {one.seq: one.speaker for one in memory.recall([RecallQuery(prompt(1, 0).prompt, k=400)])[0].evidence}
    assert evidence == {5: "Old"} | {2**33 + n: f"P{n}" for n in range(300)}


@pytest.mark.parametrize(
    "amplitudes", [np.ones((1, 3), np.float32), np.ones(2, np.float32), np.full((1, 2), np.nan, np.float32)]
)
def test_bad_amplitudes_change_nothing(amplitudes: np.ndarray) -> None:
    memory = Memory("s/x", 2)
    with pytest.raises(InvalidState, match="amplitudes"):
        memory.absorb([Item(seq=1, item_id="1", text="a")], amplitudes)
    assert (len(memory), memory.version) == (0, 0)


def test_foreign_codes_and_foreign_prompts_are_refused() -> None:
    memory = Memory("s/x", 2)
    with pytest.raises(InvalidState, match="codes"):
        memory.absorb([Item(seq=1, item_id="1", codes=b"xx")], np.zeros((1, 2), np.float32))
    with pytest.raises(InvalidState, match="amplitudes"):
        memory.recall([prompt(1, 0, 0)])


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_precision_finds_the_same(bits: int) -> None:
    bench = Bench(bits=bits)
    bench.absorb(talk())
    assert bench.ask("red kite", k=1) == [1]
    figures = bench.memory.figures()
    assert figures.bits == bits
    assert 1 >= figures.fidelity >= figures.fidelity_bound > 0.9
    exact = bench.encoder.encode([item.text for item in talk()])
    coded = quantize.encode(exact, bits)
    measured = quantize.loss(exact, coded, bits)[0].mean()
    assert figures.fidelity == pytest.approx(measured, abs=1e-5)


def test_half_life_lets_the_old_fade_but_not_the_pinned() -> None:
    bench = Bench(NO_CONTEXT, half_life_s=3600.0)
    now = bench.clock.now()
    bench.absorb(
        [
            Item(seq=1, item_id="1", text="kite", at=now - 7200),
            Item(seq=2, item_id="2", text="kite", at=now - 7200, pin=True),
            Item(seq=3, item_id="3", text="kite", at=now + 60),
        ]
    )
    [answer] = bench.memory.recall([bench.query("kite", explain=True)])
    assert {e.seq: e.terms.decay for e in answer.evidence if e.terms} == {1: 0.25, 2: 1.0, 3: 1.0}
    bench.clock.advance(3600 + 60)
    [later] = bench.memory.recall([bench.query("kite", explain=True)])
    decay = {e.seq: e.terms.decay for e in later.evidence if e.terms}
    assert decay[3] == 0.5


def test_whitening_looks_past_a_direction_that_drowns_the_others() -> None:
    rng = np.random.default_rng(3)
    own, noise = rng.standard_normal((2, 200, DIM)) / np.sqrt(DIM)
    header = np.zeros((2, 200, DIM))
    header[:, :, 0] = 2 * rng.standard_normal((2, 200))  # says nothing about which item is meant
    items = [Item(seq=n + 1, item_id=str(n)) for n in range(200)]
    asked = own + 0.5 * noise + header[1]
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    hits = {}
    for whiten in (False, True):
        memory = Memory("s/x", DIM, RecallSettings(previous=(), following=(), whiten=whiten))
        memory.absorb(items, (own + header[0]).astype(np.float32))
        answers = memory.recall([prompt(*row) for row in asked])
        hits[whiten] = sum(answer.evidence[0].seq == n + 1 for n, answer in enumerate(answers))
    assert hits[True] > 1.25 * hits[False]


def test_whitened_amplitudes_match_the_dense_formula() -> None:
    rng = np.random.default_rng(5)
    psi = rng.standard_normal((20, 8)) + 2
    psi /= np.linalg.norm(psi, axis=1, keepdims=True)
    settings = RecallSettings(previous=(), following=(), whiten=True, alpha=1.0)
    memory = Memory("s/x", 8, settings, bits=32, rank=8)
    memory.absorb([Item(seq=n + 1, item_id=str(n)) for n in range(20)], psi.astype(np.float32))
    q = psi[3] + 0.3 * rng.standard_normal(8)
    q /= np.linalg.norm(q)
    rho = psi.T @ psi / 20
    values, vectors = np.linalg.eigh(0.5 * rho + 0.5 * np.eye(8) / 8)
    m = vectors @ np.diag(values**-0.5) @ vectors.T
    half = vectors @ np.diag(values**-0.25) @ vectors.T
    amplitude = psi @ m @ q / (np.linalg.norm(half @ q) * np.linalg.norm(psi @ half, axis=1).mean())
    found = {one.seq: one.score for one in memory.recall([RecallQuery(prompt(*q).prompt, k=20)])[0].evidence}
    for row, value in enumerate(amplitude):
        assert found.get(row + 1, 0.0) == pytest.approx(max(value, 0) ** 2, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("facts", [{"role": "nobody"}, {"metadata": {"a": object()}}])
def test_an_item_that_cannot_be_held_changes_nothing(bench: Bench, facts: dict[str, object]) -> None:
    bench.absorb(talk())
    before = bench.memory.figures()
    with pytest.raises((ValueError, TypeError)):
        bench.absorb([*talk(first_seq=20), Item(seq=30, item_id="30", text="kite", speaker="Zoe", **facts)])  # type: ignore[arg-type]
    assert bench.memory.figures() == before
    assert bench.ask("red kite", k=1) == [1]
    bench.absorb(talk(first_seq=20))
    assert len(bench.memory) == 10
