"""Parts of a vector space: put chosen subsystems in front, act on them, put them back; fold grown factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import eigenvalue_cut
from qraf.states.state import principal_rows

__all__ = ["apply_operator", "check_on", "fold", "join", "split", "stack"]

_FEW = 256  # rows that are not worth a fold


def split(rows: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """Vectors (..., d) as (..., m, rest), m the product of the subsystems `on`, in their order."""
    lead = rows.ndim - 1
    apart = rows.reshape(*rows.shape[:-1], *dims)
    front = apart.movedim([lead + index for index in on], list(range(lead, lead + len(on))))
    m = math.prod(dims[index] for index in on)
    return front.reshape(*rows.shape[:-1], m, math.prod(dims) // m)


def join(parts: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """The inverse of `split`: (..., m, rest) as (..., d)."""
    lead = parts.ndim - 2
    rest = [size for index, size in enumerate(dims) if index not in on]
    apart = parts.reshape(*parts.shape[:-2], *(dims[index] for index in on), *rest)
    back = apart.movedim(list(range(lead, lead + len(on))), [lead + index for index in on])
    return back.reshape(*parts.shape[:-2], math.prod(dims))


def apply_operator(kets: Tensor, operator: Tensor, dims: Sequence[int], on: Sequence[int]) -> Tensor:
    """Multiply vectors (..., d) by an operator (m, m) on the subsystems `on`; a factor takes its conjugate."""
    dtype = torch.promote_types(kets.dtype, operator.dtype)
    parts = split(kets.to(dtype), dims, on)
    return join(torch.einsum("ij,...jb->...ib", operator.to(kets.device, dtype), parts), dims, on)


def check_on(on: Sequence[int], dims: Sequence[int], name: str = "on") -> tuple[int, ...]:
    """Let the indices of one subsystem or more pass, each named once."""
    chosen = tuple(on)
    if not chosen or len(set(chosen)) != len(chosen) or any(not 0 <= index < len(dims) for index in chosen):
        raise InvalidState(name, f"name some of the subsystems 0 to {len(dims) - 1}, once each", f"is {chosen}")
    return chosen


def fold(factor: Tensor) -> Tensor:
    """Bring factors (..., r, d) to the largest numerical rank in the batch, principal rows first."""
    if factor.shape[-2] == 1:
        return factor
    rows, values = principal_rows(factor)
    rank = max(1, int((values > eigenvalue_cut(values)).sum(-1).max())) if values.numel() else 1
    return rows[..., :rank, :]


def stack(pieces: Iterable[Tensor]) -> Tensor:
    """Stack factors (..., r, d) of the terms of a sum, folding on the way, so that the rows stay few."""
    grown: Tensor | None = None
    limit = _FEW
    for piece in pieces:
        if grown is None:
            grown = piece
            continue
        dtype = torch.promote_types(grown.dtype, piece.dtype)
        grown = torch.cat((grown.to(dtype), piece.to(dtype)), -2)
        if grown.shape[-2] > limit:
            grown = fold(grown)
            limit = _FEW + 2 * grown.shape[-2]
    assert grown is not None
    return grown
