"""What gateways know of each other's responses: this one's are written behind it, others' are read when asked for.

Nothing here is on the way to a delta: a response is noted, and written a moment later together with others. A gateway
that dies within that moment takes the news along; its client then hears `expired`, and ends the response as failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from qraf.clock import Clock
from qraf.errors import GatewayLost, QrafError, RunsElsewhere
from qraf.sessions.faults import error_body
from qraf.sessions.lives import Life, is_over
from qraf.sessions.response import Response
from qraf.sessions.responses import Responses
from qraf.storage.responses import GatewayRecord, ResponseBody, ResponseRecord, ResponseTable
from qraf.tenants import tenant_of

__all__ = ["LEASE_S", "Ledger"]

log = logging.getLogger(__name__)

LEASE_S = 15.0  # a gateway that has said nothing for so long is dead
_BEAT_S = 3.0
_GATHER_S = 0.05  # how long a response waits for others that are written with it
_LOOK_S = 1.0  # between two looks at what clients of other gateways want
_WISH_S = 10.0  # how long a client's wish to read counts
_REST_S = 1.0  # after a failure of the journal
_MOST_AT_ONCE = 200
_MOST_WAITING = 4096


class Ledger:
    """The part of `Responses` that outlives a gateway. `start` before use, `close` after; belongs to one event loop.

    Which gateway is dead is told by a file that it had locked, where `folder` is one that they share (None: none), or
    by its silence for `LEASE_S`; who was cut off from the journal meanwhile does not judge that. The clocks of the
    machines may differ by some seconds. One that is taken for dead and was not changes nothing any more.
    """

    def __init__(
        self, table: ResponseTable, responses: Responses, clock: Clock, kept_s: float, folder: Path | None
    ) -> None:
        self._table, self._responses, self._clock, self._kept_s = table, responses, clock, kept_s
        self.epoch, self.name = responses.epoch, f"{socket.gethostname()}:{os.getpid()}"
        self._folder = folder
        self._life = None if folder is None else Life(folder, self.epoch)
        self._waiting: dict[str, Response] = {}
        self._some = asyncio.Event()
        self._beats_since = clock.now()  # without a longer pause: the machine slept, or the journal was away
        self._beat_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Say that this gateway lives, and end what dead ones left running."""
        if self._life is not None:
            try:
                await asyncio.to_thread(self._life.begin)
            except OSError as error:
                log.warning("other gateways learn of this one's death only by its silence: %s", error)
                self._life = None
        works = (self._write, 0.0), (self._beat, _BEAT_S), (self._look, _LOOK_S)
        self._tasks = [asyncio.create_task(_repeat(work, pause), name=f"ledger {pause:g}") for work, pause in works]

    async def close(self) -> None:
        """Write what waits, for some seconds at most, and say that this life is over. Twice is harmless."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        try:
            while self._waiting:
                await self._flush()
            await asyncio.to_thread(self._table.bury, [self.epoch])
        except QrafError as error:
            log.warning("what became of the last responses is not in the journal: %s", error)
        if self._life is not None:
            self._life.end()

    # ------------------------------------------------------------------------------------------------ own
    def note(self, response: Response) -> None:
        """A response has begun, or has ended."""
        self._waiting[response.id] = response
        if len(self._waiting) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._some.set()

    async def _write(self) -> None:
        await self._some.wait()
        await asyncio.sleep(_GATHER_S)
        self._some.clear()
        try:
            await self._flush()
        finally:
            if self._waiting:
                self._some.set()

    async def _flush(self) -> None:
        chosen = [self._waiting.pop(one) for one in list(self._waiting)[:_MOST_AT_ONCE]]
        try:
            await asyncio.to_thread(self._table.put, [_record(one) for one in chosen])
        except BaseException:  # cancelled, too: writing twice is harmless
            self._waiting = {one.id: one for one in chosen} | self._waiting
            raise

    async def _beat(self) -> None:
        await asyncio.to_thread(self._table.beat, self.epoch, self.name)
        now = self._clock.now()
        if now - self._beat_at > LEASE_S / 2:
            self._beats_since = now
        self._beat_at = now
        known = await asyncio.to_thread(self._table.gateways)
        dead = await asyncio.to_thread(lambda: [one.epoch for one in known if self._is_dead(one)])
        if dead:
            failed = await asyncio.to_thread(self._table.bury, dead)
            log.warning("%d gateways died; %d responses of theirs have failed", len(dead), failed)
        await asyncio.to_thread(self._table.sweep, now - self._kept_s)

    async def _look(self) -> None:
        if not self._responses.running():
            return
        wishes = await asyncio.to_thread(self._table.wishes, self.epoch)
        for name, (wish, at) in wishes.items():
            response = self._responses.find(name)
            if response is None:
                continue
            if wish == "cancel":
                response.cancel()
            elif response.left_at is not None and self._clock.now() - at < _WISH_S:
                response.left_at = self._clock.monotonic()

    # ------------------------------------------------------------------------------------------------ others'
    async def find(
        self, target: str, tenant: str, *, key: str | None = None, after_seq: int | None = None
    ) -> Response | None:
        """A tenant's response of another gateway that has ended, or whose gateway died: then it has failed.

        `target` is its id or its stream, `key` the key that it was started with, as it is known inside, and `after_seq`
        what its reader saw last, if this is for one.

        Raises:
            RunsElsewhere: its gateway lives.
            StorageFailed: the journal does not answer.
        """
        record = await asyncio.to_thread(self._table.find, tenant, target, key)
        if record is not None and record.status == "running":
            if record.epoch == self.epoch:  # it was let go here, and its end is on its way
                return None
            gateway = await self._gateway(record)
            if gateway is not None:
                if self._clock.now() - record.wished_at > _WISH_S / 2:
                    await asyncio.to_thread(self._table.wish, record.id, "read")
                raise RunsElsewhere(record.id, gateway)
            await asyncio.to_thread(self._table.bury, [record.epoch])
            record = await asyncio.to_thread(self._table.find, tenant, record.id, None)
        if record is None or record.ended_at is None or self._clock.now() - record.ended_at > self._kept_s:
            return None
        if record.status == "failed" and record.body.error is None:
            body = msgspec.structs.replace(record.body, finish_reason="error", error=error_body(GatewayLost(record.id)))
            record = msgspec.structs.replace(record, body=body)
        return self._responses.adopt(record, key or "", after_seq)

    async def cancel(self, running: RunsElsewhere) -> None:
        """Have the gateway that runs a response stop it, within about a second."""
        await asyncio.to_thread(self._table.wish, running.response, "cancel")

    async def _gateway(self, record: ResponseRecord) -> str | None:
        """The name of the gateway that runs a response; None where it is dead."""
        known = await asyncio.to_thread(self._table.gateways)
        found = next((one for one in known if one.epoch == record.epoch), None)
        one = found or GatewayRecord(record.epoch, "unknown", record.created_at)
        return None if await asyncio.to_thread(self._is_dead, one) else one.name

    def _is_dead(self, gateway: GatewayRecord) -> bool:
        if gateway.epoch == self.epoch:
            return False
        if self._folder is not None and is_over(self._folder, gateway.epoch):
            return True
        now = self._clock.now()
        has_listened = now - self._beats_since >= LEASE_S and now - self._beat_at <= LEASE_S / 2
        return has_listened and now - gateway.seen_at > LEASE_S


def _record(response: Response) -> ResponseRecord:
    has_ended = response.has_ended
    return ResponseRecord(
        id=response.id,
        stream=response.stream,
        tenant=tenant_of(response.owner),
        epoch=response.epoch,
        status=response.status,
        created_at=response.created_at,
        session=response.session,
        key=response.key,
        ended_at=response.ended_at if has_ended else None,
        seq=response.last_seq if has_ended else 0,
        body=ResponseBody(
            command=response.command_id,
            model=response.model,
            request=response.request,
            text=response.text if has_ended else "",
            finish_reason=response.finish_reason,
            usage=response.usage,
            state=response.state,
            error=response.error,
        ),
    )


async def _repeat(work: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Do it again and again; after a failure of the journal only after a rest."""
    while True:
        try:
            await work()
        except QrafError as error:
            log.warning("the journal does not know of the last responses yet: %s", error)
            await asyncio.sleep(_REST_S)
        except Exception:
            log.exception("the ledger of responses failed")
            await asyncio.sleep(_REST_S)
        await asyncio.sleep(pause_s)
