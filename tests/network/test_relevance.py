from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from qraf.errors import InvalidState
from qraf.network import relevance
from qraf.network.dates import nearness
from qraf.network.relevance import Advertised
from qraf.records import Advertisement, DateMention, Prompt
from qraf.states.sketch import Sketch
from tests.network.adverts import ENCODER, advertisement, prompt

SHELVES = {
    "birds": ["parrots and finches sing", "an owl hunts at night", "finches build nests"],
    "boats": ["a sloop sails upwind", "the ferry crosses the bay", "oars and anchors"],
    "bread": ["rye dough needs time", "knead flour and water", "an oven for sourdough"],
    "bikes": ["a chain and two wheels", "oil the chain", "brakes for wheels"],
}
KEYS = [(name, f"c/{name}") for name in SHELVES]


def shelves() -> Advertised:
    advertised = Advertised(384)
    advertised.update(advertisement(name, texts) for name, texts in SHELVES.items())
    return advertised


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("Which finches sing?", "birds"),
        ("Do we sail upwind?", "boats"),
        ("flour for dough", "bread"),
        ("oil?", "bikes"),
    ],
)
def test_the_memory_that_knows_the_words_is_most_relevant(text: str, best: str):
    found = shelves().relevance(prompt(text), KEYS)
    assert KEYS[int(np.argmax(found.total))][0] == best
    assert found.items.tolist() == [3, 3, 3, 3]


def test_relevance_is_the_sum_of_standard_scores():
    found = shelves().relevance(prompt("an owl on a sloop"), KEYS)

    def z(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / x.std()

    expected = z(found.lexical) + relevance.DENSE_SHARE * z(found.dense)
    assert found.total == pytest.approx(expected)
    assert found.total.mean() == pytest.approx(0)


def test_the_lexical_part_is_the_share_of_terms_by_idf():
    found = shelves().relevance(prompt("finches with wheels at night, unheard of"), KEYS)
    # "finch" and "night" are on the first shelf alone, "wheel" on the last, "unheard" nowhere; each of df 1: ln(5 / 2)
    rare, never = np.log(5 / 2), np.log(5)
    whole = 3 * rare + never
    assert found.lexical == pytest.approx([2 * rare / whole, 0, 0, rare / whole])


def test_the_dense_part_is_a_cosine_whitened_by_the_pooled_state():
    advertised = shelves()
    rows = ENCODER.encode([text for texts in SHELVES.values() for text in texts])
    sketch = Sketch(384, rank=32)
    sketch.update(rows)
    advertised.pooled(sketch.to_bytes())
    found = advertised.relevance(prompt("an owl on a sloop"), KEYS)
    rho = rows.T.astype(np.float64) @ rows / len(rows)  # twelve rows fit into rank 32: the sketch is exact
    values, vectors = np.linalg.eigh(0.5 * rho + 0.5 * np.eye(384) / 384)
    root = (vectors * values**-0.5) @ vectors.T
    q = root @ prompt("an owl on a sloop").amplitudes
    for at, texts in enumerate(SHELVES.values()):
        c = root @ ENCODER.encode(texts).mean(0)
        assert found.dense[at] == pytest.approx(q @ c / np.linalg.norm(q) / np.linalg.norm(c), abs=0.01)  # int8


def test_whitening_takes_away_what_all_memories_share():
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(384), rng.standard_normal((6, 384))
    advertised = Advertised(384)
    for at in range(6):
        mean = 5 * common / np.linalg.norm(common) + own[at] / np.linalg.norm(own[at])
        mean /= np.linalg.norm(mean)
        scale = float(np.abs(mean).max() / 127)
        codes = np.rint(mean / scale).astype(np.int8).tobytes()
        advertised.update([Advertisement(f"n{at}", "c/x", bytes(256), codes, scale, 10)])
    q = 5 * common / np.linalg.norm(common) + own[3] / np.linalg.norm(own[3])
    empty = np.zeros(0, np.uint32)
    asked = Prompt((q / np.linalg.norm(q)).astype(np.float32), empty, np.zeros(0, np.float32))
    dense = advertised.relevance(asked, [(f"n{at}", "c/x") for at in range(6)]).dense
    assert int(np.argmax(dense)) == 3
    assert dense[3] - np.delete(dense, 3).max() > 0.3  # the plain cosines differ by less than 0.05


def test_a_participants_name_counts_double():
    advertised = Advertised(384)
    advertised.update(
        [advertisement("a", ["Anna swims"]), advertisement("b", ["a dog barks"]), advertisement("c", ["x"])]
    )
    keys = [("a", "c/a"), ("b", "c/b"), ("c", "c/c")]
    plain = advertised.relevance(prompt("Does Anna have a dog?"), keys)
    named = advertised.relevance(prompt("Does Anna have a dog?", ["Anna"]), keys)
    assert plain.lexical == pytest.approx([0.5, 0.5, 0])
    assert named.lexical == pytest.approx([2 / 3, 1 / 3, 0])


def test_a_named_date_favours_the_memory_that_spans_it():
    def at(month: int) -> float:
        return datetime(2023, month, 15, tzinfo=UTC).timestamp()

    advertised = Advertised(384)
    for month in range(1, 7):
        text = ["we met and talked"]
        advertised.update([advertisement(f"m{month}", text, first_at=at(month), last_at=at(month) + 3600)])
    keys = [(f"m{month}", f"c/m{month}") for month in range(1, 7)]
    found = advertised.relevance(prompt("What did we talk about on 16 April 2023?"), keys)
    assert int(np.argmax(found.total)) == 3
    assert found.clock[3] > 0.9 > 0.1 > found.clock[2]
    assert int(np.argmax(advertised.relevance(prompt("What did we say in February?"), keys).total)) == 1
    assert not advertised.relevance(prompt("What did we say?"), keys).clock.any()


def test_nearness_without_times_or_dates_is_zero():
    none, some = np.zeros(2), np.array([1e9, 1.1e9])
    assert nearness([DateMention(2001)], none, none).tolist() == [0, 0]
    assert nearness([], some, some).tolist() == [0, 0]
    assert nearness([DateMention(2001, 2, 31)], some, some).tolist() == [0, 0]
    assert nearness([DateMention(2001)], some, some)[0] == pytest.approx(1, abs=0.1)
    assert nearness([DateMention(9999, 12)], some, some).tolist() == [0, 0]


def test_a_memory_that_has_not_advertised_is_average():
    found = shelves().relevance(prompt("finches"), [*KEYS, ("new", "c/new")])
    assert found.total[4] == 0
    assert np.isnan(found.lexical[4])
    assert found.items[4] == -1
    assert found.total[:4] == pytest.approx(shelves().relevance(prompt("finches"), KEYS).total)


def test_fewer_than_three_memories_are_compared_without_standard_scores():
    found = shelves().relevance(prompt("finches"), KEYS[:2])
    assert found.total == pytest.approx(found.lexical + relevance.DENSE_SHARE * found.dense)
    assert shelves().relevance(prompt("finches"), []).total.shape == (0,)


def test_the_newest_advertisement_counts():
    advertised = shelves()
    advertised.update([advertisement("boats", ["finches sing and hunt at night in nests"])])
    assert int(np.argmax(advertised.relevance(prompt("finches hunt at night"), KEYS).total)) == 1
    assert len(advertised) == 4


def test_advertisements_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relevance, "MAX_ADVERTISEMENTS", 70)
    advertised = Advertised(384)
    texts = ["a finch"]
    for at in range(200):
        advertised.update([advertisement(f"n{at}", texts), advertisement("kept", ["an owl"])])
    assert len(advertised) == 70
    found = advertised.relevance(
        prompt("owl"), [("n0", "c/n0"), ("kept", "c/kept"), ("n199", "c/n199"), ("n198", "c/n198")]
    )
    assert found.items.tolist() == [-1, 1, 1, 1]
    assert int(np.argmax(found.total)) == 1


def test_prompts_without_terms_or_amplitudes_are_harmless():
    empty = Prompt(np.zeros(384, np.float32), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    assert shelves().relevance(empty, KEYS).total.tolist() == [0, 0, 0, 0]
    assert np.isfinite(shelves().relevance(prompt("我喜欢猫"), KEYS).total).all()


def test_wrong_sizes_are_refused():
    good = advertisement("a", ["x"])
    advertised = Advertised(256)
    with pytest.raises(InvalidState, match="`centroid` must have 256 values, but has 384"):
        advertised.update([good])
    with pytest.raises(InvalidState, match="`bitmap` must have 256 bytes"):
        Advertised(384).update([Advertisement("a", "c/a", b"", good.centroid, 1.0)])
    with pytest.raises(InvalidState, match="`scale` must be a finite number"):
        Advertised(384).update([Advertisement("a", "c/a", good.bitmap, good.centroid, float("nan"))])
    with pytest.raises(InvalidState, match=r"`amplitudes` must have shape \(256,\)"):
        advertised.relevance(prompt("x"), [])
    with pytest.raises(InvalidState, match="dimension 384"):
        Advertised(384).pooled(Sketch(8).to_bytes())
    with pytest.raises(InvalidState, match="checksum"):
        Advertised(384).pooled(Sketch(384).to_bytes()[:-1] + b"\xff")
