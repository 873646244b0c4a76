from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures as m
from qraf.states.sketch import Sketch
from qraf.states.truncate import recompress_sketch, truncate, truncate_mixture, truncate_state
from tests import closed_forms as exact

R, C = torch.float64, torch.complex128


def diagonal(values: list[float]) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=R).sqrt())


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_moved_is_the_trace_distance_and_the_infidelity(seed: int, rank: int, keep: int) -> None:
    factor = exact.random_state(8, rank, seed)
    cut = truncate(factor, rank=keep)
    assert int(cut.rank) == min(rank, keep)
    assert float(m.trace_distance_factor(factor, cut.factor)) == pytest.approx(float(cut.moved), abs=1e-12)
    assert 1 - float(m.fidelity_factor(factor, cut.factor)) == pytest.approx(float(cut.moved), abs=1e-12)
    assert float(torch.linalg.norm(cut.factor)) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(("loss", "rank"), [(0.0, 4), (0.05, 4), (0.1, 3), (0.11, 3), (0.31, 2), (0.6, 1), (0.99, 1)])
def test_fewest_directions_that_lose_no_more(loss: float, rank: int) -> None:
    cut = truncate(diagonal([0.4, 0.3, 0.2, 0.1 - 1e-12]), loss=loss)
    assert int(cut.rank) == rank
    assert float(cut.moved) <= loss + 1e-15


def test_spectrum_before_and_after() -> None:
    cut = truncate(diagonal([0.2, 0.5, 0.3]), rank=2)
    assert cut.before.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert cut.after.tolist() == pytest.approx([0.625, 0.375])
    assert cut.nbytes == 2 * 3 * 8


def test_rounding_goes_for_nothing_and_rows_become_orthogonal() -> None:
    factor = exact.random_state(6, 2, 0)
    doubled = torch.cat((factor, factor)) / math.sqrt(2)  # four rows of a state of rank 2
    cut = truncate(doubled, loss=0.0)
    assert cut.factor.shape == (2, 6)
    assert float(cut.moved) < 1e-15
    assert float((cut.factor @ cut.factor.mH)[0, 1].abs()) < 1e-15
    assert float(m.fidelity_factor(cut.factor, factor)) == pytest.approx(1, abs=1e-14)


def test_no_state_of_that_rank_is_nearer() -> None:
    factor = exact.random_state(6, 6, 1)
    least = float(truncate(factor, rank=2).moved)
    for seed in range(50):
        other = truncate(factor + 0.3 * exact.random_state(6, 6, seed + 2), rank=2).factor
        assert float(m.trace_distance_factor(factor, other)) >= least - 1e-12


def test_a_batch_keeps_what_each_state_needs() -> None:
    both = torch.stack((diagonal([0.9, 0.06, 0.04]), diagonal([0.4, 0.35, 0.25])))
    cut = truncate(both, loss=0.1)
    assert cut.rank.tolist() == [1, 3]
    assert cut.factor.shape == (2, 3, 3)
    assert cut.moved.tolist() == pytest.approx([0.1, 0.0])
    assert m.purity_factor(cut.factor).tolist() == pytest.approx([1.0, 0.4**2 + 0.35**2 + 0.25**2])


def test_dense_states_are_cut_the_same() -> None:
    factor = exact.random_state(5, 3, 4)
    a, b = truncate(factor, rank=2), truncate_state(factor.mH @ factor, rank=2)
    assert float(m.trace_distance_factor(a.factor, b.factor)) < 1e-14
    assert float(a.moved) == pytest.approx(float(b.moved), abs=1e-14)


def test_certificates_of_a_mixture_add_up() -> None:
    truth = [exact.random_state(8, 4, seed) for seed in range(3)]
    held = [truncate(factor, rank=2) for factor in truth]
    p = torch.tensor([0.5, 0.3, 0.2], dtype=R)
    mixed = truncate_mixture([one.factor for one in held], p, rank=3, carried=[float(one.moved) for one in held])
    full = torch.cat([w.sqrt() * factor for w, factor in zip(p, truth, strict=True)])
    assert float(m.trace_distance_factor(full, mixed.factor)) <= float(mixed.bound)
    assert float(mixed.bound) == pytest.approx(float(p @ torch.stack([one.moved for one in held]) + mixed.moved))
    assert float(mixed.bound) < 1


def sketched(rank: int, rows: int = 200) -> tuple[Sketch, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 40, dtype=R, generator=generator) / torch.arange(1, 41, dtype=R).sqrt()
    sketch = Sketch(40, rank, dtype="float64")
    for block in torch.split(x, 50):
        sketch.update(block)
    return sketch, x.mT @ x


@pytest.mark.parametrize("rank", [2, 5, 9, 16, 30])
def test_a_recompressed_sketch_keeps_its_certificates(rank: int) -> None:
    sketch, moment = sketched(16)
    before = sketch.to_bytes()
    smaller = recompress_sketch(sketch, rank)
    assert sketch.to_bytes() == before
    assert (len(smaller.factor), smaller.rows, smaller.mass) == (min(rank, 16), sketch.rows, sketch.mass)
    gap = torch.linalg.eigvalsh(moment - smaller.factor.mT @ smaller.factor)
    assert float(gap[0]) >= -smaller.slack - 1e-9
    assert float(gap[-1]) <= smaller.delta + 1e-9
    true, held = moment / moment.trace(), smaller.state_factor()
    assert float(m.trace_distance(true, held.mT @ held)) <= smaller.trace_loss
    assert smaller.alpha == sketch.alpha
    low, high = smaller.entropy_interval()
    assert low <= float(m.entropy_bits(true)) <= high


def test_recompression_keeps_more_of_the_trace_than_a_stream_would() -> None:
    sketch, _ = sketched(16)
    stream = Sketch(40, 8, dtype="float64")
    stream.merge(sketch)
    assert recompress_sketch(sketch, 8).trace_loss < stream.trace_loss


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        ({}, "one of the two"),
        ({"rank": 1, "loss": 0.1}, "one of the two"),
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"loss": 1.0}, r"`loss` must be in \[0, 1\)"),
        ({"loss": math.nan}, r"`loss` must be in \[0, 1\)"),
    ],
)
def test_bad_wishes_are_named(wish: dict[str, float], fault: str) -> None:
    with pytest.raises(InvalidState, match=fault):
        truncate(diagonal([1.0]), **wish)  # type: ignore[arg-type]


def test_bad_states_are_named() -> None:
    for factor in (torch.zeros(0, 3, dtype=C), torch.zeros(2, 3, dtype=C), torch.full((1, 2), math.inf, dtype=R)):
        with pytest.raises(InvalidState):
            truncate(factor, rank=1)
    with pytest.raises(InvalidState, match="one dtype"):
        truncate_mixture([diagonal([1.0]), exact.random_state(1, 1, 0)], torch.tensor([0.5, 0.5]), rank=1)
    with pytest.raises(InvalidState, match="carried"):
        truncate_mixture([diagonal([1.0])], torch.tensor([1.0]), rank=1, carried=[-0.1])
