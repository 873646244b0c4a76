"""An exact orthogonal rotation that spreads outliers: random signs, then a Hadamard transform.

    R = H D / sqrt(m),      H H^T = m I,      D = diag(+-1) fixed by m and the block's place alone

H exists exactly, without padding, for m = 2^k (Sylvester 1867) and m = 12 x 2^k (H_12 of Paley 1933, Kronecker H_2^k):
384 = 12 x 32. Another dimension is cut into blocks of these sizes, each time the largest that fits; a block of size 1
is only a sign. After R every amplitude is a signed mean of its whole block, nearly Gaussian whatever the input was
(Ailon & Chazelle 2009; Ashkboos et al. 2024, QuaRot), so one scale serves all.

Every value is made by additions in a fixed order, one row like the next: a row's result does not depend on the rows
beside it, bit for bit. Signs come from SHAKE-128, because stored codes must be readable for ever.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import shake_128
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = ["blocks", "matrix", "parts", "rotate", "unrotate"]


@lru_cache(maxsize=64)
def blocks(d: int) -> tuple[int, ...]:
    """The sizes of the exact Hadamard blocks that make up `d`, largest first.

    >>> blocks(384), blocks(512), blocks(100)
    ((384,), (512,), (96, 4))
    """
    if d < 1:
        raise InvalidState("d", "be at least 1", f"is {d}")
    sizes: list[int] = []
    while d:
        size = 1 << (d.bit_length() - 1)
        if d >= 12:
            size = max(size, 12 << ((d // 12).bit_length() - 1))
        sizes.append(size)
        d -= size
    return tuple(sizes)


def rotate(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """R x for rows (n, d), computed in float64: (n, d)."""
    return _apply(x, inverse=False)


def unrotate(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """R^T x = R^-1 x for rows (n, d), computed in float64: (n, d)."""
    return _apply(x, inverse=True)


@lru_cache(maxsize=8)
def matrix(d: int) -> NDArray[np.float64]:
    """The rotation as a dense (d, d) array, read-only, for who fuses it into a product: R x = x @ R.T on rows."""
    dense = np.ascontiguousarray(rotate(np.eye(d)).T)
    dense.flags.writeable = False
    return dense


def parts(d: int) -> tuple[tuple[int, ...], NDArray[np.float64], NDArray[np.int8]]:
    """What R is made of, for those who apply it in their own way: `blocks`, the signs (d,), Paley's H_12."""
    sizes = blocks(d)
    starts = np.cumsum((0, *sizes[:-1]))
    signs = np.concatenate([_signs(size, int(start)) for size, start in zip(sizes, starts, strict=True)])
    return sizes, signs, _paley12()


def _apply(x: NDArray[np.floating[Any]], inverse: bool) -> NDArray[np.float64]:
    if x.ndim != 2:
        raise InvalidState("x", "have shape (n, d)", f"has {x.shape}")
    out = np.array(x.T, np.float64, order="C")  # (d, n): every step below then runs over whole columns
    start = 0
    for size in blocks(x.shape[1]):
        block = out[start : start + size]
        signs = _signs(size, start)[:, None]
        if not inverse:
            block *= signs
        _transform(block, inverse)
        if inverse:
            block *= signs
        start += size
    return np.ascontiguousarray(out.T)


def _transform(block: NDArray[np.float64], inverse: bool) -> None:
    """H x / sqrt(m), or H^T x / sqrt(m), in place, for columns (m, n). Sylvester's factors are symmetric."""
    m, n = block.shape
    width = m // 12 if m % 12 == 0 else m
    step = 1
    while step < width:
        pairs = block.reshape(m // (2 * step), 2, step, n)
        low, high = pairs[:, 0], pairs[:, 1]
        total = low + high
        np.subtract(low, high, out=high)
        low[...] = total
        step *= 2
    if width < m:
        parts = block.reshape(12, width, n)
        paley = _paley12().T if inverse else _paley12()
        mixed = np.zeros_like(parts)
        for row in range(12):
            for column in range(12):
                (np.add if paley[row, column] > 0 else np.subtract)(mixed[row], parts[column], out=mixed[row])
        parts[...] = mixed
    block *= 1.0 / np.sqrt(m)


@lru_cache(maxsize=1)
def _paley12() -> NDArray[np.int8]:
    """H_12 = I + [[0, 1], [-1, Q]] with Q_ij = chi(i - j) over the field of 11 elements; 11 = 3 mod 4."""
    residues = {value * value % 11 for value in range(1, 11)}
    out = np.ones((12, 12), np.int8)
    out[1:, 0] = -1
    for i in range(11):
        for j in range(11):
            out[1 + i, 1 + j] = 1 if i == j or (i - j) % 11 in residues else -1
    return out


@lru_cache(maxsize=64)
def _signs(size: int, start: int) -> NDArray[np.float64]:
    raw = np.frombuffer(shake_128(f"qraf rotation {size} at {start}".encode()).digest(-(-size // 8)), np.uint8)
    return 1.0 - 2.0 * np.unpackbits(raw, bitorder="little")[:size].astype(np.float64)
