from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from qraf.states import spectral
from qraf.states.checks import check_density
from qraf.states.packet import unpack
from qraf.states.portable import from_packet, to_packet
from qraf.states.state import State
from tests import closed_forms as exact

N = 600


@contextmanager
def announced() -> Iterator[list[float]]:
    seconds: list[float] = []
    with spectral.foreseen(seconds.append):
        yield seconds


def blocks(*sizes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A positive matrix of trace 1 that falls apart into blocks, shuffled."""
    parts = []
    for place, size in enumerate(sizes):
        factor = exact.random_state(size, size, place, dtype)
        parts.append(factor.mH @ factor)
    whole = torch.block_diag(*parts) / len(sizes)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    return whole[order][:, order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_blocks_give_the_spectrum_of_the_whole(dtype: torch.dtype) -> None:
    matrix = blocks(1, 2, 2, 2, 3, 90, 200, 300, dtype=dtype)
    with announced() as seconds:
        values, vectors = spectral.eigh(matrix)
    assert seconds == []  # no block is large
    assert torch.allclose(values, torch.linalg.eigvalsh(matrix), atol=1e-14)
    assert torch.allclose((vectors * values) @ vectors.mH, matrix, atol=1e-14)
    assert torch.allclose(vectors.mH @ vectors, torch.eye(N, dtype=dtype), atol=1e-13)
    assert torch.allclose(spectral.eigvalsh(matrix), values, atol=1e-14)


def test_a_large_decomposition_is_announced_and_may_be_refused() -> None:
    matrix = blocks(N)
    with announced() as seconds:
        spectral.eigvalsh(matrix)
    assert seconds == [pytest.approx(0.15e-9 * N**3)]
    with announced() as real:
        spectral.eigvalsh(matrix.to(torch.complex128))
    assert real == seconds

    def refuse(_: float) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError), spectral.foreseen(refuse):
        spectral.eigh(matrix)
    spectral.announce(1.0)  # nobody listens any more


def test_full_rank_is_seen_without_a_spectrum() -> None:
    rho = blocks(N)
    with announced() as seconds:
        state = State.of_density(rho, (N,))
    assert seconds == []
    assert state.rank == N
    assert torch.allclose(state.rho(), rho, atol=1e-15)
    with announced() as seconds:
        assert State(state.factor).factor is not None
        check_density(rho)
    assert seconds == []


def test_a_large_state_that_lacks_directions_loses_them() -> None:
    factor = exact.random_state(N, 3, 2)
    twice = torch.cat([factor] * 200) / 200**0.5
    assert State.of_density(factor.mH @ factor).rank == 3
    assert State(twice).rank == 3


def test_a_product_of_sparse_rows_is_the_product() -> None:
    rows = torch.zeros(700, 800, dtype=torch.complex128)
    places = torch.randint(0, 560_000, (3000,), generator=torch.Generator().manual_seed(3))
    rows.view(-1)[places] = exact.random_state(3000, 1, 4)[0]
    assert torch.allclose(spectral.gram(rows), rows @ rows.mH, atol=1e-18)


def test_a_sparse_factor_travels_as_its_numbers_bit_for_bit() -> None:
    state = State(torch.eye(N, dtype=torch.float64) / N**0.5, (2, 300))
    packet = to_packet(state)
    assert len(packet) < N * N / 8 + 9 * N
    again = from_packet(packet)
    assert again.dims == (2, 300)
    assert torch.equal(again.factor, state.factor)
    assert torch.equal(unpack(packet), state.factor)  # type: ignore[arg-type]
