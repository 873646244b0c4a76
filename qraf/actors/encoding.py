"""One thread that encodes for a whole host: small requests merge into one batch of the encoder.

Two lanes: prompts (`urgent`) go before what is written, so that a question waits for at most one batch of writing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np
from numpy.typing import NDArray

from qraf.errors import LimitExceeded, NodeDown, QrafError
from qraf.text.encoder import Encoder

__all__ = ["EncodeQueue"]

_MAX_BATCH_CHARS = 16_384  # about 3000 words: bounds how long a prompt waits for a batch of passages
_URGENT_IN_A_ROW = 8  # then one batch of writing, so that a stream of prompts cannot starve it


class _Job:
    __slots__ = ("done", "future", "left", "rows", "texts")

    def __init__(self, texts: list[str], dim: int) -> None:
        self.texts, self.left = texts, len(texts)
        self.rows: NDArray[np.float32] = np.empty((len(texts), dim), np.float32)
        self.future: Future[NDArray[np.float32]] = Future()
        self.done = False  # answered, failed or given up: its other texts are skipped


class EncodeQueue:
    """Encodes texts in one thread of its own; any number of threads may ask at once.

    The queue is bounded: a call that would pass `max_waiting` texts is refused with `LimitExceeded` (an empty queue
    takes a call of any size). The encoder is loaded by the thread itself, once, and warmed with one text.
    """

    def __init__(self, load: Callable[[], Encoder], max_batch: int = 64, max_waiting: int = 4096) -> None:
        self._load, self._max_batch, self._max_waiting = load, max_batch, max_waiting
        self._lanes: tuple[deque[tuple[_Job, int]], deque[tuple[_Job, int]]] = (deque(), deque())
        self._wake = threading.Condition()
        self._ready = threading.Event()
        self._encoder: Encoder | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._urgent_run = 0
        self.batches = 0
        self.texts = 0
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the encoder is loaded and warm."""
        return self._ready.is_set() and self._failure is None

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return len(self._lanes[0]) + len(self._lanes[1])

    def encoder(self, timeout_s: float = 120.0) -> Encoder:
        """The encoder, once it is loaded.

        Raises:
            NodeDown: it did not load in time, or failed to load.
        """
        if not self._ready.wait(timeout_s):
            raise NodeDown("encoder", f"not loaded after {timeout_s:g} s")
        if self._encoder is None:
            raise self._closed_error() if self._failure is None else NodeDown("encoder", str(self._failure))
        return self._encoder

    def encode(self, texts: Sequence[str], *, urgent: bool = False, timeout_s: float = 120.0) -> NDArray[np.float32]:
        """Amplitudes of `texts`, (n, d) float32 unit rows, in order.

        Raises:
            LimitExceeded: too many texts wait already.
            NodeDown: closed, not loaded, or no answer within `timeout_s`.
        """
        dim = self.encoder(timeout_s).dim
        job = _Job(list(texts), dim)
        if not job.texts:
            return job.rows
        with self._wake:
            if self._closed:
                raise self._closed_error()
            waiting = self.waiting + len(job.texts)
            if self.waiting and waiting > self._max_waiting:
                raise LimitExceeded("texts that wait to be encoded", self._max_waiting, waiting, 1000)
            self._lanes[0 if urgent else 1].extend((job, row) for row in range(len(job.texts)))
            self._wake.notify()
        try:
            return job.future.result(timeout_s)
        except FutureTimeoutError:
            job.done = True
            raise NodeDown("encoder", f"no answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """Stop after the running batch; what still waits gets `NodeDown`. Twice does nothing."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(30)

    def _closed_error(self) -> NodeDown:
        return NodeDown("encoder", "closed")

    def _run(self) -> None:
        try:
            encoder = self._load()
            encoder.encode(["warm up"])
            self._encoder = encoder
        except Exception as error:
            self._failure = error
        self._ready.set()
        while self._encoder is not None:
            batch = self._take()
            if batch is None:
                break
            self._encode(self._encoder, batch)
        with self._wake:
            self._closed = True
            for lane in self._lanes:
                while lane:
                    self._fail(lane.popleft()[0], self._closed_error())

    def _take(self) -> list[tuple[_Job, int]] | None:
        """The next batch, from one lane; None when closed."""
        with self._wake:
            while not self._closed and not self.waiting:
                self._wake.wait()
            if self._closed:
                return None
            urgent, bulk = self._lanes
            use_urgent = bool(urgent) and (not bulk or self._urgent_run < _URGENT_IN_A_ROW)
            self._urgent_run = self._urgent_run + 1 if use_urgent else 0
            lane = urgent if use_urgent else bulk
            batch: list[tuple[_Job, int]] = []
            chars = 0
            while lane and len(batch) < self._max_batch and (not batch or chars < _MAX_BATCH_CHARS):
                job, row = lane.popleft()
                if not job.done:
                    batch.append((job, row))
                    chars += len(job.texts[row])
            return batch

    def _encode(self, encoder: Encoder, batch: list[tuple[_Job, int]]) -> None:
        if not batch:
            return
        try:
            rows = encoder.encode([job.texts[row] for job, row in batch])
        except Exception as error:
            failure = error if isinstance(error, QrafError) else NodeDown("encoder", f"{type(error).__name__}: {error}")
            for job, _ in batch:
                self._fail(job, failure)
            return
        self.batches += 1
        self.texts += len(batch)
        for (job, row), amplitudes in zip(batch, rows, strict=True):
            job.rows[row] = amplitudes
            job.left -= 1
            if not job.left and not job.done:
                job.done = True
                job.future.set_result(job.rows)

    @staticmethod
    def _fail(job: _Job, error: BaseException) -> None:
        if not job.done:
            job.done = True
            job.future.set_exception(error)
