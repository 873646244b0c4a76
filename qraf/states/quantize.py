"""Codes of amplitudes: smaller states with a measured and a guaranteed loss.

A row of `d` real amplitudes becomes one self-contained row of bytes: codes, then little-endian float16 scales.

    code      bytes, d = 384   mean infidelity of a Gaussian direction   made in
    float32   1536             0
    int8      396              3.5e-5                                    `grids`, a scale for each group of 64
    int4      204              9.1e-3                                    `grids`
    nf4       204              8.5e-3                                    `grids`
    lloyd2    98               0.117                                     `projected`, one scale
    sign1     50               0.364                                     `projected`, one scale

Each may be rotated first (`rotation`), which lets outliers share their size with the whole row; lloyd2 and sign1 are,
unless told otherwise. A rotated row is read by rotating the query. The functions with `bits` are the codes that
memories and journals hold: 32, 8, 4 (float32, int8, int4, not rotated), 2 and 1 (lloyd2 and sign1, rotated).

For unit psi and its decoded psi',

    1 - F  <=  ||psi - psi'||^2  <=  `bound`,      F = <psi|psi'>^2 / <psi'|psi'>,      T = sqrt(1 - F)

The left side holds for any length of psi': 1 - F is the squared distance of psi from the *line* through psi', and
that distance is no larger than the one to psi' itself. `bound` (eps_wc^2) is read from the row alone, so a receiver
that never saw psi knows it: sum_i h_i^2 of the half cells on a grid, which for int8 and int4 is sum_g n_g s_g^2 / 4;
1 - |psi'|^2 for a projected code. A dot product with a unit query is off by at most sqrt(bound).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeGuard, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states import grids, projected
from qraf.states.kernels import native
from qraf.states.rotation import rotate, unrotate

__all__ = ["BITS", "CODES", "Array", "Code", "CodeName", "Loss", "all_codes", "bound", "decode", "encode", "loss"]
__all__ += ["row_bytes", "scan", "table"]

Array: TypeAlias = "Tensor | NDArray[np.floating]"
CodeName: TypeAlias = Literal["float32", "int8", "int4", "nf4", "lloyd2", "sign1"]
CODES: tuple[CodeName, ...] = get_args(CodeName)
BITS = (1, 2, 4, 8, 32)
_OF_BITS: dict[int, CodeName] = {32: "float32", 8: "int8", 4: "int4", 2: "lloyd2", 1: "sign1"}
_BITS_OF: dict[CodeName, int] = {"float32": 32, "int8": 8, "int4": 4, "nf4": 4, "lloyd2": 2, "sign1": 1}
_CHUNK = 1024  # rows worked on at a time: 1024 x 384 float32 are 1.5 MiB and stay in cache
_FLOAT_SLACK = 1.0 + 2.0**-20  # float32 rounding of x / s and of the decoded product
_ROUNDING = 2.0**-20  # of |psi|^2 and of a rotated row in float32, relative to |psi|


@dataclass(frozen=True, slots=True)
class Code:
    """How rows of amplitudes are coded.

    `rotated` is None for the code's own way: lloyd2 and sign1 are rotated, the others not. `group` amplitudes share a
    scale on a grid; the projected codes have one scale a row.

    Raises:
        InvalidState: no such code, a rotated float32 (which would only lose), or a group that cannot be packed.
    """

    name: CodeName = "int4"
    rotated: bool | None = None
    group: int = 64

    def __post_init__(self) -> None:
        if self.name not in CODES:
            raise InvalidState("code", f"be one of {', '.join(CODES)}", f"is {self.name!r:.40}")
        if self.group < 1 or (_BITS_OF[self.name] == 4 and self.group % 2):
            raise InvalidState("group", "be positive, and even at 4 bits", f"is {self.group}")
        if self.rotated is None:
            object.__setattr__(self, "rotated", self.name in ("lloyd2", "sign1"))
        if self.rotated and self.name == "float32":
            raise InvalidState("rotated", "be false for float32, which keeps rows as they are", "is true")

    @classmethod
    def of_bits(cls, bits: int, group: int = 64) -> Code:
        """The code that memories and journals hold at 32, 8, 4, 2 or 1 bits."""
        if bits not in _OF_BITS:
            raise InvalidState("bits", f"be one of {BITS}", f"is {bits}")
        return cls(_OF_BITS[bits], None, group)

    @property
    def bits(self) -> int:
        """Bits of one amplitude's code."""
        return _BITS_OF[self.name]

    @property
    def label(self) -> str:
        """The name, with `+rotation` where it is not the code's own way to rotate."""
        return f"{self.name}+rotation" if self.rotated and self.name in ("int8", "int4", "nf4") else self.name

    def shared(self, d: int) -> int:
        """How many of d amplitudes share a scale: `group`, or the whole row (even, as at 4 bits) where that is less."""
        return min(self.group, d + d % 2)

    def row_bytes(self, d: int) -> int:
        """Bytes of one coded row."""
        if d < 1:
            raise InvalidState("d", "be at least 1", f"is {d}")
        if self.name == "float32":
            return 4 * d
        if self.name == "lloyd2" or self.name == "sign1":
            return projected.code_bytes(d, self.name) + 2
        return grids.code_bytes(d, self.name) + 2 * grids.num_groups(d, self.shared(d))

    def encode(self, x: Array) -> NDArray[np.uint8]:
        """Code rows of real amplitudes (n, d): (n, row_bytes(d)). A row's bytes do not depend on the rows beside it.

        Raises:
            InvalidState: the shape is not (n, d), or a value is not finite or too large for a float16 scale.
        """
        values = _rows_of("x", x)
        n, d = values.shape
        out = np.empty((n, self.row_bytes(d)), np.uint8)
        if not np.isfinite(values).all():
            raise InvalidState("x", "be finite", "holds NaN or infinity")
        for start in range(0, n, _CHUNK):
            piece = slice(start, start + _CHUNK)
            out[piece] = self._encoded(values[piece])
        return out

    def decode(self, rows: NDArray[np.uint8], d: int) -> NDArray[np.float32]:
        """The decoded amplitudes, (n, d) float32, not of unit norm.

        Raises:
            InvalidState: `rows` are not rows of this code.
        """
        rows = self._checked(rows, d)
        if not self.rotated:
            return self._stored(rows, d)
        out = np.empty((len(rows), d), np.float32)
        for start in range(0, len(rows), _CHUNK):
            piece = slice(start, start + _CHUNK)
            out[piece] = unrotate(self._stored(rows[piece], d))
        return out

    def scan(self, rows: NDArray[np.uint8], queries: Array, d: int, chunk: int = _CHUNK) -> NDArray[np.float32]:
        """<q|psi'> of every query (m, d) with every row: (m, n) float32, without decoding the memory at once.

        `chunk` rows are unpacked at a time where the compiled kernels are missing.

        Raises:
            InvalidState: the rows are not of this code, or the queries are not (m, d).
        """
        rows = self._checked(rows, d)
        asked = _rows_of("queries", queries)
        if asked.shape[1] != d:
            raise InvalidState("queries", f"have shape (m, {d})", f"has {tuple(asked.shape)}")
        if native.is_here:
            asked = native.rotate(asked) if self.rotated else asked
            return native.overlaps(native.Layout(self.name, d, self.shared(d)), rows, asked)
        q = torch.from_numpy(_writable(rotate(asked).astype(np.float32) if self.rotated else asked))
        out = np.empty((len(q), len(rows)), np.float32)
        if not out.size:
            return out
        chunk = min(chunk, len(rows))
        scanner = grids.GridScan(q, d, self.name, self.shared(d), chunk) if _is_grid(self.name) else None
        for start in range(0, len(rows), chunk):
            piece = slice(start, start + chunk)
            out[:, piece] = self._dots(q, rows[piece], d) if scanner is None else scanner(rows[piece]).numpy()
        return out

    def bound(self, rows: NDArray[np.uint8], d: int) -> NDArray[np.float64]:
        """The guaranteed infidelity and squared distance of unit states, (n,), from the rows alone; 0 at float32."""
        return self._guaranteed(self._checked(rows, d), d, np.ones(len(rows)))

    def joint_bound(self, rows: NDArray[np.uint8], d: int) -> float:
        """The guaranteed infidelity of rows that together are one unit vector, such as a factor of trace 1.

        Float32 rounding of the vector itself is included, so at float32 it is small, not 0.
        """
        rows = self._checked(rows, d)
        if self.name == "lloyd2" or self.name == "sign1":
            return max(1.0 + _ROUNDING - float(projected.length(rows, d, self.name).sum()), _ROUNDING)
        total = 0.0 if self.name == "float32" else float(self._guaranteed(rows, d, np.zeros(len(rows))).sum())
        return float((total**0.5 + _ROUNDING) ** 2)

    def loss(self, x: Array, rows: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure what coding `x` (n, d), of any norm but zero, lost.

        Returns:
            The fidelity of each coded state, F = <x|x'>^2 / (<x|x> <x'|x'>), and the guaranteed bound on 1 - F when
            <x|x> is known, at most 1. A row that decodes to zero has fidelity 0.

        Raises:
            InvalidState: shapes differ, or a row of `x` is zero.
        """
        exact = _rows_of("x", x).astype(np.float64)
        if len(exact) != len(rows):
            raise InvalidState("rows", f"have {len(exact)} rows", f"has {len(rows)}")
        coded = self.decode(rows, exact.shape[1]).astype(np.float64)
        norm = np.einsum("nd,nd->n", exact, exact)
        if len(norm) and norm.min() <= 0:
            raise InvalidState("x", "have no zero row", f"row {int(norm.argmin())} is zero")
        overlap = np.einsum("nd,nd->n", exact, coded) ** 2
        length = norm * np.einsum("nd,nd->n", coded, coded)
        fidelity = np.divide(overlap, length, out=np.zeros_like(norm), where=length > 0)
        guaranteed = self._guaranteed(rows, exact.shape[1], norm) / norm
        return np.minimum(fidelity, 1.0), np.minimum(guaranteed, 1.0)

    # ------------------------------------------------------------------------------------------------ how it is done
    def _encoded(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        if self.name == "float32":
            return values.astype("<f4").view(np.uint8).reshape(len(values), -1)
        if self.name == "lloyd2" or self.name == "sign1":
            return projected.encode(rotate(values) if self.rotated else values.astype(np.float64), self.name)
        x = rotate(values).astype(np.float32) if self.rotated else values
        return grids.encode(x, self.name, self.shared(x.shape[1]))

    def _stored(self, rows: NDArray[np.uint8], d: int) -> NDArray[np.float32]:
        """Decoded amplitudes in the basis in which they are stored."""
        if self.name == "float32":
            return np.ascontiguousarray(rows).view("<f4").astype(np.float32)
        if self.name == "lloyd2" or self.name == "sign1":
            return projected.decode(rows, d, self.name)
        return grids.decode(rows, d, self.name, self.shared(d))

    def _dots(self, q: Tensor, rows: NDArray[np.uint8], d: int) -> NDArray[np.float32]:
        if self.name == "lloyd2" or self.name == "sign1":
            dots = (q @ torch.from_numpy(projected.pattern(rows, d, self.name)).T).numpy()
            scaled: NDArray[np.float32] = dots * projected.scales(rows)
            return scaled
        raw: NDArray[np.float32] = (q @ torch.from_numpy(_writable(self._stored(rows, d))).T).numpy()
        return raw

    def _guaranteed(self, rows: NDArray[np.uint8], d: int, norm2: NDArray[np.float64]) -> NDArray[np.float64]:
        """The most that ||x - x'||^2 can be, and ||x||^2 times the infidelity, for rows with ||x||^2 = `norm2`."""
        if self.name == "float32":
            return np.zeros(len(rows))
        if self.name == "lloyd2" or self.name == "sign1":
            lost = norm2 * (1 + _ROUNDING) - projected.length(rows, d, self.name)
            return np.maximum(lost, norm2 * _ROUNDING)
        total = grids.cells(rows, d, self.name, self.shared(d)) * _FLOAT_SLACK
        if not self.rotated:
            return total
        moved: NDArray[np.float64] = (np.sqrt(total) + _ROUNDING * np.sqrt(norm2)) ** 2
        return moved

    def _checked(self, rows: NDArray[np.uint8], d: int) -> NDArray[np.uint8]:
        need = self.row_bytes(d)
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != need:
            raise InvalidState("rows", f"be uint8 of shape (n, {need})", f"is {rows.dtype} of shape {rows.shape}")
        return rows


@dataclass(frozen=True, slots=True)
class Loss:
    """What one code does to a batch of kets: bytes of a row, infidelity 1 - F, trace distance sqrt(1 - F), the bound.

    `bound_*` are guaranteed: never below what was measured.
    """

    code: Code
    bytes: int
    infidelity_mean: float
    infidelity_max: float
    trace_distance_mean: float
    trace_distance_max: float
    bound_mean: float
    bound_max: float


def table(x: Array, codes: tuple[Code, ...] | None = None, group: int = 64) -> list[Loss]:
    """What every code costs for the kets `x` (n, d), real or complex, n >= 1, of any norm but zero.

    Complex kets are coded as their real and imaginary halves, d twice; the fidelity is that of the complex kets.

    Raises:
        InvalidState: not (n, d), no row, a value that is not finite, or a zero row.
    """
    exact = x.detach().cpu().resolve_conj().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if exact.ndim != 2 or not len(exact):
        raise InvalidState("x", "have shape (n, d) with n >= 1", f"has {exact.shape}")
    wide = exact.astype(np.complex128 if np.iscomplexobj(exact) else np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(norm).all():
        raise InvalidState("x", "be finite", "holds NaN or infinity")
    if norm.min() <= 0:
        raise InvalidState("x", "have no zero row", f"row {int(norm.argmin())} is zero")
    wide = wide / norm
    real = np.concatenate((wide.real, wide.imag), 1) if np.iscomplexobj(wide) else wide
    return [_row(code, wide, real.astype(np.float32)) for code in codes or all_codes(group)]


def all_codes(group: int = 64) -> tuple[Code, ...]:
    """Every code, and the rotated version of those that are not rotated by themselves."""
    grid: tuple[CodeName, ...] = ("int8", "int4", "nf4")
    both = tuple(Code(name, rotated, group) for name in grid for rotated in (False, True))
    return (Code("float32", None, group), *both, Code("lloyd2", None, group), Code("sign1", None, group))


def _row(code: Code, exact: NDArray[np.inexact], real: NDArray[np.float32]) -> Loss:
    rows = code.encode(real)
    d = real.shape[1]
    decoded = code.decode(rows, d).astype(np.float64)
    coded = decoded[:, : d // 2] + 1j * decoded[:, d // 2 :] if np.iscomplexobj(exact) else decoded
    length = np.einsum("nd,nd->n", coded.conj(), coded).real
    overlap = np.abs(np.einsum("nd,nd->n", exact.conj(), coded)) ** 2
    fidelity = np.divide(overlap, length, out=np.zeros(len(exact)), where=length > 0)
    lost = np.maximum(1.0 - fidelity, 0.0)
    distance = np.sqrt(lost)
    guaranteed = np.minimum((np.sqrt(code.bound(rows, d)) + _ROUNDING) ** 2, 1.0)  # `real` is rounded to float32
    return Loss(
        code=code,
        bytes=code.row_bytes(d),
        infidelity_mean=float(lost.mean()),
        infidelity_max=float(lost.max()),
        trace_distance_mean=float(distance.mean()),
        trace_distance_max=float(distance.max()),
        bound_mean=float(guaranteed.mean()),
        bound_max=float(guaranteed.max()),
    )


def row_bytes(d: int, bits: int = 4, group: int = 64) -> int:
    """Bytes of one coded row.

    >>> [row_bytes(384, bits) for bits in (32, 8, 4, 2, 1)]
    [1536, 396, 204, 98, 50]
    """
    return Code.of_bits(bits, group).row_bytes(d)


def encode(x: Array, bits: int = 4, group: int = 64) -> NDArray[np.uint8]:
    """Code rows of real amplitudes (n, d): (n, row_bytes(d, bits, group)). See `Code.encode`."""
    return Code.of_bits(bits, group).encode(x)


def decode(rows: NDArray[np.uint8], d: int, bits: int = 4, group: int = 64) -> NDArray[np.float32]:
    """Give the decoded amplitudes, (n, d) float32. See `Code.decode`."""
    return Code.of_bits(bits, group).decode(rows, d)


def scan(
    rows: NDArray[np.uint8], queries: Array, d: int, bits: int = 4, group: int = 64, chunk: int = _CHUNK
) -> NDArray[np.float32]:
    """Overlap every query (m, d) with every coded row: (m, n), each within `sqrt(bound(rows))` for unit states.

    Without the compiled kernels, `chunk` rows are unpacked at a time, about `chunk * d` float32.
    """
    return Code.of_bits(bits, group).scan(rows, queries, d, chunk)


def bound(rows: NDArray[np.uint8], d: int, bits: int = 4, group: int = 64) -> NDArray[np.float64]:
    """Give eps_wc^2 per row, (n,): the guaranteed infidelity of a unit state, from the row alone; 0 at 32 bits."""
    return Code.of_bits(bits, group).bound(rows, d)


def loss(
    x: Array, rows: NDArray[np.uint8], bits: int = 4, group: int = 64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure what coding lost: fidelity, and the guaranteed bound on 1 - F, each (n,). See `Code.loss`."""
    return Code.of_bits(bits, group).loss(x, rows)


def _is_grid(name: CodeName) -> TypeGuard[grids.GridName]:
    return name in ("int8", "int4", "nf4")


def _rows_of(name: str, x: Array) -> NDArray[np.float32]:
    if np.iscomplexobj(x) or (isinstance(x, Tensor) and x.is_complex()):
        raise InvalidState(name, "be real", "is complex")
    values = x.detach().to("cpu", torch.float32).numpy() if isinstance(x, Tensor) else np.asarray(x, np.float32)
    if values.ndim != 2:
        raise InvalidState(name, "have shape (n, d)", f"has {values.shape}")
    return values


def _writable(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x if x.flags.writeable else x.copy()  # torch warns about read-only memory, e.g. from Ray's object store
