"""The scan on a GPU, in Triton: unpack, multiply, and keep the best of every block, without leaving the registers.

One program takes a block of rows and a tile of queries. It widens a few bytes of each row at a time, multiplies them
with the tile (sums for one query; tensor cores in three TF32 passes, which are nearly float32, for more), and takes the
block's best k + 1 rows out, one after the other. Only those leave the chip: a score and a row in 64 bits whose order as
integers is that of the scores, ties in the order of their rows. What all blocks leave, torch sorts.

`TRITON_INTERPRET=1`, set before this module is imported, runs the same kernels on a CPU, slowly: for tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.grids import NF4_LEVELS
from qraf.states.kernels.reference import Best, check, reach
from qraf.states.projected import LLOYD2_LEVELS
from qraf.states.quantize import Array, Code
from qraf.states.rotation import rotate

__all__ = ["Index", "scan"]

_KINDS = {"float32": 32, "int8": 8, "int4": 4, "nf4": 5, "lloyd2": 2, "sign1": 1}
_LEVELS = {"nf4": NF4_LEVELS, "lloyd2": LLOYD2_LEVELS, "sign1": np.array((-1, 1), np.float32)}
_MOST_IN_REGISTERS = 64  # k + 1 beyond which all scores of a block are written, and torch finds the best


def scan(
    rows: NDArray[np.uint8], queries: Array, d: int, code: Code, k: int = 10, *, device: str | torch.device = "cuda"
) -> Best:
    """Find the best rows; see `reference.scan`. For many scans of the same rows, keep an `Index`."""
    return Index(rows, d, code, device=device).scan(queries, k)


class Index:
    """Coded rows (n, row_bytes), copied to a device: codes and scales apart, so that the codes of a row lie aligned.

    Raises:
        InvalidState: the rows are not of this code, or there are 2^31 of them or more.
    """

    def __init__(self, rows: NDArray[np.uint8], d: int, code: Code, *, device: str | torch.device = "cuda") -> None:
        if len(rows) >= 2**31:
            raise InvalidState("rows", "be fewer than 2^31", f"are {len(rows)}")
        radius = reach(code, rows, d)
        self.d, self.code, self.device = d, code, torch.device(device)
        self._farthest = float(radius.max(initial=0.0))
        self._reach = torch.from_numpy(np.nextafter(radius.astype(np.float32), np.float32(np.inf))).to(self.device)
        kind = _KINDS[code.name]
        self._width = 4 if kind == 5 else kind
        self._per = 8 // self._width if self._width < 8 else 1
        grouped = code.group if kind in (4, 5, 8) else d
        self._group, self._groups = grouped, -(-d // grouped)
        split = -(-d // self._per)
        plain = np.ascontiguousarray(rows if kind == 32 else rows[:, :split])
        codes = plain.view("<f4") if kind == 32 else plain
        scales = rows[:, split:].copy().view("<f2") if kind != 32 else np.zeros((len(rows), 1), np.float16)
        self._codes = torch.from_numpy(_owned(codes)).to(self.device)
        self._scales = torch.from_numpy(_owned(scales)).to(self.device)
        self._levels = torch.from_numpy(_LEVELS.get(code.name, np.zeros(1, np.float32)).copy()).to(self.device)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(part.nbytes for part in (self._codes, self._scales, self._levels, self._reach))

    def scan(self, queries: Array, k: int = 10) -> Best:
        """Find the best `k` rows for each query (m, d); see `reference.scan`.

        Raises:
            InvalidState: the queries do not fit, or k is below 1.
        """
        q = check(queries.cpu() if isinstance(queries, Tensor) else queries, self.d, k)
        k = min(k, len(self))
        asked = rotate(q).astype(np.float32) if self.code.rotated else q
        keys = self.keys(torch.from_numpy(_owned(asked)).to(self.device), k)
        score, index = (part.cpu().numpy() for part in _unkeyed(keys))
        norm = np.linalg.norm(q.astype(np.float64), axis=1)
        rest = score[:, k].astype(np.float64) + norm * self._farthest if len(self) > k else np.full(len(q), -np.inf)
        radius = norm[:, None] * self._reach.cpu().numpy()[index[:, :k]]
        return Best(index[:, :k], score[:, :k], radius, rest)

    def keys(self, asked: Tensor, k: int) -> Tensor:
        """The best min(k + 1, n) rows for queries (m, d) on the device, in the basis of the rows, as sorted int64."""
        m, n = len(asked), len(self)
        if not m or not n:
            return torch.empty(m, min(k + 1, n), dtype=torch.int64, device=self.device)
        asked, constants = asked.contiguous(), self.constants(m, k)
        blocks = triton.cdiv(n, constants["ROWS"])
        kept = constants["ROWS" if constants["WHOLE"] else "KEEP"]
        out = torch.empty(m, blocks * kept, dtype=torch.int64, device=self.device)
        held = self._codes, self._scales, self._levels
        strides = self._codes.stride(0), self._scales.stride(0)
        grid = blocks, triton.cdiv(m, constants["TILE"])
        _scan_block[grid](*held, asked, out, n, m, *strides, **constants)
        return out.topk(min(k + 1, n), dim=1).values

    def constants(self, m: int, k: int) -> dict[str, Any]:
        """What the kernel is compiled for."""
        tile = 1 if m == 1 else 16 if m <= 16 else 32
        block = 256 if m == 1 else 128
        group_bytes = -(-self._group // self._per)
        span = next(size for size in (64, 32, 16) if size == 16 or group_bytes % size == 0)
        if self._width == 32 or tile > 1:
            span = min(span, 32)  # with what tensor cores need beside it, more would not fit into the registers
        return {
            "D": self.d,
            "GROUP": self._group,
            "GROUPS": self._groups,
            "KIND": _KINDS[self.code.name],
            "WIDTH": self._width,
            "PER": self._per,
            "SPAN": span,
            "ROWS": block,
            "TILE": tile,
            "KEEP": min(k + 1, block),
            "WHOLE": k + 1 > _MOST_IN_REGISTERS,
            "num_warps": 4 if tile == 1 else 8,
            "num_stages": 2,
        }


@triton.jit  # type: ignore[untyped-decorator]
def _scan_block(  # type: ignore[no-untyped-def]  # Triton compiles annotations too
    codes_at,
    scales_at,
    levels_at,
    queries_at,
    out_at,
    n,
    m,
    code_stride,
    scale_stride,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    PER: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    KEEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The best KEEP keys of one block of rows for one tile of queries; all of them when WHOLE."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    queries = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_row, is_query = rows < n, queries < m
    total = tl.zeros((TILE, ROWS), tl.float32)
    for group in range(GROUPS):
        first = group * GROUP  # amplitude
        last = tl.minimum(first + GROUP, D)
        if KIND == 32:
            scale = tl.full((ROWS,), 1.0, tl.float32)
        else:
            scale = tl.load(scales_at + rows * scale_stride + group, mask=is_row, other=0.0).to(tl.float32)
        size = tl.abs(scale)
        for start in range(0, (GROUP + PER - 1) // PER, SPAN):
            places = start + tl.arange(0, SPAN)  # bytes of the group; floats of the row at KIND 32
            is_code = first + places * PER < last
            where = rows[:, None] * code_stride + first // PER + places[None, :]
            raw = tl.load(codes_at + where, mask=is_row[:, None] & is_code[None, :], other=0)
            for place in tl.static_range(PER):
                if KIND == 32:
                    x = raw
                elif KIND == 8:
                    x = raw.to(tl.int8, bitcast=True).to(tl.float32)
                else:
                    code = (raw.to(tl.int32) >> (place * WIDTH)) & ((1 << WIDTH) - 1)
                    if KIND == 4:
                        x = code.to(tl.float32) - tl.where(scale < 0, 8.0, 7.5)[:, None]
                    else:
                        x = tl.load(levels_at + code)
                x = x * size[:, None]
                axis = first + places * PER + place
                asked_at = queries_at + queries[:, None] * D + axis[None, :]
                asked = tl.load(asked_at, mask=is_query[:, None] & (axis < last)[None, :], other=0.0)
                if TILE == 1:
                    total += tl.sum(x * asked, axis=1)[None, :]
                else:
                    total = tl.dot(asked, tl.trans(x), total, input_precision="tf32x3")
    # as integers, in the order of the floats; the row is complemented, so that of equals the first one is largest
    bits = total.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - rows)[None, :]
    keys = tl.where(is_row[None, :], keys, -0x7FFFFFFFFFFFFFFF)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    if WHOLE:
        line = out_at + queries.to(tl.int64)[:, None] * (blocks * ROWS) + block * ROWS + tl.arange(0, ROWS)[None, :]
        tl.store(line, keys, mask=is_query[:, None])
    else:
        for rank in range(KEEP):
            best = tl.max(keys, axis=1)
            line = out_at + queries.to(tl.int64) * (blocks * KEEP) + block * KEEP + rank
            tl.store(line, best, mask=is_query)
            keys = tl.where(keys == best[:, None], -0x7FFFFFFFFFFFFFFF, keys)


def _unkeyed(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and rows (int64) of keys."""
    bits = keys >> 32
    bits = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    return bits.to(torch.int32).view(torch.float32), 0x7FFFFFFF - (keys & 0xFFFFFFFF)


def _owned(array: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and writable, as torch wants memory to be."""
    return np.require(array, requirements=("C", "W", "O"))
