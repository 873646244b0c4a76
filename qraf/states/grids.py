"""Grids with a scale for each group of amplitudes: int8, int4 and nf4. Codes first, then the scales.

No value lies outside its grid, because scales are rounded up; so each amplitude is at most half a cell from its decoded
value, and the sum of the squared half cells of a row bounds ||x - x'||^2 without knowing x.

int8   255 levels c s with s = max|x| / 127.5
int4   two grids, and each group takes the one with the smaller error; the sign of its scale says which:
       s > 0   16 levels (c - 7.5) s, s = max|x| / 8     no zero, finest cells; dense groups
       s < 0   15 levels (c - 8) |s|, |s| = max|x| / 7.5 exact zero; sparse groups
nf4    16 levels s q_c with s = max|x|, q the quantiles of a normal distribution (Dettmers et al. 2023, QLoRA): finer
       cells near zero, so a smaller mean loss on dense groups; half a cell differs from level to level

Two 4-bit codes share a byte, the earlier one in the low nibble. Scales are little-endian float16.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState

__all__ = ["NF4_LEVELS", "GridName", "GridScan", "cells", "code_bytes", "decode", "encode", "num_groups"]

GridName = Literal["int8", "int4", "nf4"]
_T = TypeVar("_T", bound=np.generic)

_F16_MAX = 65504.0
NF4_LEVELS = np.array(
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    np.float32,
)
_NF4_EDGES = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
_NF4_REACH = np.maximum(  # from each level to the farther end of its cell; the grid ends at its outer levels
    NF4_LEVELS - np.concatenate(([-1.0], _NF4_EDGES)), np.concatenate((_NF4_EDGES, [1.0])) - NF4_LEVELS
).astype(np.float64)


def encode(x: NDArray[np.float32], name: GridName, group: int) -> NDArray[np.uint8]:
    """Code finite rows (n, d)."""
    n, d = x.shape
    grouped = _grouped(x, group)
    peak = np.abs(grouped).max(axis=2)
    most = _F16_MAX if name == "nf4" else 7.5 * _F16_MAX
    if peak.size and peak.max() > most:
        raise InvalidState("x", f"stay below {most:.0f}", f"reaches {peak.max():.3g}")
    coder = {"int8": _codes8, "int4": _codes4, "nf4": _codes_nf4}[name]
    codes, scales = coder(grouped, peak)
    codes = codes.reshape(n, codes.shape[1] * group)[:, :d]
    split = code_bytes(d, name)
    out = np.empty((n, split + 2 * num_groups(d, group)), np.uint8)
    if name == "int8":
        out[:, :split] = codes
    else:
        codes = np.pad(codes, ((0, 0), (0, d % 2)))
        out[:, :split] = codes[:, 0::2] | (codes[:, 1::2] << 4)
    out[:, split:] = np.ascontiguousarray(scales, "<f2").view(np.uint8)
    return out


def decode(rows: NDArray[np.uint8], d: int, name: GridName, group: int) -> NDArray[np.float32]:
    """Decode rows to (n, d)."""
    split = code_bytes(d, name)
    signed = _scales(rows, split)
    if name == "nf4":
        decoded = _grouped(NF4_LEVELS[_nibbles(rows, d)], group) * signed[:, :, None]
    else:
        codes = rows[:, :split].view(np.int8) if name == "int8" else _nibbles(rows, d)
        offset = np.where(signed < 0, np.float32(8), np.float32(7.5)) if name == "int4" else np.zeros_like(signed)
        decoded = (_grouped(codes.astype(np.float32), group) - offset[:, :, None]) * np.abs(signed)[:, :, None]
    return np.ascontiguousarray(decoded.reshape(len(rows), decoded.shape[1] * group)[:, :d])


def cells(rows: NDArray[np.uint8], d: int, name: GridName, group: int) -> NDArray[np.float64]:
    """The sum of the squared half cells of each row, (n,): at least ||x - x'||^2, up to float32 rounding."""
    step = np.abs(_scales(rows, code_bytes(d, name))).astype(np.float64)
    if name == "nf4":
        reach = _grouped(_NF4_REACH[_nibbles(rows, d)] ** 2, group).sum(2)
        tight: NDArray[np.float64] = np.einsum("ng,ng->n", step**2, reach)
        return tight
    sizes = np.full(step.shape[1], float(group))
    sizes[-1] = d - group * (len(sizes) - 1)
    total: NDArray[np.float64] = (step**2 @ sizes) / 4
    return total


def code_bytes(d: int, name: GridName) -> int:
    """Bytes of the codes of a row, in front of its scales."""
    return d if name == "int8" else (d + 1) // 2


def num_groups(d: int, group: int) -> int:
    """How many scales a row has."""
    return -(-d // group)


class GridScan:
    """The queries, laid out once, and the scratch in which each chunk is unpacked.

    int8, int4: <q|psi'> = sum_g s_g q_g . c_g - sum_g s_g o_g sum q_g: codes are widened, scaled group by group, and
    meet all queries in one matrix product; the offsets o_g need only the groups. A byte b = lo + 16 hi is not shifted,
    because q_lo lo + q_hi hi = (q_lo - q_hi / 16) lo + (q_hi / 16) b. Scratch columns past the last code stay zero.
    nf4 is decoded, chunk by chunk.
    """

    def __init__(self, q: Tensor, d: int, name: GridName, group: int, chunk: int) -> None:
        self.name, self.q, self.d, self.group = name, q, d, group
        if name == "nf4":
            return
        self.split, groups = code_bytes(d, name), num_groups(d, group)
        padded = torch.nn.functional.pad(q, (0, groups * group - d)).reshape(len(q), groups, group)
        self.sums = padded.sum(2)
        if name == "int4":
            low, high = padded[:, :, 0::2], padded[:, :, 1::2] / 16
            padded = torch.stack((low - high, high), 1)
        self.q = padded.reshape(len(q), -1)
        parts, width = (2, group // 2) if name == "int4" else (1, group)
        self.low = torch.empty(chunk, self.split, dtype=torch.uint8)
        self.wide = torch.zeros(chunk, parts, groups, width)

    def __call__(self, rows: NDArray[np.uint8]) -> Tensor:
        """Dot products (m, n) with at most `chunk` rows."""
        if self.name == "nf4":
            return self.q @ torch.from_numpy(decode(rows, self.d, "nf4", self.group)).T
        n, rows = len(rows), rows if rows.flags.writeable else rows.copy()
        signed = torch.from_numpy(rows[:, self.split :].copy().view("<f2")).float()
        step = signed.abs()
        packed = torch.from_numpy(rows[:, : self.split])
        wide = self.wide[:n]
        columns = wide.flatten(2)[:, :, : self.split]
        if self.name == "int4":
            columns[:, 0] = torch.bitwise_and(packed, 15, out=self.low[:n])
            columns[:, 1] = packed
        else:
            columns[:, 0] = packed.view(torch.int8)
        wide.mul_(step[:, None, :, None])
        dots = self.q @ wide.view(n, -1).T
        if self.name == "int4":
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


def _codes_nf4(x: NDArray[np.float32], peak: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    scales = _rounded_up(peak)
    return np.searchsorted(_NF4_EDGES, _ratio(x, scales)).astype(np.uint8), scales


def _ratio(x: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = scales.astype(np.float32)[:, :, None]
    return np.divide(x, wide, out=np.zeros_like(x), where=wide > 0)


def _rounded_up(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    half = scale.astype(np.float16)
    return np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half)


def _scales(rows: NDArray[np.uint8], split: int) -> NDArray[np.float32]:
    """The scales with their signs, (n, groups)."""
    return np.ascontiguousarray(rows[:, split:]).view("<f2").astype(np.float32)


def _nibbles(rows: NDArray[np.uint8], d: int) -> NDArray[np.uint8]:
    split = (d + 1) // 2
    codes = np.empty((len(rows), 2 * split), np.uint8)
    codes[:, 0::2] = rows[:, :split] & 15
    codes[:, 1::2] = rows[:, :split] >> 4
    return codes[:, :d]


def _grouped(x: NDArray[_T], group: int) -> NDArray[_T]:
    n, d = x.shape
    groups = num_groups(d, group)
    if groups * group != d:
        x = np.pad(x, ((0, 0), (0, groups * group - d)))
    return x.reshape(n, groups, group)
