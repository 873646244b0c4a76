from __future__ import annotations

import math

import pytest
import torch

from qraf.errors import InvalidState
from qraf.states.checks import check_density, check_ket, check_weights
from qraf.states.density import DensityOperator
from tests import closed_forms as exact

C = torch.complex128


def test_a_bell_pair_is_pure_and_its_half_is_not() -> None:
    pair = DensityOperator.of_ket(exact.bell(), (2, 2))
    half = pair.partial_trace((1,))
    assert math.isclose(pair.purity, 1)
    assert pair.entropy_bits == pytest.approx(0, abs=1e-12)
    assert half.allclose(DensityOperator.maximally_mixed((2,)))
    assert half.entropy_bits == pytest.approx(1)
    assert pair.factor().shape == (1, 4)


def test_a_mixture_of_orthogonal_states_is_maximally_mixed() -> None:
    mixed = DensityOperator.mixture(exact.simplex(4).to(C), dims=(2, 2))
    assert mixed.allclose(DensityOperator.maximally_mixed((2, 2)))
    assert mixed.effective_rank == pytest.approx(4)


def test_a_mixture_conjugates_the_right_side() -> None:
    circular = torch.tensor([[1, 1j]], dtype=C) / math.sqrt(2)
    assert DensityOperator.mixture(circular).allclose(DensityOperator.of_ket(circular[0]))
    assert DensityOperator.of_factor(circular.conj()).allclose(DensityOperator.of_ket(circular[0]))
    assert DensityOperator.of_ket(circular[0]).born(circular[0]) == pytest.approx(1)


def test_products_trace_back_to_their_parts() -> None:
    a, b = DensityOperator(exact.bloch(0.3, 0, 0.4)), DensityOperator(exact.werner(0.5), (2, 2))
    product = a.tensor(b)
    assert product.dims == (2, 2, 2)
    assert product.partial_trace((0,)).allclose(a)
    assert product.partial_trace((2, 1)).allclose(b)
    assert product.entropy_bits == pytest.approx(a.entropy_bits + b.entropy_bits)
    assert product.fidelity(product) == pytest.approx(1)
    assert product.trace_distance(product) == 0
    assert a.coherence_bits > 0
    assert a.l1_coherence == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("rho", "message"),
    [
        (torch.eye(2), "have trace 1, but is off by 1"),
        (torch.tensor([[0.5, 0.5], [0.0, 0.5]]), "be Hermitian, but differs from its adjoint by 0.5"),
        (torch.diag(torch.tensor([1.5, -0.5])), "have no negative eigenvalue, but has -0.5"),
        (torch.full((2, 2), torch.nan), "be finite"),
        (torch.zeros(2, 3), r"have shape \(\.\.\., d, d\)"),
        (torch.zeros(1, 2, 2), r"have shape \(d, d\)"),
    ],
)
def test_what_is_no_state_is_refused_with_the_reason(rho: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidState, match=message):
        DensityOperator(rho)


def test_dims_kets_and_weights_are_checked() -> None:
    with pytest.raises(InvalidState, match="`dims` must be positive with product 4"):
        DensityOperator(exact.werner(1), (2, 3))
    with pytest.raises(InvalidState, match="have unit norm"):
        DensityOperator.of_ket(torch.ones(2))
    with pytest.raises(InvalidState, match=r"have shape \(d,\)"):
        DensityOperator.of_ket(torch.eye(2))
    with pytest.raises(InvalidState, match="sum to 1"):
        DensityOperator.mixture(exact.simplex(2), torch.tensor([0.5, 0.6]))
    with pytest.raises(InvalidState, match="be at least 0"):
        check_weights(torch.tensor([1.5, -0.5]), 2)
    with pytest.raises(InvalidState, match=r"have shape \(3,\)"):
        check_weights(torch.tensor([1.0]), 3)
    with pytest.raises(InvalidState, match="one of the dtypes"):
        check_ket(torch.tensor([1]))


def test_a_rank_deficient_float32_state_passes_although_rounding_made_it_negative() -> None:
    factor = exact.random_state(64, 2, 3, torch.complex64)
    rho = factor.mH @ factor
    assert float(torch.linalg.eigvalsh(rho).min()) < 0
    assert check_density(rho) is rho
