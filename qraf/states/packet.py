"""A state as bytes: dims, dtype, version and a checksum go along, and damage is named, never read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidState
from qraf.states.checks import check_dims, check_factor
from qraf.states.density import DensityOperator
from qraf.states.envelope import seal, unseal
from qraf.states.quantize import row_bytes
from qraf.states.sketch import Sketch

__all__ = ["CodedRows", "State", "opened", "pack", "unpack"]

_SPARSE_FROM = 2**16
_NUMBERS_MAX = 2**24  # of a factor of 4096 rows of 4096


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """Coded amplitudes with the code that reads them.

    Raises:
        InvalidState: the rows are not of this code.
    """

    rows: NDArray[np.uint8]
    d: int
    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        need = row_bytes(self.d, self.bits, self.group)
        if self.rows.dtype != np.uint8 or self.rows.ndim != 2 or self.rows.shape[1] != need:
            got = f"is {self.rows.dtype} of shape {self.rows.shape}"
            raise InvalidState("rows", f"be uint8 of shape (n, {need})", got)


State: TypeAlias = "DensityOperator | Tensor | Sketch | CodedRows"


def pack(state: State, dims: Sequence[int] = ()) -> bytes:
    """Put a state into bytes.

    Args:
        state: dense (`DensityOperator`), a factor (Tensor (r, d)), a `Sketch`, or `CodedRows`.
        dims: subsystem sizes of a factor; a dense state carries its own.

    Raises:
        InvalidState: no state, or `dims` that do not multiply to d.
    """
    if isinstance(state, Sketch):
        return state.to_bytes()
    if isinstance(state, CodedRows):
        return seal("coded", {"d": state.d, "bits": state.bits, "group": state.group}, {"rows": state.rows})
    if isinstance(state, DensityOperator):
        return seal("dense", {"dims": list(state.dims)}, {"rho": _array(state.rho)})
    if isinstance(state, Tensor):
        check_factor(state)
        if state.ndim != 2:
            raise InvalidState("factor", "have shape (r, d)", f"has {tuple(state.shape)}")
        sizes = check_dims(tuple(dims) or (state.shape[1],), state.shape[1])
        return _factor_packet(_array(state), sizes)
    raise InvalidState("state", "be a DensityOperator, a factor, a Sketch or CodedRows", f"is a {type(state).__name__}")


def unpack(data: bytes) -> State:
    """Read what `pack` made: the same kind of state, the same numbers, bit for bit.

    Raises:
        InvalidState: damaged, of another version, or no state; the message says which part failed.
    """
    kind, facts, arrays = opened(data)
    if kind == "sketch":
        return Sketch.from_bytes(data)
    try:
        if kind == "coded":
            return CodedRows(arrays["rows"], facts["d"], facts["bits"], facts["group"])
        if kind == "dense":
            return DensityOperator(torch.from_numpy(arrays["rho"]), tuple(facts["dims"]))
        if kind == "factor":
            factor = check_factor(torch.from_numpy(arrays["factor"]))
            check_dims(facts["dims"], factor.shape[-1])
            return factor
    except (KeyError, TypeError) as error:
        raise InvalidState("packet", f"hold every part of a {kind} state", f"lacks {error}") from error
    raise InvalidState("packet", "hold a dense, factor, sketch or coded state", f"holds a {kind}")


def opened(data: bytes) -> tuple[str, dict[str, Any], dict[str, NDArray[Any]]]:
    """Kind, facts and arrays of a packet; of a factor kept sparse, the factor.

    Raises:
        InvalidState: damaged, of another version, or a sparse factor that does not fit its description.
    """
    kind, facts, arrays = unseal(data)
    if kind != "sparse factor":
        return kind, facts, arrays
    try:
        (r, d), mask, values = map(int, facts["shape"]), arrays["mask"], arrays["values"]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidState("packet", "hold every part of a sparse factor", f"lacks {error}") from error
    if not (min(r, d) > 0 and r * d <= _NUMBERS_MAX and mask.dtype == np.uint8 and mask.shape == (-(-r * d // 8),)):
        need = f"have a mask of one bit for each of at most {_NUMBERS_MAX} numbers"
        raise InvalidState("packet", need, f"has shape ({r}, {d}) and a mask of shape {mask.shape}")
    where = np.unpackbits(mask, count=r * d).astype(bool)
    if values.ndim != 1 or len(values) != int(where.sum()):
        raise InvalidState("packet", f"hold {int(where.sum())} values, as its mask says", f"holds {values.shape}")
    factor = np.zeros(r * d, values.dtype)
    factor[where] = values
    return "factor", facts, {"factor": factor.reshape(r, d)}


def _factor_packet(factor: NDArray[Any], sizes: Sequence[int]) -> bytes:
    """A large factor of few numbers, as of a noisy GHZ state, keeps these alone; bit for bit, like any other."""
    if factor.size >= _SPARSE_FROM:
        where = np.ascontiguousarray(factor).view(np.uint8).reshape(factor.size, -1).any(1)  # minus zero is a number
        if where.sum() * 4 < factor.size:
            facts = {"dims": list(sizes), "shape": list(factor.shape)}
            return seal("sparse factor", facts, {"mask": np.packbits(where), "values": factor.reshape(-1)[where]})
    return seal("factor", {"dims": list(sizes)}, {"factor": factor})


def _array(x: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = x.detach().cpu().resolve_conj().numpy()
    return array
