from __future__ import annotations

import hashlib

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidState
from qraf.states.density import DensityOperator
from qraf.states.envelope import seal, unseal
from qraf.states.packet import CodedRows, pack, unpack
from qraf.states.quantize import encode
from qraf.states.sketch import Sketch
from tests import closed_forms as exact
from tests.examples import examples
from tests.states.test_sketch import D, stream


def a_sketch() -> Sketch:
    sketch = Sketch(D, 4, dtype="float16")
    sketch.update(stream(20, 1))
    return sketch


def test_a_dense_state_comes_back_with_its_subsystems() -> None:
    for dtype in (torch.complex128, torch.complex64):
        state = DensityOperator(exact.werner(0.4).to(dtype), (2, 2))
        again = unpack(pack(state))
        assert isinstance(again, DensityOperator)
        assert torch.equal(again.rho, state.rho)
        assert again.rho.dtype == dtype
        assert again.dims == (2, 2)


def test_a_factor_comes_back_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64):
        factor = exact.random_state(6, 2, 1, dtype)
        for one in (factor, factor.flip(0), factor.conj()):
            again = unpack(pack(one, (2, 3)))
            assert isinstance(again, torch.Tensor)
            assert torch.equal(again, one.resolve_conj())


def test_a_sketch_and_coded_rows_come_back() -> None:
    sketch, coded = a_sketch(), CodedRows(encode(stream(5, 1), 4, 8), D, 4, 8)
    again, rows = unpack(pack(sketch)), unpack(pack(coded))
    assert isinstance(again, Sketch)
    assert again.to_bytes() == sketch.to_bytes()
    assert isinstance(rows, CodedRows)
    assert np.array_equal(rows.rows, coded.rows)
    assert (rows.d, rows.bits, rows.group) == (D, 4, 8)


@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_any_flipped_bit_or_cut_is_found(data: st.DataObject) -> None:
    packet = pack(a_sketch())
    where = data.draw(st.integers(0, 8 * len(packet) - 1))
    flipped = bytearray(packet)
    flipped[where // 8] ^= 1 << (where % 8)
    for damaged in (bytes(flipped), packet[: where // 8], packet + b"\0"):
        with pytest.raises(InvalidState, match="`packet` must"):
            unpack(damaged)


def test_the_message_names_what_failed() -> None:
    packet = pack(exact.random_state(4, 1, 0))
    with pytest.raises(InvalidState, match="must match its checksum"):
        unpack(packet[:-1])
    with pytest.raises(InvalidState, match="must start with 'QRAF'"):
        unpack(b"")
    with pytest.raises(InvalidState, match="must have version 1, but has version 9"):
        unpack(packet[:4] + b"\x09" + packet[5:])
    with pytest.raises(InvalidState, match="hold a dense, factor, sketch or coded state, but holds a poem"):
        unpack(seal("poem", {}, {}))
    with pytest.raises(InvalidState, match="lacks 'rho'"):
        unpack(seal("dense", {"dims": [2]}, {}))
    with pytest.raises(InvalidState, match="hold a sketch, but holds a factor"):
        Sketch.from_bytes(packet)
    with pytest.raises(InvalidState, match="have trace 1"):
        unpack(seal("dense", {"dims": [2]}, {"rho": np.eye(2)}))
    with pytest.raises(InvalidState, match="lacks 'rank'"):
        unpack(seal("sketch", {"dim": 3}, {}))


def test_a_sealed_body_that_does_not_fit_is_refused() -> None:
    def sealed(parts: object) -> bytes:
        whole = seal("x", {}, {})
        body = msgpack.packb(parts)
        return whole[:5] + hashlib.blake2b(body, digest_size=16).digest() + body

    for parts in ([1, 2], {"kind": "x"}, {"kind": "x", "facts": {}, "arrays": {"a": ["<f4", [2], b"1234"]}}):
        with pytest.raises(InvalidState):
            unseal(sealed(parts))
    with pytest.raises(InvalidState, match="have one of the dtypes"):
        unseal(sealed({"kind": "x", "facts": {}, "arrays": {"a": ["|O", [1], b"12345678"]}}))
    with pytest.raises(InvalidState, match="have one of the dtypes"):
        seal("x", {}, {"a": np.array(["text"])})


def test_what_is_no_state_is_refused_before_packing() -> None:
    with pytest.raises(InvalidState, match="`state` must be a DensityOperator"):
        pack("rho")  # type: ignore[arg-type]
    with pytest.raises(InvalidState, match="`dims` must be positive with product 4"):
        pack(exact.random_state(4, 1, 0), (3, 2))
    with pytest.raises(InvalidState, match=r"`factor` must have shape \(r, d\)"):
        pack(torch.zeros(2, 2, 2))
    with pytest.raises(InvalidState, match=r"`rows` must be uint8 of shape \(n, 14\)"):
        CodedRows(np.zeros((1, 3), np.uint8), D)
