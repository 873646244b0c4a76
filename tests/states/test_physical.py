from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states import measures as m
from qraf.states.checks import check_density
from qraf.states.physical import nearest_factor, nearest_spectrum, nearest_state
from tests import closed_forms as exact

C, R = torch.complex128, torch.float64
SPECTRA = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


def noisy(d: int, rank: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A state of that rank, and what it looks like with entries off by noise / (2 sqrt(d rank)) on average."""
    factor = exact.random_state(d, rank, seed)
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(d, d, dtype=C, generator=generator) * noise / (2 * math.sqrt(d * rank))
    return factor.mH @ factor, factor.mH @ factor + error


def by_enumeration(w: list[float]) -> list[float]:
    """The nearest probabilities, by trying every support."""
    best, least = [1.0], math.inf
    for size in range(1, len(w) + 1):
        for support in itertools.combinations(range(len(w)), size):
            theta = (sum(w[i] for i in support) - 1) / size
            candidate = [w[i] - theta if i in support else 0.0 for i in range(len(w))]
            away = sum((a - b) ** 2 for a, b in zip(w, candidate, strict=True))
            if min(candidate) >= 0 and away < least:
                best, least = candidate, away
    return best


@pytest.mark.parametrize("seed", range(8))
def test_spectrum_is_the_nearest_of_all_supports(seed: int) -> None:
    w = torch.randn(6, dtype=R, generator=torch.Generator().manual_seed(seed)) / 2
    assert torch.allclose(nearest_spectrum(w), torch.tensor(by_enumeration(w.tolist()), dtype=R), atol=1e-14)


def test_example_of_the_paper() -> None:
    # eigenvalues (3/5, 1/2, 7/20, 1/10, -11/20): the negative one is spread, which makes 1/10 negative in turn
    w = torch.tensor([3 / 5, 1 / 2, 7 / 20, 1 / 10, -11 / 20], dtype=R)
    assert torch.allclose(nearest_spectrum(w), torch.tensor([9 / 20, 7 / 20, 1 / 5, 0, 0], dtype=R), atol=1e-15)


@given(SPECTRA)
def test_result_is_a_distribution_and_projecting_twice_changes_nothing(values: list[float]) -> None:
    w = torch.tensor(values, dtype=R)
    once = nearest_spectrum(w)
    assert float(once.min()) >= 0
    assert float(once.sum()) == pytest.approx(1, abs=1e-14)
    assert torch.allclose(nearest_spectrum(once), once, atol=1e-14)
    assert bool((once[w.argsort()].diff() >= 0).all())  # the order of the values stays


@given(SPECTRA, st.floats(-1e3, 1e3))
def test_a_common_shift_changes_nothing(values: list[float], shift: float) -> None:
    w = torch.tensor(values, dtype=R)
    assert torch.allclose(nearest_spectrum(w + shift), nearest_spectrum(w), atol=1e-11)


def test_huge_values_do_not_overflow() -> None:
    w = torch.tensor([1e308, -1e308, 1e308], dtype=R)
    assert torch.equal(nearest_spectrum(w), torch.tensor([0.5, 0.0, 0.5], dtype=R))


def test_a_batch_equals_its_parts() -> None:
    mu = torch.stack([noisy(9, rank, 0.5, rank)[1] for rank in range(1, 7)]).reshape(2, 3, 9, 9)
    whole = nearest_state(mu)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.allclose(whole[i, j], nearest_state(mu[i, j]), atol=1e-15)
    assert nearest_state(mu[:0]).shape == (0, 3, 9, 9)
    check_density(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("d", [1, 2, 5, 33])
def test_dtype_is_kept_and_the_result_is_a_state(dtype: torch.dtype, d: int) -> None:
    mu = torch.randn(3, d, d, dtype=dtype, generator=torch.Generator().manual_seed(d))
    rho = nearest_state(mu.mT)  # not contiguous
    assert rho.dtype == dtype
    assert check_density(rho).shape == (3, d, d)


def test_states_stay_where_they_are() -> None:
    for rank in (1, 3, 8):
        factor = exact.random_state(8, rank, rank)
        rho = factor.mH @ factor
        assert torch.allclose(nearest_state(rho), rho, atol=1e-15)
        assert torch.allclose(nearest_state(rho, rank), rho, atol=1e-15)
        assert nearest_factor(rho, rank).shape == (rank, 8)


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0, 3))
def test_no_state_is_further_from_the_projection_than_from_the_noisy_matrix(seed: int, rank: int, noise: float) -> None:
    rho, mu = noisy(8, rank, noise, seed)
    assert float(torch.linalg.norm(nearest_state(mu) - rho)) <= float(torch.linalg.norm(mu - rho)) + 1e-13


def test_known_rank_is_kept_and_keeps_the_largest() -> None:
    rho = nearest_state(torch.diag(torch.tensor([0.5, 0.3, 0.2, 0.1], dtype=C)), rank=2)
    assert torch.allclose(rho.diagonal().real, torch.tensor([0.6, 0.4, 0, 0], dtype=R), atol=1e-15)


# mean trace distances of the projection and of clipping negative eigenvalues to zero and dividing by the trace
@pytest.mark.parametrize(
    ("d", "rank", "want", "want_rank", "gain"),
    [
        (64, 1, 0.034, 0.018, 7),
        (64, 4, 0.056, 0.034, 2.5),
        pytest.param(256, 32, 0.129, 0.094, 1.5, marks=pytest.mark.slow),
    ],
)
def test_projection_beats_clipping_and_known_rank_beats_both(
    d: int, rank: int, want: float, want_rank: float, gain: float
) -> None:
    pairs = [noisy(d, rank, 0.05, seed) for seed in range(4)]
    rho, mu = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    values, vectors = torch.linalg.eigh((mu + mu.mH) / 2)
    clipped = (vectors * values.clamp(min=0)[..., None, :]) @ vectors.mH
    clipped = clipped / clipped.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    ours = float(m.trace_distance(nearest_state(mu), rho).mean())
    known = float(m.trace_distance(nearest_state(mu, rank), rho).mean())
    clip = float(m.trace_distance(clipped, rho).mean())
    assert known < ours < clip / gain
    assert ours == pytest.approx(want, rel=0.25)
    assert known == pytest.approx(want_rank, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "scale"), [(2, 1.0), (16, 0.2), (64, 0.02)])
def test_qutip_projects_to_the_same_state(d: int, scale: float) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import qutip
    rho, _ = noisy(d, 1, 0, d)
    error = torch.randn(d, d, dtype=C, generator=torch.Generator().manual_seed(d)) * scale
    mu = (error + error.mH) / 2 + rho
    mu = mu + torch.eye(d, dtype=C) * (1 - mu.diagonal().sum()) / d  # its version wants trace 1
    want = torch.from_numpy(qutip.Qobj(mu.numpy()).trunc_neg(method="sgs").full())
    assert torch.allclose(nearest_state(mu), want, atol=1e-14)


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_rank_outside_the_dimension_is_named(rank: int) -> None:
    with pytest.raises(InvalidState, match="`rank` must be from 1 to 3"):
        nearest_state(torch.eye(3, dtype=C), rank)


def test_what_is_no_matrix_is_named() -> None:
    with pytest.raises(InvalidState, match="shape"):
        nearest_state(torch.zeros(2, 3, dtype=C))
    with pytest.raises(InvalidState, match="finite"):
        nearest_state(torch.full((2, 2), math.nan, dtype=C))
    with pytest.raises(InvalidState, match="real"):
        nearest_spectrum(torch.zeros(3, dtype=C))
