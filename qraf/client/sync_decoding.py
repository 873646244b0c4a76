"""The synchronous twin of a decoder."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qraf.client.decoding import Decoding, Detectors
from qraf.client.sync_parts import LoopThread
from qraf.decode_frames import DecodeCommitted, DecodeDone, DecodeOpened

__all__ = ["SyncDecoding"]


class SyncDecoding:
    """`Decoding` for a plain `with` block."""

    def __init__(self, loop: LoopThread, decoding: Decoding) -> None:
        self._loop, self._decoding = loop, decoding

    @property
    def opened(self) -> DecodeOpened:
        """What the server made: rounds, detectors in each, window."""
        return self._decoding.opened

    @property
    def received(self) -> int:
        """Rounds that the server has taken."""
        return self._decoding.received

    @property
    def done(self) -> DecodeDone | None:
        """The end, once it has come."""
        return self._decoding.done

    @property
    def predictions(self) -> NDArray[np.bool_]:
        """Which observables flipped, (shots, num_observables), once `done` is there."""
        return self._decoding.predictions

    def push(self, detectors: Detectors, rounds: int = 1) -> DecodeCommitted:
        """Send the next rounds of every shot; returns what is decided so far."""
        return self._loop.call(self._decoding.push(detectors, rounds))

    def feed(self, source: Iterable[Detectors], *, rounds: int = 1, ahead: int = 8) -> Generator[DecodeCommitted]:
        """Send the pieces of `source`, which is read in the client's thread; yield every answer."""
        return self._loop.iterate(self._decoding.feed(source, rounds=rounds, ahead=ahead))

    def result(self) -> DecodeDone:
        """Wait for the end, which comes after the last round."""
        return self._loop.call(self._decoding.result())

    def __enter__(self) -> Self:
        self._loop.call(self._decoding.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call(self._decoding.__aexit__(kind, error, trace))
