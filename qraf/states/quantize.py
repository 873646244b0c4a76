"""Group-wise codes of amplitudes: smaller states with a measured and a guaranteed loss.

A row of `d` real amplitudes becomes one self-contained row of bytes: packed codes, then one little-endian float16
scale per group of `group` amplitudes. d = 384, groups of 64: 204 bytes at 4 bits, 396 at 8 bits, 1536 raw (`bits=32`).

Each amplitude lies at most half a cell, |s_g| / 2, from its decoded value, because scales are rounded up and so
nothing clips. Hence, for unit psi and its decoded psi',

    1 - F  <=  ||psi - psi'||^2  <=  eps_wc^2 = sum_g n_g s_g^2 / 4,      F = <psi|psi'>^2 / <psi'|psi'>

The left side holds for any length of psi': 1 - F is the squared distance of psi from the *line* through psi', and
that distance is no larger than the one to psi' itself. The bound is read from the scales alone, so a receiver that
never saw psi knows it. A dot product with a unit query is off by at most eps_wc.

Four bits have two grids, and each group takes the one with the smaller error; the sign of its scale says which:
    s > 0   16 levels (c - 7.5) s, s = max|x| / 8     no zero, finest cells; dense groups
    s < 0   15 levels (c - 8) |s|, |s| = max|x| / 7.5 exact zero; sparse groups
Eight bits: 255 levels c s with s = max|x| / 127.5. An all-zero group has scale 0 and comes back exactly.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState

__all__ = ["BITS", "Array", "bound", "decode", "encode", "loss", "row_bytes", "scan"]

Array: TypeAlias = "Tensor | NDArray[np.floating]"
BITS = (4, 8, 32)
_CHUNK = 1024  # rows unpacked at a time: 1024 x 384 float32 are 1.5 MiB and stay in cache
_F16_MAX = 65504.0
_FLOAT_SLACK = 1.0 + 2.0**-20  # float32 rounding of x / s and of the decoded product


def row_bytes(d: int, bits: int = 4, group: int = 64) -> int:
    """Bytes of one coded row.

    >>> row_bytes(384), row_bytes(384, 8), row_bytes(384, 32)
    (204, 396, 1536)
    """
    _check_layout(d, bits, group)
    if bits == 32:
        return 4 * d
    return _code_bytes(d, bits) + 2 * _groups(d, group)


def encode(x: Array, bits: int = 4, group: int = 64) -> NDArray[np.uint8]:
    """Code rows of real amplitudes.

    Args:
        x: amplitudes, (n, d), finite, each |x| small enough for a float16 scale; unit rows for the bounds to be
            infidelities.
        bits: 4, 8 or 32 (float32 as it is).
        group: amplitudes that share a scale; even at 4 bits.

    Returns:
        Codes, (n, row_bytes(d, bits, group)).

    Raises:
        InvalidState: the shape is not (n, d), a value is not finite or too large, or bits or group do not exist.
    """
    values = _rows_of("x", x)
    n, d = values.shape
    _check_layout(d, bits, group)
    if not np.isfinite(values).all():
        raise InvalidState("x", "be finite", "holds NaN or infinity")
    if bits == 32:
        return values.astype("<f4").view(np.uint8).reshape(n, 4 * d)
    out = np.empty((n, row_bytes(d, bits, group)), np.uint8)
    for start in range(0, n, _CHUNK):
        piece = slice(start, start + _CHUNK)
        grouped = _grouped(values[piece], group)
        peak = np.abs(grouped).max(axis=2)
        if peak.size and peak.max() > 7.5 * _F16_MAX:
            raise InvalidState("x", f"stay below {7.5 * _F16_MAX:.0f}", f"reaches {peak.max():.3g}")
        codes, scales = _codes8(grouped, peak) if bits == 8 else _codes4(grouped, peak)
        codes = codes.reshape(len(codes), codes.shape[1] * group)[:, :d]
        split = _code_bytes(d, bits)
        if bits == 8:
            out[piece, :split] = codes
        else:
            codes = np.pad(codes, ((0, 0), (0, d % 2)))
            out[piece, :split] = codes[:, 0::2] | (codes[:, 1::2] << 4)
        out[piece, split:] = np.ascontiguousarray(scales, "<f2").view(np.uint8)
    return out


def decode(rows: NDArray[np.uint8], d: int, bits: int = 4, group: int = 64) -> NDArray[np.float32]:
    """Give the decoded amplitudes, (n, d) float32, nearly but not exactly of unit norm.

    Raises:
        InvalidState: `rows` are not rows of this code.
    """
    rows = _checked(rows, d, bits, group)
    if bits == 32:
        return np.ascontiguousarray(rows).view("<f4").astype(np.float32)
    split = _code_bytes(d, bits)
    step, offset = _scales(rows[:, split:], bits)
    if bits == 8:
        codes = rows[:, :split].view(np.int8).astype(np.float32)
    else:
        codes = np.empty((len(rows), 2 * split), np.float32)
        codes[:, 0::2] = rows[:, :split] & 15
        codes[:, 1::2] = rows[:, :split] >> 4
    grouped = _grouped(codes[:, :d], group)
    decoded = (grouped - offset[:, :, None]) * step[:, :, None]
    return np.ascontiguousarray(decoded.reshape(len(rows), decoded.shape[1] * group)[:, :d])


def scan(
    rows: NDArray[np.uint8], queries: Array, d: int, bits: int = 4, group: int = 64, chunk: int = _CHUNK
) -> NDArray[np.float32]:
    """Overlap every query with every coded row, <q|psi'>, without decoding the whole memory at once.

    Args:
        rows: codes, (n, row_bytes(d, bits, group)).
        queries: real amplitudes, (m, d).
        d: amplitudes per row.
        bits: 4, 8 or 32.
        group: amplitudes that share a scale.
        chunk: rows unpacked at a time; the scratch is about `chunk * d` float32.

    Returns:
        Dot products, (m, n) float32; each within `sqrt(bound(rows))` of the exact one for unit queries and states.

    Raises:
        InvalidState: the rows are not of this code, or the queries are not (m, d).
    """
    rows = _checked(rows, d, bits, group)
    q = torch.from_numpy(_writable(_rows_of("queries", queries)))
    if q.shape[1] != d:
        raise InvalidState("queries", f"have shape (m, {d})", f"has {tuple(q.shape)}")
    out = np.empty((len(q), len(rows)), np.float32)
    if not out.size:
        return out
    scanner = _Scan(q, d, bits, group, min(chunk, len(rows)))
    for start in range(0, len(rows), chunk):
        piece = slice(start, start + chunk)
        out[:, piece] = scanner(rows[piece]).numpy()
    return out


def bound(rows: NDArray[np.uint8], d: int, bits: int = 4, group: int = 64) -> NDArray[np.float64]:
    """Give eps_wc^2 per row, (n,): the guaranteed infidelity of a unit state, from the scales alone; 0 at 32 bits."""
    rows = _checked(rows, d, bits, group)
    if bits == 32:
        return np.zeros(len(rows))
    step, _ = _scales(rows[:, _code_bytes(d, bits) :], bits)
    sizes = np.full(_groups(d, group), float(group))
    sizes[-1] = d - group * (len(sizes) - 1)
    guaranteed: NDArray[np.float64] = (step.astype(np.float64) ** 2 @ sizes) / 4 * _FLOAT_SLACK
    return guaranteed


def loss(
    x: Array, rows: NDArray[np.uint8], bits: int = 4, group: int = 64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure what coding lost.

    Args:
        x: the exact amplitudes, (n, d), any norm but zero.
        rows: their codes.
        bits: 4, 8 or 32.
        group: amplitudes that share a scale.

    Returns:
        The fidelity of each coded state, F = <x|x'>^2 / (<x|x> <x'|x'>), and the guaranteed bound on 1 - F from the
        scales, `bound / <x|x>`, at most 1. A row that decodes to zero has fidelity 0.

    Raises:
        InvalidState: shapes differ, or a row of `x` is zero.
    """
    exact = _rows_of("x", x).astype(np.float64)
    if len(exact) != len(rows):
        raise InvalidState("rows", f"have {len(exact)} rows", f"has {len(rows)}")
    coded = decode(rows, exact.shape[1], bits, group).astype(np.float64)
    norm = np.einsum("nd,nd->n", exact, exact)
    if len(norm) and norm.min() <= 0:
        raise InvalidState("x", "have no zero row", f"row {int(norm.argmin())} is zero")
    overlap = np.einsum("nd,nd->n", exact, coded) ** 2
    length = norm * np.einsum("nd,nd->n", coded, coded)
    fidelity = np.divide(overlap, length, out=np.zeros_like(norm), where=length > 0)
    guaranteed = bound(rows, exact.shape[1], bits, group) / norm
    return np.minimum(fidelity, 1.0), np.minimum(guaranteed, 1.0)


class _Scan:
    """The queries, laid out once, and the scratch in which each chunk is unpacked.

    <q|psi'> = sum_g s_g q_g . c_g - sum_g s_g o_g sum q_g: codes are widened, scaled group by group, and meet all
    queries in one matrix product; the offsets o_g need only the groups. A byte b = lo + 16 hi is not shifted, because
    q_lo lo + q_hi hi = (q_lo - q_hi / 16) lo + (q_hi / 16) b. Scratch columns past the last code stay zero.
    """

    def __init__(self, q: Tensor, d: int, bits: int, group: int, chunk: int) -> None:
        self.bits, self.q = bits, q
        if bits == 32:
            return
        self.split, groups = _code_bytes(d, bits), _groups(d, group)
        padded = torch.nn.functional.pad(q, (0, groups * group - d)).reshape(len(q), groups, group)
        self.sums = padded.sum(2)
        if bits == 4:
            low, high = padded[:, :, 0::2], padded[:, :, 1::2] / 16
            padded = torch.stack((low - high, high), 1)
        self.q = padded.reshape(len(q), -1)
        parts, width = (2, group // 2) if bits == 4 else (1, group)
        self.low = torch.empty(chunk, self.split, dtype=torch.uint8)
        self.wide = torch.zeros(chunk, parts, groups, width)

    def __call__(self, rows: NDArray[np.uint8]) -> Tensor:
        if self.bits == 32:
            return self.q @ torch.from_numpy(np.array(rows).view("<f4").astype(np.float32, copy=False)).T
        n, rows = len(rows), rows if rows.flags.writeable else rows.copy()
        signed = torch.from_numpy(rows[:, self.split :].copy().view("<f2")).float()
        step = signed.abs()
        packed = torch.from_numpy(rows[:, : self.split])
        wide = self.wide[:n]
        columns = wide.flatten(2)[:, :, : self.split]
        if self.bits == 4:
            columns[:, 0] = torch.bitwise_and(packed, 15, out=self.low[:n])
            columns[:, 1] = packed
        else:
            columns[:, 0] = packed.view(torch.int8)
        wide.mul_(step[:, None, :, None])
        dots = self.q @ wide.view(n, -1).T
        if self.bits == 4:
            dots.addmm_(self.sums, (7.75 * step - 0.25 * signed).T, alpha=-1)  # o_g s_g: 7.5 or 8 by the sign
        return dots


def _codes8(x: NDArray[np.float32], peak: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    scales = _rounded_up(peak / np.float32(127.5))
    codes = np.clip(np.rint(_ratio(x, scales)), -127, 127)
    return codes.astype(np.int8).view(np.uint8), scales


def _codes4(x: NDArray[np.float32], peak: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    rise, tread = _rounded_up(peak / np.float32(8)), _rounded_up(peak / np.float32(7.5))
    up = np.clip(np.floor(_ratio(x, rise)) + 8, 0, 15)
    even = np.clip(np.rint(_ratio(x, tread)) + 8, 1, 15)
    error_up = (((up - 7.5) * rise.astype(np.float32)[:, :, None] - x) ** 2).sum(2)
    error_even = (((even - 8) * tread.astype(np.float32)[:, :, None] - x) ** 2).sum(2)
    is_even = error_even < error_up
    codes = np.where(is_even[:, :, None], even, up).astype(np.uint8)
    return codes, np.where(is_even, -tread, rise)


def _ratio(x: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = scales.astype(np.float32)[:, :, None]
    return np.divide(x, wide, out=np.zeros_like(x), where=wide > 0)


def _rounded_up(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    half = scale.astype(np.float16)
    return np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half)


def _scales(raw: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the cell sizes |s| and what to take off a code first: 7.5 or 8 at four bits, 0 at eight."""
    signed = np.ascontiguousarray(raw).view("<f2").astype(np.float32)
    if bits == 8:
        return np.abs(signed), np.zeros_like(signed)
    return np.abs(signed), np.where(signed < 0, np.float32(8), np.float32(7.5))


def _grouped(x: NDArray[np.float32], group: int) -> NDArray[np.float32]:
    n, d = x.shape
    groups = _groups(d, group)
    if groups * group != d:
        x = np.pad(x, ((0, 0), (0, groups * group - d)))
    return x.reshape(n, groups, group)


def _groups(d: int, group: int) -> int:
    return -(-d // group)


def _code_bytes(d: int, bits: int) -> int:
    return d if bits == 8 else (d + 1) // 2


def _rows_of(name: str, x: Array) -> NDArray[np.float32]:
    if np.iscomplexobj(x) or (isinstance(x, Tensor) and x.is_complex()):
        raise InvalidState(name, "be real", "is complex")
    values = x.detach().to("cpu", torch.float32).numpy() if isinstance(x, Tensor) else np.asarray(x, np.float32)
    if values.ndim != 2:
        raise InvalidState(name, "have shape (n, d)", f"has {values.shape}")
    return values


def _writable(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x if x.flags.writeable else x.copy()  # torch warns about read-only memory, e.g. from Ray's object store


def _check_layout(d: int, bits: int, group: int) -> None:
    if bits not in BITS:
        raise InvalidState("bits", f"be one of {BITS}", f"is {bits}")
    if d < 1:
        raise InvalidState("d", "be at least 1", f"is {d}")
    if group < 1 or (bits == 4 and group % 2):
        raise InvalidState("group", "be positive, and even at 4 bits", f"is {group}")


def _checked(rows: NDArray[np.uint8], d: int, bits: int, group: int) -> NDArray[np.uint8]:
    need = row_bytes(d, bits, group)
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != need:
        raise InvalidState("rows", f"be uint8 of shape (n, {need})", f"is {rows.dtype} of shape {rows.shape}")
    return rows
