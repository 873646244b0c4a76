"""Spectra of Hermitian matrices up to d = 4096: exact reductions first, and what is left is announced before it starts.

A decomposition takes n^3 steps: a tenth of a second at n = 512, a minute or two at n = 4096 on one core, and it cannot
be interrupted. Three things make large ones small, none of them an approximation beyond rounding:

  blocks   a matrix that falls apart into blocks (a noisy GHZ state: pairs; anything dephased: single numbers) is taken
           apart. An element below eps max_i G_ii counts as zero, so the spectrum moves by at most n eps w_max: the cut.
  real     complex numbers without imaginary parts are taken as real ones: a quarter of the work.
  whole    that a matrix has full rank is seen by Cholesky, at a tenth of the price of its eigenvalues.

`foreseen(hook)` names who is told the seconds that a decomposition will take, at the speed of one core, before it is
begun; by raising, the hook refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["announce", "eigh", "eigvalsh", "foreseen", "gram", "has_full_rank", "product"]

Hook = Callable[[float], None]

_hook: ContextVar[Hook | None] = ContextVar("foreseen", default=None)
_SMALL = 512  # below this a matrix is decomposed as it is
_SPARSE = 0.02  # share of numbers that are not zero, below which rows are multiplied as a sparse matrix
# seconds of one core for n^3, measured at n = 2048 (AMD, AVX2): eigenvalues and vectors, then eigenvalues alone
_VECTORS_S, _VALUES_S = {True: 1.5e-9, False: 0.85e-9}, {True: 0.5e-9, False: 0.15e-9}


@contextlib.contextmanager
def foreseen(hook: Hook) -> Iterator[None]:
    """Inside, `hook` is called with the seconds of every large decomposition before it begins."""
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)


def announce(seconds: float) -> None:
    """Tell who listens that work of so many seconds of one core is about to begin."""
    hook = _hook.get()
    if hook is not None:
        hook(seconds)


def gram(rows: Tensor) -> Tensor:
    """L L^H of L (..., r, d): (..., r, r)."""
    return product(rows, rows.mH)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Give left @ right; where `left` is large and has few numbers, as the eigenvectors of blocks, by these alone."""
    if left.ndim == 2 and min(left.shape) >= _SMALL and int(left.count_nonzero()) < _SPARSE * left.numel():
        few: Tensor = torch.sparse.mm(left.resolve_conj().to_sparse(), right.resolve_conj())
        return few
    return left @ right


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As torch.linalg.eigh, for (..., n, n). Diagonal matrices, as after a measurement, are only sorted."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).real
    if matrix.numel() and _is_diagonal(matrix, diagonal):
        values, order = diagonal.sort(-1)
        return values, torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)[order].mT
    if matrix.shape[-1] < _SMALL:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    if matrix.ndim > 2 and matrix.shape[:-2].numel() == 1:
        values, vectors = eigh(matrix.reshape(matrix.shape[-2:]))
        return values.reshape(matrix.shape[:-1]), vectors.reshape(matrix.shape)
    if matrix.ndim > 2:
        pairs = [eigh(one) for one in matrix.flatten(0, -3)]
        values, vectors = (torch.stack(some) for some in zip(*pairs, strict=True))
        return values.reshape(*matrix.shape[:-1]), vectors.reshape(matrix.shape)
    if matrix.is_complex() and not bool(matrix.imag.any()):
        values, vectors = eigh(matrix.real.contiguous())
        return values, vectors.to(matrix.dtype)
    groups = _blocks(matrix)
    if groups is None:
        announce(_VECTORS_S[matrix.is_complex()] * matrix.shape[-1] ** 3)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    values = torch.empty_like(diagonal)
    vectors = torch.zeros_like(matrix)
    start = 0
    for members in groups:
        n = members.numel()
        some, turned = eigh(matrix[members[:, :, None], members[:, None, :]])
        values[start : start + n] = some.flatten()
        places = torch.arange(start, start + n, device=matrix.device).reshape(members.shape)
        vectors[members[:, :, None], places[:, None, :]] = turned
        start += n
    values, order = values.sort()
    return values, vectors[:, order]


def eigvalsh(matrix: Tensor) -> Tensor:
    """As torch.linalg.eigvalsh, for (..., n, n)."""
    n = matrix.shape[-1]
    if n < _SMALL or matrix.ndim > 2:
        small: Tensor = torch.linalg.eigvalsh(matrix)
        return small
    if matrix.is_complex() and not bool(matrix.imag.any()):
        matrix = matrix.real.contiguous()
    groups = _blocks(matrix)
    if groups is None:
        announce(_VALUES_S[matrix.is_complex()] * n**3)
        whole: Tensor = torch.linalg.eigvalsh(matrix)
        return whole
    parts = [_values_of(matrix[members[:, :, None], members[:, None, :]]) for members in groups]
    return torch.cat(parts).sort().values


def has_full_rank(matrix: Tensor, cut: float) -> bool:
    """Whether every eigenvalue of a Hermitian matrix (n, n) is above `cut`, up to rounding; by Cholesky."""
    diagonal = matrix.diagonal().real
    if _is_diagonal(matrix, diagonal):
        return bool((diagonal > cut).all())
    shifted = matrix.clone()
    shifted.diagonal().sub_(cut)
    info: Tensor = torch.linalg.cholesky_ex(shifted).info
    return not bool(info.any())


def _values_of(stack: Tensor) -> Tensor:
    """Give the eigenvalues of blocks (k, m, m) of one size: (k m,)."""
    if stack.shape[-1] == 1:
        return stack.flatten().real
    return torch.cat([eigvalsh(one) for one in stack]) if stack.shape[-1] >= _SMALL else eigvalsh(stack).flatten()


def _is_diagonal(matrix: Tensor, diagonal: Tensor) -> bool:
    off = matrix.abs()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    return bool((off.amax((-2, -1)) <= torch.finfo(diagonal.dtype).eps * diagonal.amax(-1)).all())


def _blocks(matrix: Tensor) -> list[Tensor] | None:
    """The blocks of a matrix (n, n), as indices (k, m) of k blocks of one size m; None where there is but one."""
    n = matrix.shape[-1]
    diagonal = matrix.diagonal().real
    linked = matrix.abs() > torch.finfo(diagonal.dtype).eps * diagonal.abs().amax()
    if int(linked.count_nonzero()) > n * n // 2:  # two blocks have half of it at least, and are not worth the trouble
        return None
    first, second = (part.cpu().numpy() for part in linked.triu().nonzero(as_tuple=True))
    labels = _components(n, first, second)
    _, label, count = np.unique(labels, return_inverse=True, return_counts=True)
    if len(count) == 1:
        return None
    order = np.lexsort((label, count[label]))  # by size, then block by block
    sizes = count[label][order]
    return [
        torch.from_numpy(order[sizes == size].reshape(-1, int(size))).to(matrix.device) for size in np.unique(sizes)
    ]


def _components(n: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest index in the connected component of each of n places: (n,)."""
    labels = np.arange(n)
    while True:
        before = labels.copy()
        np.minimum.at(labels, first, labels[second])
        np.minimum.at(labels, second, labels[first])
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
