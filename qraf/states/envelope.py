"""An envelope for arrays: a versioned msgpack map behind a checksum; damage is found before anything is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState

__all__ = ["VERSION", "seal", "unseal"]

VERSION = 1
_MAGIC = b"QRAF"
_DIGEST = 16
_DTYPES = ("<f2", "<f4", "<f8", "<c8", "<c16", "|u1")


def seal(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Put facts (numbers, texts, lists of them) and arrays under one checksum.

    Layout: "QRAF", one byte of version, 16 bytes of blake2b over the rest, then a msgpack map `{kind, facts, arrays}`
    with each array as `[dtype, shape, bytes]`, little endian, first axis slowest.

    Raises:
        InvalidState: an array has a dtype that no reader knows.
    """
    import msgpack  # type: ignore[import-untyped]  # here, because states are also computed where it is not installed

    packed = {name: _array_out(name, array) for name, array in arrays.items()}
    body: bytes = msgpack.packb({"kind": kind, "facts": dict(facts), "arrays": packed}, use_bin_type=True)
    return _MAGIC + bytes([VERSION]) + _digest(body) + body


def unseal(data: bytes, kind: str | None = None) -> tuple[str, dict[str, Any], dict[str, NDArray[Any]]]:
    """Give kind, facts and arrays back; the arrays are writable copies.

    Args:
        data: what `seal` made.
        kind: the kind that is needed; None takes any.

    Raises:
        InvalidState: not a packet, another version, a wrong checksum, or a body that does not fit its description.
    """
    import msgpack

    head = len(_MAGIC) + 1 + _DIGEST
    if len(data) < head or data[: len(_MAGIC)] != _MAGIC:
        raise InvalidState(
            "packet", "start with 'QRAF' and a header of 21 bytes", f"has {len(data)} bytes of another form"
        )
    if data[len(_MAGIC)] != VERSION:
        raise InvalidState("packet", f"have version {VERSION}", f"has version {data[len(_MAGIC)]}")
    body = bytes(data[head:])
    if _digest(body) != data[len(_MAGIC) + 1 : head]:
        raise InvalidState("packet", "match its checksum", "does not: it was cut or changed")
    try:
        parts = msgpack.unpackb(body, raw=False)
        found, facts = str(parts["kind"]), dict(parts["facts"])
        arrays = {str(name): _array_in(str(name), *parts["arrays"][name]) for name in parts["arrays"]}
    except InvalidState:
        raise
    except Exception as error:  # msgpack raises many kinds; all mean the same here
        raise InvalidState("packet", "hold a map of kind, facts and arrays", f"does not: {error}") from error
    if kind is not None and found != kind:
        raise InvalidState("packet", f"hold a {kind}", f"holds a {found}")
    return found, facts, arrays


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()


def _array_out(name: str, array: NDArray[Any]) -> tuple[str, list[int], bytes]:
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    if dtype.str not in _DTYPES:
        raise InvalidState(name, f"have one of the dtypes {_DTYPES}", f"has {array.dtype.str}")
    return dtype.str, list(array.shape), np.ascontiguousarray(array, dtype).tobytes()


def _array_in(name: str, dtype: str, shape: list[int], data: bytes) -> NDArray[Any]:
    if dtype not in _DTYPES:
        raise InvalidState(name, f"have one of the dtypes {_DTYPES}", f"has {dtype}")
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if any(length < 0 for length in shape) or size != len(data):
        raise InvalidState(name, f"have {size} bytes for shape {tuple(shape)}", f"has {len(data)}")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))
