"""The same states in QuTiP, with its conventions turned into ours: fidelity is the root there, entropy in nats."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qraf.states import measures as m
from tests import closed_forms as exact

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def qutip() -> Any:
    # imported here and not above: it takes seconds, and collecting the quick tests should not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it misses matplotlib, which is not needed here
        import qutip
    return qutip


def dense(factor: torch.Tensor) -> torch.Tensor:
    return factor.mH @ factor


@pytest.fixture
def qobj(qutip: Any) -> Callable[..., Any]:
    def make(factor: torch.Tensor, dims: list[int] | None = None) -> Any:
        sizes = dims or [factor.shape[-1]]
        return qutip.Qobj(dense(factor).numpy(), dims=[sizes, sizes])

    return make


# ranks stay full: QuTiP's roots of null eigenvalues cost it 1e-8, ours are cut
@pytest.mark.parametrize(("d", "rank"), [(2, 2), (6, 6), (12, 12)])
def test_measures_agree(qutip: Any, qobj: Callable[..., Any], d: int, rank: int) -> None:
    a, b = exact.random_state(d, rank, 1), exact.random_state(d, rank, 2)
    assert float(m.fidelity_factor(a, b)) == pytest.approx(qutip.fidelity(qobj(a), qobj(b)) ** 2, abs=1e-12)
    assert float(m.fidelity(dense(a), dense(b))) == pytest.approx(qutip.fidelity(qobj(a), qobj(b)) ** 2, abs=1e-12)
    assert float(m.entropy_bits_factor(a)) == pytest.approx(qutip.entropy_vn(qobj(a)) / math.log(2), abs=1e-12)
    assert float(m.trace_distance_factor(a, b)) == pytest.approx(qutip.tracedist(qobj(a), qobj(b)), abs=1e-7)
    assert float(m.purity_factor(a)) == pytest.approx(qobj(a).purity(), abs=1e-13)


def test_low_rank_states_agree_to_what_qutip_resolves(qutip: Any, qobj: Callable[..., Any]) -> None:
    a, b = exact.random_state(12, 2, 3), exact.random_state(12, 2, 4)
    assert float(m.fidelity_factor(a, b)) == pytest.approx(qutip.fidelity(qobj(a), qobj(b)) ** 2, abs=1e-7)
    assert float(m.entropy_bits_factor(a)) == pytest.approx(qutip.entropy_vn(qobj(a), base=2), abs=1e-9)


@pytest.mark.parametrize("keep", [(0,), (2,), (0, 2), (1, 2)])
def test_partial_traces_agree(qobj: Callable[..., Any], keep: tuple[int, ...]) -> None:
    a, dims = exact.random_state(12, 3, 5), [2, 3, 2]
    want = qobj(a, dims).ptrace(list(keep)).full()
    assert torch.allclose(m.partial_trace(dense(a), dims, keep), torch.from_numpy(want), atol=1e-15)


def test_coherence_is_composed_of_two_entropies(qutip: Any, qobj: Callable[..., Any]) -> None:
    rho = qobj(exact.random_state(6, 2, 6))
    want = qutip.entropy_vn(qutip.Qobj(rho.diag() * torch.eye(6).numpy()), 2) - qutip.entropy_vn(rho, 2)
    assert float(m.coherence_bits_factor(exact.random_state(6, 2, 6))) == pytest.approx(want, abs=1e-9)
