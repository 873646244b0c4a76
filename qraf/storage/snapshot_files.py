"""Files of snapshots in a directory, or at any URL that fsspec knows, and what stands in them.

A file is "QRAFSNAP", one byte of version, and a body of facts and arrays in pieces of 1 MiB, each sealed by itself and
bound to its place, so that neither writing nor reading needs a second copy of the whole in one piece.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qraf.errors import InvalidState, NotAvailable, StorageFailed
from qraf.storage.seal import DataKey, NotOpened, bound

__all__ = ["FORMAT", "Abandoned", "Parts", "SnapshotStore", "body_of", "opened", "parts_of", "sealed"]

FORMAT = 1
_MAGIC = b"QRAFSNAP" + bytes([FORMAT])
_PIECE = 1 << 20
_TAG = 28  # nonce and tag of a sealed piece
_ID = "store-id"
_ID_LENGTH = 32
_WAIT_S = 2.0

Parts = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
Belongs = tuple[str | int, ...]


class Abandoned(Exception):
    """What the pieces of a file raise when it is not wanted any more."""


# -------------------------------------------------------------------------------------------------------- the format
def body_of(parts: Parts) -> tuple[list[memoryview], int]:
    """Facts and arrays as buffers that follow one another, and their bytes together."""
    facts, arrays = parts
    columns = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in arrays.values()]
    shapes = [(name, column.dtype.str, column.shape) for name, column in zip(arrays, columns, strict=True)]
    head = msgspec.msgpack.encode({"facts": dict(facts), "arrays": shapes})
    buffers = [memoryview(len(head).to_bytes(8, "little")), memoryview(head)]
    buffers += [column.reshape(-1).view(np.uint8).data for column in columns if column.size]
    return buffers, sum(len(buffer) for buffer in buffers)


def parts_of(body: bytes | bytearray) -> Parts:
    """Facts and arrays of a body; the arrays are views of it.

    Raises:
        InvalidState: it is none.
    """
    try:
        start = 8 + int.from_bytes(body[:8], "little")
        head = msgspec.msgpack.decode(memoryview(body)[8:start])
        arrays: dict[str, NDArray[Any]] = {}
        for name, code, shape in head["arrays"]:
            dtype = np.dtype(code)
            if dtype.kind not in "uif":
                raise InvalidState("snapshot", "hold numbers", f"holds {code}")
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype, count, start).reshape(shape) if count else np.zeros(shape, dtype)
            start += count * dtype.itemsize
        facts = dict(head["facts"])
    except InvalidState:
        raise
    except Exception as error:  # msgspec and NumPy raise many kinds; all mean the same here
        raise InvalidState("snapshot", "hold facts and arrays", f"does not: {type(error).__name__}") from error
    if start != len(body):
        raise InvalidState("snapshot", f"have {start} bytes", f"has {len(body)}")
    return facts, arrays


def sealed(buffers: Iterable[memoryview], size: int, key: DataKey | None, belongs: Belongs) -> Iterator[bytes]:
    """A file, piece by piece, of a body of `size` bytes; without a key as it is."""
    yield _MAGIC
    pieces = -(-size // _PIECE)
    for place, piece in enumerate(_cut(buffers)):
        yield piece if key is None else key.seal(piece, bound(*belongs, place, pieces))


def opened(data: bytes, key: DataKey | None, belongs: Belongs) -> bytearray:
    """The body of a file.

    Raises:
        InvalidState: it is no snapshot, or one of another version of the format.
        NotOpened: it was changed, is another's or an older one's.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise InvalidState("snapshot", f"begin with QRAFSNAP and version {FORMAT}", "does not")
    rest = memoryview(data)[len(_MAGIC) :]
    if key is None:
        return bytearray(rest)
    step = _PIECE + _TAG
    starts = [*range(0, len(rest), step), len(rest)]
    body = bytearray()
    for place, (start, end) in enumerate(pairwise(starts)):
        body += key.open(bytes(rest[start:end]), bound(*belongs, place, len(starts) - 1))
    if not body:
        raise NotOpened
    return body


def _cut(buffers: Iterable[memoryview]) -> Iterator[bytes]:
    """Buffers as pieces of one size; the last is what is left."""
    piece = bytearray()
    for buffer in buffers:
        start = 0
        while start < len(buffer):
            taken = buffer[start : start + _PIECE - len(piece)]
            piece += taken
            start += len(taken)
            if len(piece) == _PIECE:
                yield bytes(piece)
                piece = bytearray()
    if piece:
        yield bytes(piece)


# --------------------------------------------------------------------------------------------------------- the place
class SnapshotStore:
    """A directory of snapshots. Safe for several threads; everything blocks and may raise `StorageFailed`.

    Args:
        url: a directory, or what fsspec takes: `file:///path`, `s3://bucket/prefix`, `memory://name`.

    Raises:
        NotAvailable: fsspec, or its package for this kind of URL, is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            self._fs, root = url_to_fs(url)
        except (ImportError, ValueError) as fault:
            raise NotAvailable(f"snapshots at {url.partition(':')[0]} ({fault})") from None
        self._root = str(root).rstrip("/")
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._id = ""

    def find(self) -> str:
        """The id of the place; empty while nothing was ever written there."""
        if not self._id:
            self._id = self._read_id()
        return self._id

    def make(self) -> str:
        """The id of the place, which is made if it is not there, for its owner alone.

        It is read anew: somebody may have emptied the place, or made it in the same moment as this process.
        """
        with _faults("make the place of snapshots"):
            self._id = ""
            if found := self.find():
                return found
            if self._is_local:
                Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_folder(self._root)
            own = secrets.token_hex(_ID_LENGTH // 2).encode()
            with contextlib.suppress(FileExistsError):
                self._fs.pipe_file(self._path(_ID), own, mode="create")
            give_up = time.monotonic() + _WAIT_S
            while not (found := self.find()):  # another process has just made it
                if time.monotonic() > give_up:  # or died in the middle, or its disk was full
                    self._fs.pipe_file(self._path(_ID), own)
                    if not (found := self.find()):
                        raise StorageFailed("make the place of snapshots", f"{_ID} is not readable")
                    break
                time.sleep(0.01)
            return found

    def write(self, id: str, pieces: Iterable[bytes]) -> tuple[bytes, int]:
        """Write a file aside and put it in place; its SHA-256 and size. It does not wait for the disk.

        A file that a power failure tears fails its checksum later: that costs a rebuild from the journal, no item.
        """
        digest, size = hashlib.sha256(), 0
        path, aside = self._file(id), self._file(id) + ".part"
        with _faults("write snapshot"):
            self._make_folder(path.rpartition("/")[0])
            try:
                with self._fs.open(aside, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                        digest.update(piece)
                        size += len(piece)
                self._fs.mv(aside, path)
            except BaseException:
                self._remove(aside)
                raise
        return digest.digest(), size

    def read(self, id: str) -> bytes | None:
        """A file; None: it is not there."""
        with _faults("read snapshot"):
            try:
                data: bytes = self._fs.cat_file(self._file(id))
            except FileNotFoundError:
                return None
        return data

    def delete(self, id: str) -> None:
        """Delete a file, and what was written aside of it; one that is not there is passed over."""
        with _faults("delete snapshot"):
            for path in (self._file(id), self._file(id) + ".part"):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    def _make_folder(self, path: str) -> None:
        """One level of the way, where there are folders; no bucket: the name of one that is missing may be misspelt."""
        if "/" in path:
            with contextlib.suppress(FileExistsError):
                self._fs.mkdir(path, create_parents=False)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(Exception):  # what goes wrong here follows from what is being raised
            self._fs.rm_file(path)

    def _read_id(self) -> str:
        with _faults("read the place of snapshots"):
            try:
                found: bytes = self._fs.cat_file(self._path(_ID))
            except FileNotFoundError:
                return ""
        text = found.decode("ascii", "replace").strip()
        return text if len(text) == _ID_LENGTH else ""

    def _file(self, id: str) -> str:
        return self._path(f"{id[:2]}/{id}.snapshot")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextlib.contextmanager
def _faults(what: str) -> Iterator[None]:
    """Whatever a file system raises, of whichever kind, as `StorageFailed`; without paths and values."""
    try:
        yield
    except (StorageFailed, Abandoned):
        raise
    except Exception as fault:
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else type(fault).__name__
        raise StorageFailed(what, reason) from fault
