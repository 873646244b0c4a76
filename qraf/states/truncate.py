"""States of fewer directions, with what that moved: truncation to a rank or a loss, recompression of what was merged.

Let rho have eigenvalues w_1 >= w_2 >= ... and let rho' be its first k directions, scaled back to trace 1. With
eps = sum_{i > k} w_i, the two commute, so both distances are exact:

    T(rho, rho') = eps,      F(rho, rho') = 1 - eps

and no state of rank k is nearer in trace distance (Eckart, Young, Mirsky for the trace norm). Certificates carry
along: when rho itself is within T_0 of what it stands for, rho' is within T_0 + eps (triangle inequality); and of a
mixture, within sum_i p_i T_i + eps (convexity). Sketches have their own certificate, which a merge carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_factor, check_finite, check_weights, eigenvalue_cut
from qraf.states.measures import factor_of
from qraf.states.sketch import Sketch
from qraf.states.state import principal_rows

__all__ = ["Truncation", "recompress_sketch", "truncate", "truncate_mixture", "truncate_state"]

_LARGE = 512


@dataclass(frozen=True, slots=True, eq=False)
class Truncation:
    """A state with fewer directions and what became of it.

    Attributes:
        factor: L' (..., k, d) of trace 1, orthogonal rows from the largest eigenvalue down; k is the largest rank in
            the batch, and lower ones end in zero rows.
        rank: how many rows are in use, (...).
        before: the eigenvalues that came in, falling, (..., n) with n = min(r, d).
        after: those of the result, falling, (..., k).
        moved: the trace distance between the two states; the fidelity is 1 - moved: (...).
        bound: what lay between the given state and the true one before, plus `moved`: (...).
    """

    factor: Tensor
    rank: Tensor
    before: Tensor
    after: Tensor
    moved: Tensor
    bound: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the factor held."""
        return self.factor.nbytes


def truncate(
    factor: Tensor, rank: int | None = None, loss: float | None = None, carried: float | Tensor = 0.0
) -> Truncation:
    """Keep the largest eigenvalues of rho = L^H L: `rank` of them, or the fewest that lose at most `loss` of the trace.

    Args:
        factor: L, (..., r, d), of trace 1 to rounding; its exact trace is divided out.
        rank: most directions, 1 or more.
        loss: most of the trace to lose, in [0, 1); with 0, only what is rounding goes (below d eps w_max).
        carried: how far, in trace distance, the given state may already be from the one it stands for.

    Raises:
        InvalidState: not exactly one of `rank` and `loss`, one outside its range, or a factor that is empty, not finite
            or zero.

    >>> half = truncate(torch.diag(torch.tensor([0.9, 0.1], dtype=torch.float64).sqrt()), rank=1)
    >>> round(float(half.moved), 12), half.after.tolist()
    (0.1, [1.0])
    """
    _check_wish(rank, loss)
    check_finite(check_factor(factor), "factor")
    if not factor.shape[-2]:
        raise InvalidState("factor", "have at least one row", f"has {tuple(factor.shape)}")
    values, directions = _principal(factor)
    total = values.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        raise InvalidState("factor", "have a trace above 0", "is zero")
    values = values / total
    alive = values > eigenvalue_cut(values)
    if rank is not None:
        alive = alive & (torch.arange(values.shape[-1], device=values.device) < min(rank, values.shape[-1]))
    elif loss:
        # the k-th goes when everything from it on weighs no more than the loss
        tail = values.flip(-1).cumsum(-1).flip(-1)
        alive = alive & (tail > loss)
        alive[..., 0] = True
    kept = torch.where(alive, values, torch.zeros_like(values))
    share = kept.sum(-1, keepdim=True)
    k = int(alive.sum(-1).max()) if alive.numel() else 1
    after = (kept / share)[..., :k]
    moved = torch.where(alive, torch.zeros_like(values), values).sum(-1)
    return Truncation(
        factor=after.sqrt()[..., :, None] * directions[..., :k, :],
        rank=alive.sum(-1),
        before=values,
        after=after,
        moved=moved,
        bound=(moved + carried).clamp(max=1),
    )


def truncate_state(
    rho: Tensor, rank: int | None = None, loss: float | None = None, carried: float | Tensor = 0.0
) -> Truncation:
    """Truncate dense states (..., d, d); see `truncate`. What rho has of negative eigenvalues counts as zero."""
    _check_wish(rank, loss)
    return truncate(factor_of(check_finite(rho, "rho")), rank, loss, carried)


def truncate_mixture(
    factors: Sequence[Tensor],
    weights: Tensor,
    rank: int | None = None,
    loss: float | None = None,
    carried: Sequence[float] | None = None,
) -> Truncation:
    """Mix states rho = sum_i p_i L_i^H L_i and keep fewer directions than all of theirs together.

    Args:
        factors: L_i, (r_i, d) each, of one d and dtype, of trace 1.
        weights: p_i, (n,), at least 0 with sum 1.
        rank: as of `truncate`.
        loss: as of `truncate`.
        carried: how far each may be from the state it stands for; 0 each when left out.

    Raises:
        InvalidState: as of `truncate`, or counts, dimensions or dtypes differ.
    """
    _check_wish(rank, loss)
    if not factors:
        raise InvalidState("factors", "hold at least one factor", "is empty")
    p = check_weights(weights, len(factors))
    first = factors[0]
    for factor in factors:
        if check_factor(factor).ndim != 2 or factor.shape[-1] != first.shape[-1] or factor.dtype != first.dtype:
            raise InvalidState("factors", "have shape (r_i, d) of one d and one dtype", f"has {tuple(factor.shape)}")
    losses = torch.zeros(len(factors), dtype=p.dtype) if carried is None else torch.tensor(carried, dtype=p.dtype)
    if losses.shape != p.shape or bool((losses < 0).any()):
        raise InvalidState("carried", f"be {len(factors)} numbers of at least 0", f"is {carried}")
    stack = torch.cat([weight.sqrt() * factor for weight, factor in zip(p.to(first.real.dtype), factors, strict=True)])
    return truncate(stack, rank, loss, float(p @ losses))


def recompress_sketch(sketch: Sketch, rank: int, dtype: str | None = None) -> Sketch:
    """Give a sketch of the same stream with at most `rank` rows, certificates carried along; the given one stays.

    Nothing more will be folded in this step, so the kept directions are hardly shrunk: the certified loss in any
    direction is the old one plus the largest eigenvalue cut, and more of the trace stays.

    Raises:
        InvalidState: `rank` is below 1, or the dtype does not exist.
    """
    smaller = Sketch(sketch.dim, rank, 1 / max(rank, 1), dtype or sketch.dtype)
    smaller.merge(sketch)
    smaller.alpha = sketch.alpha
    return smaller


def _principal(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of L^H L, falling (..., k), and their directions (..., k, d)."""
    if min(factor.shape[-2:]) < _LARGE:
        _, roots, directions = torch.linalg.svd(factor, full_matrices=False)
        return roots.square(), directions
    rows, values = principal_rows(factor)  # a large one may fall apart into blocks, which an SVD would not see
    return values, rows / values.sqrt().clamp(min=torch.finfo(values.dtype).tiny)[..., :, None]


def _check_wish(rank: int | None, loss: float | None) -> None:
    if (rank is None) == (loss is None):
        raise InvalidState("rank, loss", "be given one of the two", "are both given" if rank else "are both left out")
    if rank is not None and rank < 1:
        raise InvalidState("rank", "be at least 1", f"is {rank}")
    if loss is not None and not 0 <= loss < 1:
        raise InvalidState("loss", "be in [0, 1)", f"is {loss}")
