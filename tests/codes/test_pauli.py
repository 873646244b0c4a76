"""Pauli channels against their Kraus operators written out, and against qiskit-free closed forms."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qraf.codes.pauli import PauliStrings, apply_strings, apply_to_density, apply_to_kets, draw_strings
from qraf.errors import InvalidState

PAULIS = {
    "I": torch.eye(2, dtype=torch.complex128),
    "X": torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128),
    "Y": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
    "Z": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
}


def string_matrix(name: str) -> Tensor:
    return functools.reduce(torch.kron, [PAULIS[letter] for letter in name])


def kets(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    psi = torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return psi / torch.linalg.vector_norm(psi, dim=-1, keepdim=True)


def masks(name: str) -> tuple[int, int]:
    x = sum((letter in "XY") << (len(name) - 1 - i) for i, letter in enumerate(name))
    z = sum((letter in "YZ") << (len(name) - 1 - i) for i, letter in enumerate(name))
    return x, z


def test_every_string_of_three_qubits_is_its_matrix_up_to_a_phase() -> None:
    names = ["".join(letters) for letters in itertools.product("IXYZ", repeat=3)]
    psi = kets(len(names), 8)
    x, z = zip(*map(masks, names), strict=True)
    strings = PauliStrings(np.array(x, np.int64), np.array(z, np.int64), 3)
    moved = apply_strings(psi, strings)
    for name, before, after in zip(names, psi, moved, strict=True):
        assert abs(torch.vdot(string_matrix(name) @ before, after)) == pytest.approx(1, abs=1e-14)
    assert strings.weight == sum(len(name.replace("I", "")) for name in names)


def test_real_kets_stay_real_and_untouched_ones_stay_bit_for_bit() -> None:
    psi = kets(200, 16, dtype=torch.float32)
    moved, strings = apply_to_kets(psi.reshape(10, 20, 16), (0.9, 0.04, 0.03, 0.03), seed=5)
    assert moved.shape == (10, 20, 16)
    assert moved.dtype == torch.float32
    same = (strings.x | strings.z) == 0
    assert 0 < same.sum() < 200
    assert torch.equal(moved.reshape(200, 16)[same], psi[same])
    # a permutation with signs: no amplitude is rounded
    assert torch.equal(moved.reshape(200, 16).abs().sort(-1).values, psi.abs().sort(-1).values)


def explicit(rho: Tensor, table: list[list[float]]) -> Tensor:
    out = torch.zeros_like(rho)
    for letters in itertools.product(range(4), repeat=len(table)):
        p = float(np.prod([table[q][k] for q, k in enumerate(letters)]))
        K = string_matrix("".join("IXYZ"[k] for k in letters))
        out += p * K @ rho @ K.mH
    return out


@pytest.mark.parametrize("n", [1, 2, 3])
def test_density_operators_go_as_the_kraus_sum_says(n: int) -> None:
    table = np.random.default_rng(n).dirichlet(np.ones(4), n).tolist()
    factor = torch.randn(2, 3, 2**n, dtype=torch.complex128, generator=torch.Generator().manual_seed(n))
    rho = factor.mH @ factor
    for k in range(2):
        assert torch.allclose(apply_to_density(rho, table)[k], explicit(rho[k], table), atol=1e-14)


def test_the_mean_trajectory_is_the_channel() -> None:
    psi = kets(1, 8, seed=3)[0]
    probabilities = (0.7, 0.15, 0.05, 0.1)
    moved, _ = apply_to_kets(psi.expand(40_000, 8), probabilities, seed=1)
    mean = moved.T @ moved.conj() / len(moved)
    want = apply_to_density(psi[:, None] * psi.conj()[None], probabilities)
    # elements are means of 40,000 numbers below 1: 5 standard errors
    assert float((mean - want).abs().max()) < 5 / 200


def test_equal_paulis_are_the_depolarising_channel() -> None:
    # (1-p) rho + p I/2 has pX = pY = pZ = p/4
    rho = torch.tensor([[0.8, 0.3], [0.3, 0.2]], dtype=torch.float64)
    p = 0.36
    got = apply_to_density(rho, (1 - 3 * p / 4, p / 4, p / 4, p / 4))
    assert torch.allclose(got, (1 - p) * rho + p * torch.eye(2, dtype=torch.float64) / 2, atol=1e-16)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 4))
def test_channels_keep_trace_hermiticity_and_positivity(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    factor = torch.from_numpy(rng.standard_normal((2, 2**n)) + 1j * rng.standard_normal((2, 2**n)))
    rho = factor.mH @ factor
    rho = rho / rho.diagonal().sum().real
    out = apply_to_density(rho, rng.dirichlet(np.ones(4), n).tolist())
    assert float(out.diagonal().sum().real) == pytest.approx(1, abs=1e-13)
    assert torch.allclose(out, out.mH, atol=1e-15)
    assert float(torch.linalg.eigvalsh(out).min()) > -1e-14


def test_frequencies_are_the_probabilities() -> None:
    strings = draw_strings(100_000, 2, [[0.5, 0.2, 0.2, 0.1], [1.0, 0, 0, 0]], seed=9)
    assert not ((strings.x | strings.z) & 1).any()  # the second qubit is the lowest bit
    first_x, first_z = strings.x >> 1, strings.z >> 1
    for want, hit in ((0.2, first_x & ~first_z), (0.2, first_x & first_z), (0.1, ~first_x & first_z)):
        assert (hit & 1).mean() == pytest.approx(want, abs=5 * (want * (1 - want) / 100_000) ** 0.5)
    again = draw_strings(100_000, 2, [[0.5, 0.2, 0.2, 0.1], [1.0, 0, 0, 0]], seed=9)
    assert np.array_equal(strings.x, again.x)


def test_one_generator_goes_on_and_batches_may_be_empty() -> None:
    rng = np.random.default_rng(0)
    first, second = (draw_strings(50, 3, (0.4, 0.2, 0.2, 0.2), rng) for _ in range(2))
    assert not np.array_equal(first.x, second.x)
    assert apply_to_kets(torch.zeros(0, 4), (1.0, 0, 0, 0), 0)[0].shape == (0, 4)
    psi = kets(3, 4)
    moved, strings = apply_to_kets(psi, (1.0, 0, 0, 0), 0)
    assert torch.equal(moved, psi)
    assert moved.data_ptr() != psi.data_ptr()
    assert strings.weight == 0


@pytest.mark.parametrize(
    ("d", "probabilities", "says"),
    [
        (3, (1.0, 0, 0, 0), "dimension 2"),
        (4, (0.5, 0.4, 0, 0), "sum to 1"),
        (4, (1.5, -0.5, 0, 0), "at least 0"),
        (4, (float("nan"), 0, 0, 0), "finite"),
        (4, (1.0, 0, 0), "shape"),
        (4, [[1.0, 0, 0, 0]] * 3, "shape"),
    ],
)
def test_what_is_no_channel_is_named(d: int, probabilities: tuple[float, ...], says: str) -> None:
    with pytest.raises(InvalidState, match=says):
        apply_to_kets(torch.ones(1, d), probabilities, 0)
    with pytest.raises(InvalidState, match=says):
        apply_to_density(torch.eye(d), probabilities)


def test_strings_that_do_not_fit_are_named() -> None:
    with pytest.raises(InvalidState, match="be 2 strings of 2 qubits"):
        apply_strings(kets(2, 4), draw_strings(3, 2, (1.0, 0, 0, 0), 0))
    with pytest.raises(InvalidState, match="shape"):
        apply_to_density(torch.ones(2, 4), (1.0, 0, 0, 0))


@pytest.mark.slow
def test_qutip_agrees() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import qutip
    probabilities = (0.8, 0.1, 0.04, 0.06)
    paulis = [qutip.qeye(2), qutip.sigmax(), qutip.sigmay(), qutip.sigmaz()]
    one = [np.sqrt(p) * pauli for p, pauli in zip(probabilities, paulis, strict=True)]
    rho = qutip.rand_dm([2, 2, 2], seed=4)
    want = sum(K * rho * K.dag() for K in (qutip.tensor(*triple) for triple in itertools.product(one, repeat=3)))
    got = apply_to_density(torch.from_numpy(rho.full()), probabilities)
    assert float(np.abs(got.numpy() - want.full()).max()) < 1e-15
