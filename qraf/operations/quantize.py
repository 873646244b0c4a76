"""Orders to code amplitudes and to decode them, answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qraf.errors import InvalidRequest
from qraf.operations.arrays import at, tensor_of
from qraf.operations.batches import array_out
from qraf.operations.given import states_of
from qraf.service_orders import Coding, Dequantize, Dequantized, Quantize, Quantized
from qraf.states.coded_factor import encode_factor, factor_loss
from qraf.states.quantize import Code, Loss, all_codes, table

__all__ = ["dequantize", "quantize"]


def quantize(order: Quantize) -> Quantized:
    """Code rows or states in the way that was asked for, or in every way.

    Raises:
        InvalidRequest: with a pointer to what does not fit.
    """
    codes = _codes(order)
    if (order.rows is None) == (order.states is None):
        raise InvalidRequest("give one of `rows` and `states`", "/rows")
    if order.states is not None:
        return _of_states([state.factor for state in states_of(order.states, "/states")], codes, order.returned)
    assert order.rows is not None
    rows = tensor_of(order.rows, "/rows", (1, 2), "(d,) or (n, d)")
    rows = rows[None] if rows.ndim == 1 else rows
    norm = torch.linalg.vector_norm(rows.to(torch.complex128 if rows.is_complex() else torch.float64), dim=1)
    if not bool((norm > 0).all()):
        row = int(norm.argmin())
        raise InvalidRequest("must not be zero: a zero row is no state", f"/rows/{row}")
    if not bool(norm.isfinite().all()):
        raise InvalidRequest(
            "is too large: the squares of its numbers cannot be added up", f"/rows/{int(norm.argmax())}"
        )
    with at("/rows"):
        unit = rows / norm[:, None].to(rows.real.dtype)
        losses = table(unit, codes)
    halves = torch.cat((unit.real, unit.imag), 1) if unit.is_complex() else unit
    n, d = halves.shape
    made = [_coding(loss, n, d, loss.code.encode(halves).tobytes() if order.returned else None) for loss in losses]
    return Quantized(n=n, d=d, codings=tuple(made))


def dequantize(order: Dequantize) -> Dequantized:
    """Decode rows.

    Raises:
        InvalidRequest: the bytes are no whole number of rows of this code, or hold scales that are not finite.
    """
    code = _code(order.code, order.rotate, order.group)
    with at("/d"):
        width = code.row_bytes(order.d)
    if not order.codes or len(order.codes) % width:
        need = f"must be a whole number of rows of {width} bytes, but has {len(order.codes)} bytes"
        raise InvalidRequest(need, "/codes")
    coded = np.frombuffer(order.codes, np.uint8).reshape(-1, width)
    with at("/codes"), np.errstate(invalid="ignore", over="ignore"):
        rows = code.decode(coded, order.d)
    if not np.isfinite(rows).all():
        raise InvalidRequest("must hold finite scales, but decodes to NaN or infinity", "/codes")
    return Dequantized(n=len(rows), d=order.d, rows=array_out(torch.from_numpy(rows), order.form))


def _codes(order: Quantize) -> tuple[Code, ...]:
    if order.code is not None:
        return (_code(order.code, order.rotate, order.group),)
    with at("/group"):
        known = all_codes(order.group)
    return tuple(code for code in known if order.rotate is None or code.rotated == order.rotate)


def _code(name: str, rotate: bool | None, group: int) -> Code:
    if name == "float32" and rotate:
        raise InvalidRequest("must be false for float32, which keeps rows as they are", "/rotate")
    with at("/group"):
        return Code(name, rotate, group)  # type: ignore[arg-type]


def _of_states(factors: Sequence[Tensor], codes: Sequence[Code], returned: bool) -> Quantized:
    """States are coded by their factors: a factor of trace 1 is one unit vector of a larger space."""
    d, is_complex = factors[0].shape[1], any(factor.is_complex() for factor in factors)
    for index, factor in enumerate(factors):
        if factor.shape[1] != d:
            raise InvalidRequest(
                f"must have dimension {d} like the first, but has {factor.shape[1]}", f"/states/{index}"
            )
    factors = [factor.to(torch.complex128) for factor in factors] if is_complex else factors
    counts = tuple(len(factor) for factor in factors)
    n, width = sum(counts), d * (1 + is_complex)
    codings = []
    for code in codes:
        coded = [encode_factor(factor, code) for factor in factors]
        lost = [factor_loss(factor, one) for factor, one in zip(factors, coded, strict=True)]
        infidelity, distance = np.array([(max(0.0, 1 - one.fidelity), one.trace_distance) for one in lost]).T
        bound = np.minimum(np.array([one.bound for one in lost]) ** 2, 1.0)
        loss = Loss(
            code=code,
            bytes=code.row_bytes(width),
            infidelity_mean=float(infidelity.mean()),
            infidelity_max=float(infidelity.max()),
            trace_distance_mean=float(distance.mean()),
            trace_distance_max=float(distance.max()),
            bound_mean=float(bound.mean()),
            bound_max=float(bound.max()),
        )
        codings.append(_coding(loss, n, width, b"".join(one.rows.tobytes() for one in coded) if returned else None))
    return Quantized(n=n, d=width, codings=tuple(codings), rows_of=counts)


def _coding(loss: Loss, n: int, d: int, codes: bytes | None) -> Coding:
    return Coding(
        code=loss.code.name,
        rotate=bool(loss.code.rotated),
        group=loss.code.group,
        bytes_per_row=loss.bytes,
        bytes=n * loss.bytes,
        ratio=4 * d / loss.bytes,
        infidelity_mean=loss.infidelity_mean,
        infidelity_max=loss.infidelity_max,
        trace_distance_mean=loss.trace_distance_mean,
        trace_distance_max=loss.trace_distance_max,
        bound_mean=loss.bound_mean,
        bound_max=loss.bound_max,
        codes=codes,
    )
