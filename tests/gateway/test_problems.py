"""What a client is told of a body that does not fit."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from qraf.decode_frames import DecodeOpen
from qraf.gateway.problems import decoding_fault
from qraf.service_orders import Correct, Quantize
from qraf.state_frames import StateCommand
from qraf.state_orders import StateCompareBody, StateMergeBody, StatePrepareBody


@pytest.mark.parametrize(
    ("kind", "body", "pointer", "known"),
    [
        (Quantize, {"rows": [[1, 0]], "code": "int5"}, "/code", "float32, int8, int4, nf4, lloyd2, sign1"),
        (Correct, {"op": "build", "experiment": {"code": "x", "distance": 3, "rounds": 3}}, "/experiment/code",
         "rotated_surface, repetition"),
        (Correct, {"op": "build", "experiment": {"code": "repetition", "distance": 3, "rounds": 3, "basis": "y"}},
         "/experiment/basis", "z, x"),
        (DecodeOpen, {"type": "decode.open", "id": "1", "experiment": {"code": 1, "distance": 3, "rounds": 3}},
         "/experiment/code", ""),
        (StateCompareBody, {"pairs": [["st_a", "st_b"]], "measures": ["bures", "trace"]}, "/measures/1",
         "fidelity, trace_distance, bures"),
        (StateMergeBody, {"others": ["st_a"], "into": "here"}, "/into", "same, new"),
        (StatePrepareBody, {"amplitudes": {"data": "", "shape": [1], "dtype": "int8"}}, "/amplitudes/dtype",
         "float32, float64, complex64, complex128"),
        (StateCommand, {"type": "state", "id": "1", "order": {"op": "squeeze"}}, "/order/op",
         "prepare, read, measure, evolve, merge, tensor, partial_trace, fork, compare, export, delete"),
    ],
)  # fmt: skip
def test_a_word_that_is_not_known_is_answered_by_those_that_are(
    kind: Any, body: dict[str, Any], pointer: str, known: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(body), type=kind)
    detail, found = decoding_fault(caught.value)
    assert found == pointer
    if known:
        assert detail.endswith(f"; there are {known}")
    else:
        assert detail == "expected `str`, got `int`"
