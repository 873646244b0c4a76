"""The C kernels behind a handful of functions; `is_here` says whether they were built and can be loaded.

The extension is optional: where there was no compiler on installation, callers fall back to NumPy and torch. Every
function lets go of the interpreter's lock while it runs, and keeps no state. `level` 0, 1, 2 asks for the portable,
AVX2 or AVX-512 kernels; None, and whatever the processor lacks, is the best that there is.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qraf.states.grids import NF4_LEVELS
from qraf.states.projected import LLOYD2_LEVELS
from qraf.states.rotation import parts

__all__ = ["BLOCK", "LEVELS", "STEP", "Asked", "Layout", "Shortlist", "ask", "best_level", "is_here", "overlaps"]
__all__ += ["rank", "rotate", "shortlist"]

LEVELS = ("portable", "avx2", "avx512")
BLOCK, STEP = 16, 16  # rows side by side, and amplitudes in one 32-bit word, of the coarse code
_FEW = 8  # queries up to which a row is read where it lies; with more, a matrix product over widened rows wins
_CHUNK = 1024  # rows widened at a time: 1.5 MiB at d = 384
_KINDS = {"float32": 32, "int8": 8, "int4": 4, "nf4": 5, "lloyd2": 2, "sign1": 1}
_TABLES = {"nf4": NF4_LEVELS, "lloyd2": LLOYD2_LEVELS, "sign1": np.array((-1, 1), np.float32)}
_INTERFACE = 4  # `qraf_interface` in _rows.c
_TYPES = {"i": ctypes.c_int32, "l": ctypes.c_int64, "p": ctypes.c_void_p, "-": None}
_SIGNATURES = {  # what it gives, what it takes
    "level": "i",
    "prepared": "l iii",
    "prepare": "- iii plp",
    "dots": "- i iiip pll pl p",
    "wide": "- i iiip pll p",
    "rank": "i i iiip pll pl plp i ppp",
    "coarse": "i i ppli ppl ii pppp",
    "rotate": "i pli ippp p",
    "round": "- pli i pppp",
}
_log = logging.getLogger(__name__)


def _load() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_scan{suffix}")
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            _log.warning("the compiled scan cannot be loaded, NumPy scans instead: %s", error)
            return None
        if library.qraf_interface() != _INTERFACE:
            _log.warning("the compiled scan is from other sources, NumPy scans instead: install again")
            return None
        for name, signature in _SIGNATURES.items():
            function, letters = library[f"qraf_{name}"], signature.replace(" ", "")
            types: list[Any] = [_TYPES[letter] for letter in letters]
            function.restype, function.argtypes = types[0], types[1:]
            setattr(library, name, function)
        return library
    _log.info("the compiled scan is not there, NumPy scans instead")
    return None


_library = _load()
is_here = _library is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """The bytes of a row: a code of `qraf.states.quantize` by name, amplitudes, amplitudes that share a scale."""

    name: str
    d: int
    group: int

    @property
    def code(self) -> tuple[int, int, int]:
        """What lays out a query."""
        return _KINDS[self.name], self.d, self.group

    @property
    def levels(self) -> int | None:
        """Where the code's table of levels is, if it has one."""
        return _at(_TABLES[self.name]) if self.name in _TABLES else None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Queries as the coarse scan reads them.

    Attributes:
        codes: rotated and rounded, int8 (m, STEP * steps).
        unit: what 1 is worth, (m,).
        lift: the sum of a query's codes, (m,).
        away: the length of what rounding took off, (m,).
    """

    codes: NDArray[np.int8]
    unit: NDArray[np.float32]
    lift: NDArray[np.int32]
    away: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shortlist:
    """The rows of largest coarse overlap for each query, in no order.

    Attributes:
        index: (m, room); the first `count` of them count.
        count: (m,).
        floor: (m,), in the queries' units; no other row's coarse overlap is above it; -inf when there is no other.
    """

    index: NDArray[np.int32]
    count: NDArray[np.int32]
    floor: NDArray[np.float32]


@lru_cache(maxsize=1)
def best_level() -> int:
    """The best kernels that this processor runs: an index into `LEVELS`."""
    return int(_kernels().level())


def overlaps(
    layout: Layout, rows: NDArray[np.uint8], queries: NDArray[np.float32], level: int | None = None
) -> NDArray[np.float32]:
    """<q|psi'> of queries (m, d) with coded rows (n, row_bytes), both in the basis in which rows are stored: (m, n)."""
    rows, asked = _with_tight_rows(rows), _prepared(layout, queries)
    m, n, stride = len(queries), len(rows), rows.strides[0]
    head = (_level(level), *layout.code, layout.levels)
    out = np.empty((m, n), np.float32)
    if not out.size:
        return out
    if m <= _FEW:
        _kernels().dots(*head, _at(rows), n, stride, _at(asked), m, _at(out))
        return out
    wide = np.empty((min(_CHUNK, n), asked.shape[1]), np.float32)
    q, scratch, result = torch.from_numpy(asked), torch.from_numpy(wide), torch.from_numpy(out)
    for start in range(0, n, _CHUNK):
        piece = rows[start : start + _CHUNK]
        _kernels().wide(*head, _at(piece), len(piece), stride, _at(wide))
        result[:, start : start + len(piece)] = q @ scratch[: len(piece)].T
    return out


def rotate(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """R q for queries (m, d): what `qraf.states.rotation.rotate` gives, rounded to float32."""
    queries = np.ascontiguousarray(queries, np.float32)
    m, d = queries.shape
    sizes, signs, paley = _rotation(d)
    out = np.empty((m, d), np.float32)
    if _kernels().rotate(_at(queries), m, d, len(sizes), _at(sizes), _at(signs), _at(paley), _at(out)):
        raise MemoryError
    return out


def ask(rotated: NDArray[np.float32]) -> Asked:
    """Round rotated queries (m, d) to 8 bits."""
    rotated = np.ascontiguousarray(rotated, np.float32)
    m, d = rotated.shape
    steps = -(-d // STEP)
    codes, unit = np.empty((m, STEP * steps), np.int8), np.empty(m, np.float32)
    lift, away = np.empty(m, np.int32), np.empty(m)
    _kernels().round(_at(rotated), m, d, steps, _at(codes), _at(unit), _at(lift), _at(away))
    return Asked(codes, unit, lift, away)


def shortlist(
    codes: NDArray[np.uint8], rise: NDArray[np.float32], asked: Asked, keep: int, level: int | None = None
) -> Shortlist:
    """Find the `keep` rows of largest coarse overlap for each query.

    Args:
        codes: (blocks, steps, BLOCK, 4) as `qraf.states.kernels.coarse` packs them.
        rise: (n,), brings the sum of a row back to an overlap; n rows are read, the rest of the last block is not.
        asked: the queries.
        keep: at least 1.
        level: see above.
    """
    m, n, steps = len(asked.codes), len(rise), codes.shape[1]
    if not (codes.flags.c_contiguous and codes.shape[2:] == (BLOCK, 4) and len(codes) * BLOCK >= n):
        raise ValueError(f"coarse codes {codes.shape} do not hold {n} rows")
    if asked.codes.shape[1] != STEP * steps or rise.dtype != np.float32 or not rise.flags.c_contiguous or keep < 1:
        raise ValueError("queries must have the codes' length, rise be float32, keep positive")
    room = 4 * keep + 4 * BLOCK
    score, index = np.empty((m, room), np.float32), np.empty((m, room), np.int32)
    count, floor = np.empty(m, np.int32), np.empty(m, np.float32)
    data = (_at(codes), _at(rise), n, steps, _at(asked.codes), _at(asked.lift), m)
    answer = (_at(score), _at(index), _at(count), _at(floor))
    if _kernels().coarse(_level(level), *data, keep, room, *answer):
        raise MemoryError
    return Shortlist(index, count, floor)


def rank(
    layout: Layout,
    rows: NDArray[np.uint8],
    queries: NDArray[np.float32],
    candidates: NDArray[np.int32],
    count: NDArray[np.int32],
    k: int,
    level: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """Score the first `count` (m,) of candidates (m, room) exactly, at least `k` for each query.

    Returns:
        Rows (m, k) and scores (m, k), largest first, equal scores in the order of their rows; and the best score of
        the other candidates (m,), -inf when there is none.
    """
    rows, asked, m = _with_tight_rows(rows), _prepared(layout, queries), len(queries)
    candidates, count = np.ascontiguousarray(candidates, np.int32), np.ascontiguousarray(count, np.int32)
    if candidates.ndim != 2 or len(candidates) != m or count.shape != (m,):
        raise ValueError(f"candidates {candidates.shape} and their count {count.shape} are not for {m} queries")
    index, score, rest = np.empty((m, k), np.int64), np.empty((m, k), np.float32), np.empty(m)
    place = (_at(rows), len(rows), rows.strides[0], _at(asked), m)
    listed = (_at(candidates), candidates.shape[1], _at(count))
    head = (_level(level), *layout.code, layout.levels)
    if _kernels().rank(*head, *place, *listed, k, _at(score), _at(index), _at(rest)):
        raise ValueError(f"candidates must be rows, and at least {k} for each query")
    return index, score, rest


def _kernels() -> Any:
    if _library is None:
        raise RuntimeError("the compiled scan is not there")
    return _library


def _level(level: int | None) -> int:
    return best_level() if level is None else min(level, best_level())


def _prepared(layout: Layout, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Queries (m, d), laid out as the kernels over rows read them."""
    queries = np.ascontiguousarray(queries, np.float32)
    out = np.empty((len(queries), _kernels().prepared(*layout.code)), np.float32)
    _kernels().prepare(*layout.code, _at(queries), len(queries), _at(out))
    return out


@lru_cache(maxsize=8)
def _rotation(d: int) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    sizes, signs, paley = parts(d)
    return np.array(sizes, np.int32), signs, paley.astype(np.float64)


def _at(array: NDArray[Any]) -> int:
    address: int = array.ctypes.data
    return address


def _with_tight_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows may lie any distance apart, but the bytes of a row side by side."""
    return rows if rows.shape[1] < 2 or rows.strides[1] == 1 else np.ascontiguousarray(rows)
