"""Numbers on the wire <-> tensors, and faults below a door <-> faults with a JSON pointer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qraf.errors import InvalidRequest, InvalidState
from qraf.state_orders import ArrayData, Numbers

__all__ = ["at", "escaped", "numbers_of", "tensor_of"]

_DTYPES = {"float32": "<f4", "float64": "<f8", "complex64": "<c8", "complex128": "<c16"}


@contextlib.contextmanager
def at(pointer: str) -> Iterator[None]:
    """Faults of a state become faults of the request's field; one that has a pointer already keeps it."""
    try:
        yield
    except InvalidState as fault:
        raise InvalidRequest(str(fault), pointer) from None
    except InvalidRequest as fault:
        if fault.pointer:
            raise
        raise InvalidRequest(fault.detail, pointer) from None


def escaped(name: str) -> str:
    """A key as a step of a JSON pointer."""
    return name[:100].replace("~", "~0").replace("/", "~1")


def tensor_of(numbers: Numbers, pointer: str, ndim: int | Sequence[int], shape: str) -> Tensor:
    """The tensor of these numbers: float64 or complex128, or the dtype of `data`; finite, with `ndim` axes.

    Args:
        numbers: what came.
        pointer: where the numbers stand in the request.
        ndim: how many axes there must be, or which numbers of axes there may be.
        shape: what to say of the shape that is needed, such as `(d, d)`.

    Raises:
        InvalidRequest: ragged lists, NaN, parts that do not fit together, another number of axes, nothing at all.
    """
    array = _data(numbers, pointer) if isinstance(numbers, ArrayData) else _list(numbers, pointer)
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if array.ndim not in allowed:
        raise InvalidRequest(f"must have shape {shape}, but has {array.shape}", pointer)
    if not array.size:
        raise InvalidRequest(f"must have shape {shape} and hold numbers, but has {array.shape}", pointer)
    bad = ~np.isfinite(array)
    if bad.any():
        place = "/".join(str(int(index)) for index in np.argwhere(bad)[0])
        where = "" if isinstance(numbers, ArrayData) else f"/{place}"
        raise InvalidRequest(f"must be finite, but holds NaN or infinity at {place}", f"{pointer}{where}")
    return torch.from_numpy(array)


def numbers_of(x: Tensor | NDArray[Any]) -> ArrayData:
    """Numbers for the wire: `real`, and `imag` where there is one.

    >>> numbers_of(torch.tensor([[1.0, 2.0]])).real
    [[1.0, 2.0]]
    """
    array = x.detach().cpu().resolve_conj().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if np.iscomplexobj(array):
        return ArrayData(real=array.real.tolist(), imag=array.imag.tolist())
    return ArrayData(real=array.tolist())


def _list(numbers: Sequence[Any], pointer: str) -> NDArray[Any]:
    try:
        array = np.array(numbers, np.float64)
    except (ValueError, OverflowError):
        raise InvalidRequest("lists on one level must have one length", _ragged(numbers, pointer)) from None
    return array


def _data(numbers: ArrayData, pointer: str) -> NDArray[Any]:
    if (numbers.real is None) == (numbers.data is None):
        raise InvalidRequest("must have either `real` (and `imag`) or `data` with `shape` and `dtype`", pointer)
    if numbers.real is not None:
        if numbers.shape is not None or numbers.dtype is not None:
            raise InvalidRequest("`shape` and `dtype` go with `data`", pointer)
        real = _list(numbers.real, f"{pointer}/real")
        if numbers.imag is None:
            return real
        imag = _list(numbers.imag, f"{pointer}/imag")
        if imag.shape != real.shape:
            raise InvalidRequest(
                f"must have the shape of `real`, {real.shape}, but has {imag.shape}", f"{pointer}/imag"
            )
        return real + 1j * imag
    assert numbers.data is not None
    if numbers.imag is not None:
        raise InvalidRequest("goes with `real`, not with `data`", f"{pointer}/imag")
    if numbers.shape is None or numbers.dtype is None:
        missing = "shape" if numbers.shape is None else "dtype"
        raise InvalidRequest(f"`data` needs `{missing}`", f"{pointer}/{missing}")
    if len(numbers.shape) > 4 or any(size < 0 for size in numbers.shape):
        raise InvalidRequest("must be at most 4 sizes, none negative", f"{pointer}/shape")
    dtype = np.dtype(_DTYPES[numbers.dtype])
    need = math.prod(numbers.shape) * dtype.itemsize
    if len(numbers.data) != need:
        detail = f"must have {need} bytes for shape {numbers.shape} of {numbers.dtype}, but has {len(numbers.data)}"
        raise InvalidRequest(detail, f"{pointer}/data")
    array = np.frombuffer(numbers.data, dtype).reshape(numbers.shape)
    return array.astype(dtype.newbyteorder("="))


def _ragged(numbers: Any, pointer: str) -> str:
    """Where lists of one level first differ in length, or a number stands beside a list."""
    if not isinstance(numbers, list | tuple) or not numbers:
        return pointer
    lengths = [len(one) if isinstance(one, list | tuple) else -1 for one in numbers]
    for place, length in enumerate(lengths):
        if length != lengths[0]:
            return f"{pointer}/{place}"
    for place, one in enumerate(numbers):
        found = _ragged(one, f"{pointer}/{place}")
        if found != f"{pointer}/{place}":
            return found
    inner = [np.shape(one) for one in numbers] if all(_fits(one) for one in numbers) else []
    odd = next((place for place, shape in enumerate(inner) if shape != inner[0]), None)
    return pointer if odd is None else f"{pointer}/{odd}"


def _fits(numbers: Any) -> bool:
    try:
        np.array(numbers, np.float64)
    except (ValueError, OverflowError):
        return False
    return True
