"""The decoders of one connection: rounds come in as frames, what is decided goes out, the work is done in threads.

Each decoder has one task, which takes its commands in the order in which they came, so no round overtakes another. How
many decoders there are, what they hold and what may wait for them is bounded; the task ends with the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ulid import ULID

from qraf.codes.model import parse
from qraf.codes.window import WindowDecoder, WindowPlan
from qraf.decode_frames import DecodeClose, DecodeCommitted, DecodeDone, DecodeOpen, DecodeOpened, DecodeRounds
from qraf.errors import InvalidRequest, LimitExceeded, NotFound
from qraf.frames import Ack, ServerFrame
from qraf.operations.decode import at_order, experiment_of, plan_of, rows_of
from qraf.settings import LimitSettings

__all__ = ["DecodePool", "Decoding"]

T = TypeVar("T")
_THREADS = 2
_BYTES_PER_DETECTOR = 5000  # of model, graph and windows: 52 MB were measured for 9,600 detectors


class DecodePool:
    """The threads in which a gateway decodes, and how many decoders all its connections have open."""

    def __init__(self, limits: LimitSettings) -> None:
        self._most, self._most_bytes = limits.max_open_decoders, limits.max_open_decode_bytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        self.open = self.reserved = 0

    def enter(self) -> None:
        """Count a decoder.

        Raises:
            LimitExceeded: the gateway has as many as it may.
        """
        if self.open >= self._most:
            raise LimitExceeded("max_open_decoders", self._most, self.open + 1, 1000)
        self.open += 1

    def leave(self) -> None:
        """A decoder is gone."""
        self.open -= 1

    def reserve(self, size: int) -> None:
        """Count bytes that a decoder will hold; `reserved` goes down again by whoever called.

        Raises:
            LimitExceeded: all decoders of the gateway together would hold more than they may.
        """
        if self.reserved + size > self._most_bytes:
            # one that is too large alone will be so later, too
            wait_ms = 1000 if size <= self._most_bytes else None
            raise LimitExceeded("max_open_decode_bytes", self._most_bytes, self.reserved + size, wait_ms)
        self.reserved += size

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run it in a thread. Cancel: what has begun runs to its end, unheard."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Decoding:
    """What a connection does with `decode.*`.

    Args:
        pool: shared by the gateway's connections.
        limits: of a connection.
        send: sends a frame.
        answer: sends the one answer to a command and frees its id.
        fail: the same with an error.
        own: starts a task that ends with the connection.
        drained: returns when the client has taken what waits for it.
        count: told how many flips a decoder that came to its end predicted.
    """

    def __init__(
        self,
        pool: DecodePool,
        limits: LimitSettings,
        *,
        send: Callable[[ServerFrame], None],
        answer: Callable[[str, ServerFrame], None],
        fail: Callable[[str, BaseException], None],
        own: Callable[[Coroutine[Any, Any, None]], object],
        drained: Callable[[], Awaitable[None]],
        count: Callable[[int], object],
    ) -> None:
        self._pool, self._limits = pool, limits
        self._send, self._answer, self._fail, self._own = send, answer, fail, own
        self._drained, self._count = drained, count
        self._decoders: dict[str, _Decoder] = {}
        self._open = self._waiting = self._waiting_bytes = 0

    def take(self, command: DecodeOpen | DecodeRounds | DecodeClose) -> None:
        """Begin a command; its answer comes later.

        Raises:
            LimitExceeded: a bound was reached.
            NotFound: no such decoder, or not any more.
        """
        match command:
            case DecodeOpen():
                self._admit(command)
            case DecodeRounds():
                self._queue(command)
            case DecodeClose():
                decoder = self._decoders.pop(command.stream, None)
                if decoder is None:
                    self._answer(command.id, Ack(id=command.id, status="not_found"))
                else:  # what was sent before is decoded before
                    decoder.commands.put_nowait(command)

    def _admit(self, command: DecodeOpen) -> None:
        limits = self._limits
        if self._open >= limits.max_decoders:
            raise LimitExceeded("max_decoders", limits.max_decoders, self._open + 1)
        self._pool.enter()
        self._open += 1
        self._own(self._live(command))

    def _queue(self, command: DecodeRounds) -> None:
        limits, size = self._limits, len(command.detectors)
        decoder = self._decoders.get(command.stream)
        if decoder is None:
            raise NotFound("decoder", command.stream[:100])
        if self._waiting >= limits.max_inflight_commands:
            raise LimitExceeded("max_inflight_commands", limits.max_inflight_commands, self._waiting + 1, 100)
        if self._waiting_bytes + size > limits.max_decode_bytes:
            got = self._waiting_bytes + size
            # one that is too large alone will be so later, too
            raise LimitExceeded("max_decode_bytes", limits.max_decode_bytes, got, 100 if self._waiting_bytes else None)
        self._waiting += 1
        self._waiting_bytes += size
        decoder.commands.put_nowait(command)

    async def _live(self, command: DecodeOpen) -> None:
        """Carry out everything that is asked of one decoder, one after the other."""
        stream, pool, held = f"str_{ULID()}", self._pool, 0
        try:
            try:
                detectors = await pool.run(_num_detectors, command, self._limits)
                pool.reserve(size := _BYTES_PER_DETECTOR * detectors)
                held += size
                plan = await pool.run(_plan, command, self._limits)
                pool.reserve(size := 2 * command.shots * plan.window * plan.layer_bytes)
                held += size
                decoder = _Decoder(stream, plan, command)
            except Exception as error:
                self._fail(command.id, error)
                return
            self._decoders[stream] = decoder
            self._answer(command.id, decoder.opened(command.id, self._limits.max_decode_bytes))
            while decoder.status is None:
                await self._step(decoder)
            done = decoder.done()
            self._send(done)
            if done.status == "completed":
                self._count(sum(map(int.bit_count, done.observables)))
            await self._refuse_the_rest(decoder)
        finally:
            self._decoders.pop(stream, None)
            self._open -= 1
            pool.reserved -= held
            pool.leave()

    async def _step(self, decoder: _Decoder) -> None:
        command = await decoder.commands.get()
        if isinstance(command, DecodeClose):
            decoder.status = "cancelled"
            self._answer(command.id, Ack(id=command.id, status="accepted"))
            return
        try:
            committed = await self._pool.run(decoder.push, command)
        except Exception as error:
            self._fail(command.id, error)
        else:
            self._answer(command.id, committed)
        finally:
            self._settle(command)
        await self._drained()

    async def _refuse_the_rest(self, decoder: _Decoder) -> None:
        self._decoders.pop(decoder.stream, None)
        while not decoder.commands.empty():
            command = decoder.commands.get_nowait()
            if isinstance(command, DecodeClose):
                self._answer(command.id, Ack(id=command.id, status="duplicate"))
            else:
                self._settle(command)
                self._fail(command.id, NotFound("decoder", decoder.stream))

    def _settle(self, command: DecodeRounds) -> None:
        self._waiting -= 1
        self._waiting_bytes -= len(command.detectors)


class _Decoder:
    """One decoder; `push` runs in a thread, one call at a time."""

    def __init__(self, stream: str, plan: WindowPlan, command: DecodeOpen) -> None:
        self.stream = stream
        self.commands: asyncio.Queue[DecodeRounds | DecodeClose] = asyncio.Queue()  # bounded by `Decoding`
        self.status: Any = None
        self._window = WindowDecoder(plan, command.shots, count=command.count)
        self._seq, self._busy_s = 0, 0.0

    def opened(self, id: str, max_bytes: int) -> DecodeOpened:
        plan = self._window.plan
        return DecodeOpened(
            id=id,
            stream=self.stream,
            rounds=plan.num_layers,
            detectors=tuple(plan.layer_bits),
            num_observables=plan.graph.num_observables,
            shots=self._window.shots,
            window=plan.window,
            commit=plan.commit,
            max_bytes=max_bytes,
        )

    def push(self, command: DecodeRounds) -> DecodeCommitted:
        window, plan = self._window, self._window.plan
        start, left = window.layers, plan.num_layers - window.layers
        if command.start is not None and command.start != start:
            raise InvalidRequest(f"must be {start}, the rounds that came so far, but is {command.start}", "/start")
        if command.rounds > left:
            raise InvalidRequest(
                f"must be 1 to {left}, of {plan.num_layers} in all, but is {command.rounds}", "/rounds"
            )
        rows = rows_of(command.detectors, plan.bits(start, command.rounds), "/detectors", window.shots)
        began = time.perf_counter()
        try:
            with at_order():
                committed = window.push(rows, command.rounds)
        except BaseException:
            self.status = "failed"  # what was passed on from window to window is not whole any more
            raise
        finally:
            self._busy_s += time.perf_counter() - began
        if window.layers == plan.num_layers:
            self.status = "completed"
        self._seq += 1
        return DecodeCommitted(
            stream=self.stream,
            seq=self._seq,
            id=command.id,
            received=window.layers,
            committed=committed.layers,
            observables=committed.observables.tobytes(),
        )

    def done(self) -> DecodeDone:
        window, committed, ms = self._window, self._window.committed, 1e3 * self._busy_s
        return DecodeDone(
            stream=self.stream,
            seq=self._seq + 1,
            status=self.status,
            observables=committed.observables.tobytes(),
            rounds=window.layers,
            committed=committed.layers,
            events=window.events,
            corrections=committed.corrections,
            ms=ms,
            ms_per_round=ms / max(1, window.layers),
        )


def _num_detectors(command: DecodeOpen, limits: LimitSettings) -> int:
    """Give the size of what is to be opened, within the limit, before anything large is built."""
    with at_order():
        if command.experiment is not None and command.dem is None:
            detectors, place = experiment_of(command.experiment).num_detectors, "/experiment"
        else:
            detectors, place = 0 if command.dem is None else parse(command.dem).num_detectors, "/dem"
        if detectors > limits.max_decode_detectors:
            need = f"may have {limits.max_decode_detectors:,} detectors (`max_decode_detectors`)"
            raise InvalidRequest(f"{need}, but has {detectors:,}", place)
    return int(detectors)


def _plan(command: DecodeOpen, limits: LimitSettings) -> WindowPlan:
    """Prepare the windows of an order; equal orders share theirs."""
    with at_order():
        plan = plan_of(command.experiment, command.dem, command.window, command.commit)
    each = plan.window * plan.layer_bytes
    most = limits.max_decode_state_bytes // each
    if command.shots > most:
        need = f"must be 1 to {most:,} for a window of {plan.window} rounds (`max_decode_state_bytes`)"
        raise InvalidRequest(f"{need}, but is {command.shots:,}", "/shots")
    return plan
