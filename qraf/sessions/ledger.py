"""What gateways know of each other's responses: this one's are written behind it, others' are read when asked for.

Nothing here is on the way to a delta: a response is noted, and written a moment later together with others. A gateway
that dies within that moment takes the news along; its client then hears `expired`. What others follow is written once a
second while it runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from qraf.clock import Clock
from qraf.errors import QrafError, RunsElsewhere
from qraf.sessions.following import WISH_S, Followed, Following
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
_PATIENCE_S = 2.5  # how long who asks for a response waits for what its gateway writes of it
_REST_S = 1.0  # after a failure of the journal
_MOST_AT_ONCE = 200
_MOST_WAITING = 4096
_MOST_FRAMES = 64 * 1024  # bytes of a response's last frames that are written for others
_MOST_TOLD = 4 * 1024 * 1024  # bytes that are written for others at once; the rest a second later


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
        self._following = Following(table, responses, clock)
        self._waiting: dict[str, Response] = {}
        self._leaving: dict[str, Response] = {}  # being written
        self._wishes: dict[str, tuple[float, float]] = {}  # when a wish was made, and when it was heard here
        self._twins: set[str] = set()  # those that were told to leave, and stayed
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
        works = (self._write, 0.0), (self._beat, _BEAT_S), (self._look, _LOOK_S), (self._following.work, 0.0)
        self._tasks = [asyncio.create_task(_repeat(work, pause), name=f"ledger {pause:g}") for work, pause in works]

    async def close(self) -> None:
        """Write what waits, for some seconds at most, and say that this life is over. Twice is harmless."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._following.close()
        is_told = False
        try:
            while self._waiting:
                await self._flush()
            await asyncio.to_thread(self._table.bury, [self.epoch])
            is_told = True
        except QrafError as error:
            log.warning("what became of the last responses is not in the journal: %s", error)
        if self._life is not None:
            self._life.end(is_told=is_told)

    # ------------------------------------------------------------------------------------------------ own
    def note(self, response: Response) -> None:
        """A response has begun, or has ended."""
        self._waiting[response.id] = response
        if len(self._waiting) > _MOST_WAITING:  # the journal was away for long; `_settle` ends what it knows of them
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
        self._leaving = {one.id: one for one in chosen}
        try:
            await asyncio.to_thread(self._table.put, [_record(one) for one in chosen])
        except BaseException:  # cancelled, too: writing twice is harmless
            self._waiting = self._leaving | self._waiting
            raise
        finally:
            self._leaving = {}

    async def _beat(self) -> None:
        await asyncio.to_thread(self._table.beat, self.epoch, self.name)
        now = self._clock.now()
        if now - self._beat_at > LEASE_S / 2:
            self._beats_since = now
        self._beat_at = now
        known = await asyncio.to_thread(self._table.gateways)
        mine, others = await asyncio.to_thread(self._table.running, self.epoch)
        named = {one.epoch for one in known}
        # one that died before it could say that it lives has left responses all the same
        known += [GatewayRecord(epoch, "unknown", at) for epoch, at in others.items() if epoch not in named]
        dead = await asyncio.to_thread(lambda: [one.epoch for one in known if self._is_dead(one)])
        await self._settle(mine)
        if dead:
            failed = await asyncio.to_thread(self._table.bury, dead)
            log.warning("%d gateways died; %d responses of theirs have failed", len(dead), failed)
        await asyncio.to_thread(self._table.sweep, now - self._kept_s)

    async def _settle(self, mine: Sequence[str]) -> None:
        """End what the journal takes for running here and nobody here knows: its end did not get there."""
        lost = [one for one in mine if not (self._responses.find(one) or one in self._waiting or one in self._leaving)]
        if lost:
            log.warning("what became of %d responses was not written in time; for others they have failed", len(lost))
            await asyncio.to_thread(self._table.lose, lost)

    async def _look(self) -> None:
        """Do what clients of other gateways want of the responses that run here."""
        if not self._responses.running():
            return
        wishes, heard = await asyncio.to_thread(self._table.wishes, self.epoch), {}
        self._twins &= wishes.keys()
        now, wanted = self._clock.monotonic(), []
        for name, (wish, at) in wishes.items():
            response = self._responses.find(name)
            if response is None or response.has_ended:
                continue
            if wish == "leave":
                if name not in self._twins and name not in self._wishes and response.left_at is not None:
                    response.cancel("disconnected")
                self._twins.add(name)  # whoever reads it now may go and come back
                continue
            response.is_followed = True
            if wish == "cancel":
                response.cancel()
                continue
            # counted from when it was heard: the clocks may differ
            before = self._wishes.get(name)
            heard[name] = before if before is not None and before[0] == at else (at, now)
            if now - heard[name][1] < WISH_S:
                if response.left_at is not None:
                    response.left_at = now
                if response.has_waiting or response.seq > response.told_seq:
                    wanted.append(response)
        self._wishes = heard
        await self._tell(sorted(wanted, key=lambda one: one.told_at))

    async def _tell(self, wanted: Sequence[Response]) -> None:
        """Write what these have said so far, with their last frames, for whoever follows them."""
        told: list[tuple[Response, ResponseRecord]] = []
        size = 0
        for response in wanted[:_MOST_AT_ONCE]:
            record = _record(response)
            size += len(record.body.text) + sum(map(len, record.body.frames))
            if told and size > _MOST_TOLD:
                break
            told.append((response, record))
        if told:
            await asyncio.to_thread(self._table.put, [record for _, record in told])
        for response, record in told:
            response.told_seq, response.told_at = record.seq, self._clock.monotonic()

    # ------------------------------------------------------------------------------------------------ others'
    async def find(
        self,
        target: str,
        tenant: str,
        *,
        key: str | None = None,
        after_seq: int | None = None,
        known: Response | None = None,
        follow: bool = True,
    ) -> Response | None:
        """A tenant's response of another gateway: ended, failed because its gateway died, or followed from now on.

        `target` is its id or its stream, `key` the key that it was started with, as it is known inside, and `after_seq`
        what its reader saw last, if this is for one. `known` is what is known of it here already. Waits up to 2.5 s for
        what its gateway writes of it.

        Raises:
            RunsElsewhere: its gateway lives and wrote nothing of it in this time, or `follow` is false.
            StorageFailed: the journal does not answer.
        """
        until, seen = asyncio.get_running_loop().time() + _PATIENCE_S, after_seq or 0
        if known is not None and (not isinstance(known, Followed) or known.has_ended or not follow):
            return known
        if isinstance(known, Followed):
            await self._following.refresh(known, seen)
            if await self._following.caught_up(known, seen, until):
                return known
        while (record := await asyncio.to_thread(self._table.find, tenant, target, key)) is not None:
            if record.status != "running":
                break
            if record.epoch == self.epoch:  # it was let go here, and its end is on its way
                return None
            gateway = await self._gateway(record)
            if gateway is None:
                await asyncio.to_thread(self._table.bury, [record.epoch])
                continue
            followed = self._following.begin(record, gateway, key or "") if follow else None
            if followed is not None and await self._following.caught_up(followed, seen, until):
                return followed
            if followed is None or not followed.is_lost:
                raise RunsElsewhere(record.id, gateway)
        if record is None or record.ended_at is None or self._clock.now() - record.ended_at > self._kept_s:
            return None
        here = self._responses.find(record.id)
        if isinstance(here, Followed) and not here.has_ended:  # by another of its names; its end is no news here yet
            await self._following.refresh(here, seen)
        return self._responses.adopt(record, key or "", after_seq)

    async def cancel(self, running: RunsElsewhere) -> None:
        """Have the gateway that runs a response stop it, within about a second."""
        await asyncio.to_thread(self._table.wish, [running.response], "cancel")

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
    has_ended, is_told = response.has_ended, response.has_ended or response.is_followed
    if response.is_followed:
        response.stamp_all()
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
        seq=response.last_seq if is_told else 0,
        body=ResponseBody(
            command=response.command_id,
            model=response.model,
            request=response.request,
            text=response.text if is_told else "",
            frames=response.tail(_MOST_FRAMES) if response.is_followed else (),
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
