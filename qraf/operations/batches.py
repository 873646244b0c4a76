"""Many matrices or states in one order, and one call of torch for all that have the same shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from qraf.errors import InvalidRequest
from qraf.operations.arrays import at, numbers_of, tensor_of
from qraf.service_orders import Form, Matrices
from qraf.state_orders import ArrayData, DType
from qraf.states.checks import check_norm

LISTED_MAX = 2**22
"""Numbers of one matrix that may go out as lists; a number is 30 bytes of JSON, and as many in memory again."""

__all__ = ["LISTED_MAX", "array_out", "check_form", "check_square", "in_groups", "matrices_of"]

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

_NAMES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
_NEED = "(d, d) or (n, d, d)"


def matrices_of(matrices: Matrices, pointer: str) -> list[tuple[Tensor, str]]:
    """Every matrix (d, d) of a field, with its pointer.

    Raises:
        InvalidRequest: none, not square, NaN, too large to be added up, parts that do not fit together.
    """
    found = _matrices_of(matrices, pointer)
    for matrix, place in found:
        with at(place):
            check_norm(matrix, "matrix")
    return found


def _matrices_of(matrices: Matrices, pointer: str) -> list[tuple[Tensor, str]]:
    if isinstance(matrices, ArrayData):
        parts = [(matrices, pointer)]
    elif matrices and all(isinstance(one, list) and not any(isinstance(row, list) for row in one) for one in matrices):
        whole = tensor_of(list(matrices), pointer, 2, _NEED)  # type: ignore[arg-type]
        return [(check_square(whole, pointer), pointer)]
    else:
        parts = [(one, f"{pointer}/{index}") for index, one in enumerate(matrices)]  # type: ignore[misc]
    found: list[tuple[Tensor, str]] = []
    for part, place in parts:
        tensor = tensor_of(part, place, (2, 3), _NEED)
        check_square(tensor, place)
        if tensor.ndim == 2:
            found.append((tensor, place))
        else:
            found += [(one, place) for one in tensor]
    if not found:
        raise InvalidRequest("must hold at least one matrix", pointer)
    return found


def check_square(x: Tensor, pointer: str) -> Tensor:
    """Let (..., d, d) pass."""
    if x.shape[-1] != x.shape[-2]:
        raise InvalidRequest(f"must be square, with shape {_NEED}, but has {tuple(x.shape)}", pointer)
    return x


def in_groups(items: Sequence[tuple[Key, Tensor]], work: Callable[[Key, Tensor], Sequence[T]]) -> list[T]:
    """Stack the tensors that share key, shape and dtype, work on each stack once, and give the results in order."""
    groups: dict[tuple[Key, torch.Size, torch.dtype], list[int]] = {}
    for index, (key, tensor) in enumerate(items):
        groups.setdefault((key, tensor.shape, tensor.dtype), []).append(index)
    results: dict[int, T] = {}
    for (key, _, _), places in groups.items():
        made = work(key, torch.stack([items[place][1] for place in places]))
        results |= zip(places, made, strict=True)
    return [results[index] for index in range(len(items))]


def check_form(form: Form, numbers: int) -> None:
    """Refuse lists of more numbers in one matrix than are good for anybody; raises InvalidRequest."""
    if form == "lists" and numbers > LISTED_MAX:
        need = f"`lists` hold at most {LISTED_MAX:,} numbers, but these would be {numbers:,}; take `bytes` or `none`"
        raise InvalidRequest(need, "/form")


def array_out(x: Tensor, form: Form) -> ArrayData | None:
    """Numbers in the form that was asked for.

    >>> array_out(torch.eye(2), "bytes").shape
    (2, 2)
    """
    if form == "none":
        return None
    if form == "lists":
        return numbers_of(x)
    settled = x.detach().cpu().resolve_conj().contiguous()
    return ArrayData(data=settled.numpy().tobytes(), shape=tuple(settled.shape), dtype=_NAMES[settled.dtype])
