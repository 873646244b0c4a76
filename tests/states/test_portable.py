from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states.density import DensityOperator
from qraf.states.envelope import seal
from qraf.states.packet import pack, unpack
from qraf.states.portable import BYTES_MAX, from_npz, from_packet, to_npz, to_packet
from qraf.states.prepare import named
from qraf.states.state import State
from tests import closed_forms as exact
from tests.examples import examples

WRITE_READ = [(to_packet, from_packet), (to_npz, from_npz)]


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(("write", "read"), WRITE_READ)
@pytest.mark.parametrize(
    "state",
    [
        State(exact.random_state(12, 3, 1), (2, 3, 2)),
        State(exact.random_state(5, 5, 2, torch.float64)),
        named("bell"),
        named("ghz:12"),
        named("mixed:2x3"),
    ],
)
def test_a_state_survives_bit_for_bit(
    write: Callable[[State], bytes], read: Callable[[bytes], State], state: State
) -> None:
    again = read(write(state))
    assert torch.equal(again.factor, state.factor)
    assert again.factor.dtype == state.factor.dtype
    assert again.dims == state.dims
    assert len(write(state)) <= BYTES_MAX


def test_packets_are_those_of_the_memories() -> None:
    state = State(exact.random_state(6, 2, 1), (2, 3))
    factor = unpack(to_packet(state))
    assert isinstance(factor, torch.Tensor)
    assert torch.equal(factor, state.factor)
    dense = DensityOperator(state.rho(), (2, 3))
    again = from_packet(pack(dense))
    assert again.dims == (2, 3)
    assert torch.allclose(again.rho(), state.rho(), atol=1e-15)


def test_an_npz_may_hold_any_of_three_arrays() -> None:
    psi = exact.bell().numpy()
    for arrays in ({"psi": psi}, {"rho": np.outer(psi, psi.conj())}, {"factor": psi.conj()[None].astype(">c16")}):
        state = from_npz(npz(**arrays, dims=np.array([2, 2])))
        assert torch.allclose(state.rho(), named("bell").rho().to(torch.complex128), atol=1e-15)
        assert from_npz(npz(**arrays)).dims == (4,)
    large = np.load(io.BytesIO(to_npz(named("ghz:12"))))
    assert sorted(large.files) == ["dims", "factor"]


@pytest.mark.slow
def test_qutip_reads_and_writes_it_in_the_documented_lines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import qutip
    state = State(exact.random_state(12, 3, 1), (2, 3, 2))
    data = np.load(io.BytesIO(to_npz(state)))
    rho = qutip.Qobj(data["rho"], dims=[data["dims"].tolist()] * 2)
    assert rho.isherm
    assert rho.tr() == pytest.approx(1)
    part = rho.ptrace([1]).full()
    assert part.shape == (3, 3)
    again = from_npz(npz(rho=rho.full(), dims=rho.dims[0]))
    assert torch.allclose(again.rho(), state.rho(), atol=1e-15)
    assert again.dims == (2, 3, 2)
    big = State.of_ket(exact.random_state(2048, 1, 1)[0], (2,) * 11)
    data = np.load(io.BytesIO(to_npz(big)))
    dims = data["dims"].tolist()
    ket = qutip.Qobj(data["factor"].conj().T, dims=[dims, [1] * len(dims)])
    assert np.allclose(ket.full()[:, 0], big.kets()[0].numpy())


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
@settings(max_examples=examples(100), deadline=None)
def test_damage_is_named_or_changes_nothing(position: int, value: int, cut: int) -> None:
    state = State(exact.random_state(4, 2, 1), (2, 2))
    for write, read in WRITE_READ:
        whole = write(state)
        spoilt = bytearray(whole)
        spoilt[position % len(whole)] = value
        for data in (bytes(spoilt), whole[: cut % len(whole)]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of names it meets
                try:
                    again = read(data)
                except InvalidState:
                    continue
            # zip keeps dates and names outside of its checksums; the numbers are inside
            assert torch.allclose(again.rho(), state.rho(), atol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_packet(b"nothing"), "`packet` must start with 'QRAF'"),
        (lambda: from_packet(bytes(BYTES_MAX + 1)), "`file` must be at most 285278208 bytes"),
        (lambda: from_packet(seal("sketch", {}, {})), "hold a factor or a dense state, but holds a sketch"),
        (lambda: from_packet(seal("factor", {}, {})), "hold a factor, rho or psi"),
        (lambda: from_packet(seal("factor", {"dims": "x"}, {})), "hold dims, a list of whole numbers"),
        (lambda: from_packet(seal("factor", {"dims": [3]}, {"factor": np.eye(1, 2)})), "`dims` must be positive with"),
        (lambda: from_packet(seal("factor", {"dims": [2]}, {"factor": np.ones((1, 2))})), "have trace 1"),
        (lambda: from_packet(seal("factor", {"dims": [2]}, {"factor": np.ones(2)})), "numbers on 2 axes"),
        (lambda: from_packet(seal("dense", {"dims": [2]}, {"rho": np.ones((2, 3))})), r"have shape \(\.\.\., d, d\)"),
        (lambda: from_npz(b"nothing"), "`npz` must be an .npz file of plain arrays"),
        (lambda: from_npz(npz(psi=np.array([{}], dtype=object))), "Object arrays cannot be loaded"),
        (lambda: from_npz(npz(other=np.eye(2))), r"hold a factor, rho or psi, but holds \[\]"),
        (lambda: from_npz(npz(psi=np.array([1, 0]))), "`psi` must be float or complex numbers on 1 axes, but is int64"),
        (lambda: from_npz(npz(psi=np.array([np.nan, 0]))), "`psi` must be finite"),
        (lambda: from_npz(npz(psi=np.eye(2)[0], dims=np.array([1.5]))), "`dims` must be whole numbers in one row"),
        (lambda: from_npz(npz(psi=np.eye(2)[0], dims=np.array([2, 2]))), "`dims` must be positive with product 2"),
        (lambda: from_npz(npz(psi=np.eye(2)[0], rho=np.eye(2) / 2)), "`psi` must be the same state as the first array"),
        (lambda: from_npz(npz(psi=np.eye(2)[0], rho=np.eye(3) / 3)), "`psi` must have dimension 3, as the first array"),
        (lambda: from_npz(npz(rho=np.zeros((2, 2)))), "`rho` must have trace 1"),
        (lambda: from_npz(npz(factor=np.zeros((0, 2)))), r"have shape \(r, d\) with r >= 1"),
    ],
)
def test_what_is_no_state_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidState, match=message):
        make()


@pytest.mark.slow
def test_a_zip_bomb_is_not_unpacked() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, psi=np.zeros(2**24))
    assert len(file.getvalue()) < 2**18
    with pytest.raises(InvalidState, match="`file` must be at most"):
        from_npz(file.getvalue())
