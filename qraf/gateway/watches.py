"""What watchers get: a first frame at once, then one when something changed, the newest when the reader is slow."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
from ulid import ULID

from qraf.errors import LimitExceeded, NotFound, QrafError
from qraf.frames import (
    Ack,
    ErrorFrame,
    Metrics,
    NetworkDelta,
    NetworkSnapshot,
    NodeView,
    ServerFrame,
    Unwatch,
    UsageFrame,
    UsageToday,
    Watch,
)
from qraf.gateway.outbox import Message
from qraf.gateway.peer import Peer
from qraf.gateway.problems import error_body
from qraf.records import Figures
from qraf.sessions.tenants import TenantService
from qraf.storage.usage import date_of

__all__ = ["NetworkWatch", "SessionWatch", "Topic", "Usage", "UsageWatch", "Watched", "Watches", "topic_for"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Usage:
    """Counts of one connection."""

    written_items: int = 0
    recalls: int = 0
    responses: int = 0
    tokens: int = 0


class Topic(Protocol):
    """A watched topic. `seq` counts the frames that left; `skipped` the changes since then that were not sent alone."""

    stream: str
    skipped: int

    async def poll(self) -> bool:
        """Look again; whether there is something that was not sent yet."""
        ...

    def frame(self) -> ServerFrame:
        """The frame that tells the newest; from here on that counts as sent."""
        ...


class Watched:
    """A watch of one connection, and its slot in the outbox. `is_answered`: the command has its `ack`."""

    def __init__(self, id: str, topic: Topic, every_s: float, encode: Callable[[ServerFrame], Message]) -> None:
        self.id, self.topic, self.every_s = id, topic, every_s
        self.is_answered = False
        self.task: asyncio.Task[None] | None = None
        self._encode = encode

    def take(self) -> Message:
        """The newest, as a message."""
        return self._encode(self.topic.frame())


class Watches:
    """What a connection does with `watch` and `unwatch`.

    Args:
        peer: who watches.
        usage: of the connection, for its own topic.
        most: topics that may be watched at once.
        own: starts a task that ends with the connection.
    """

    def __init__(
        self,
        peer: Peer,
        usage: Usage,
        most: int,
        own: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._peer, self._usage, self._most, self._own = peer, usage, most, own
        self._watches: dict[str, Watched] = {}

    def watch(self, command: Watch, opening: tuple[asyncio.Task[None], ...]) -> None:
        """Begin a watch once `opening` are done, or change the pace of one; raises LimitExceeded."""
        watched = self._watches.get(command.topic)
        if watched is not None:
            watched.every_s = command.every_ms / 1000
            self._peer.answer(command.id, Ack(id=command.id, status="duplicate"))
            return
        if len(self._watches) >= self._most:
            raise LimitExceeded("max_watches", self._most, len(self._watches) + 1)
        topic = topic_for(command.topic, self._peer.service, self._usage)
        watched = Watched(command.id, topic, command.every_ms / 1000, self._peer.message)
        self._watches[command.topic] = watched
        watched.task = self._own(self._follow(command.topic, watched, opening))

    def unwatch(self, command: Unwatch) -> None:
        """End a watch, if there is one."""
        watched = self._watches.pop(command.topic, None)
        if watched is not None:
            self._drop(watched)
        self._peer.answer(command.id, Ack(id=command.id, status="accepted" if watched else "not_found"))

    def _drop(self, watched: Watched) -> None:
        if watched.task is not None:
            watched.task.cancel()
        self._peer.outbox.remove(watched)
        if not watched.is_answered:  # its task was stopped before it could
            watched.is_answered = True
            self._peer.answer(watched.id, Ack(id=watched.id, status="accepted"))

    async def _follow(self, name: str, watched: Watched, opening: tuple[asyncio.Task[None], ...]) -> None:
        topic = watched.topic
        try:
            if opening:
                await asyncio.wait(opening)
            await topic.poll()
            watched.is_answered = True
            self._peer.answer(watched.id, Ack(id=watched.id, status="accepted"))
            self._put(watched)
            while True:
                await asyncio.sleep(watched.every_s)
                try:
                    if await topic.poll():
                        self._put(watched)
                except NotFound:
                    raise
                except QrafError as error:  # a node that is being restarted; the next look may find it
                    log.info("%s: watch of %s: %s", self._peer.id, name, error)
        except Exception as error:
            if self._watches.get(name) is watched:
                del self._watches[name]
            self._peer.outbox.remove(watched)
            if watched.is_answered:
                self._peer.send(ErrorFrame(stream=topic.stream, error=error_body(error)))
                if not isinstance(error, QrafError):
                    log.exception("%s: the watch of %s failed", self._peer.id, name)
            else:
                watched.is_answered = True
                self._peer.fail(watched.id, error)

    def _put(self, watched: Watched) -> None:
        if not self._peer.put(watched):
            watched.topic.skipped += 1
            self._peer.meters.slow.labels("skipped").inc()


def topic_for(topic: str, service: TenantService, usage: Usage) -> Topic:
    """The topic by its name in `watch` (which was checked)."""
    if topic == "network":
        return NetworkWatch(service)
    if topic == "usage":
        return UsageWatch(service, usage)
    return SessionWatch(service, topic.removeprefix("session:"))


class NetworkWatch:
    """`network`: a snapshot, then the nodes that changed."""

    def __init__(self, service: TenantService) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._service = service
        self._sent: dict[str, NodeView] | None = None
        self._now: dict[str, NodeView] = {}

    async def poll(self) -> bool:
        """Look again."""
        self._now = {view.node: view for view in self._service.network()}
        return self._now != self._sent

    def frame(self) -> ServerFrame:
        """A snapshot first, then deltas against what was sent last."""
        self._seq += 1
        before, self._sent, skipped, self.skipped = self._sent, self._now, self.skipped, 0
        if before is None:
            topology = self._service.topology
            return NetworkSnapshot(
                stream=self.stream,
                seq=self._seq,
                topology=topology.name,
                nodes=tuple(self._now.values()),
                links=tuple(_link(link) for link in topology.links),
            )
        changed = tuple(view for name, view in self._now.items() if before.get(name) != view)
        return NetworkDelta(stream=self.stream, seq=self._seq, nodes=changed, skipped=skipped)


class SessionWatch:
    """`session:ID`: the figures of a session's state."""

    def __init__(self, service: TenantService, session: str) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._service, self._session = service, session
        self._sent: Figures | None = None
        self._now = Figures()

    async def poll(self) -> bool:
        """Ask the session's node; raises SessionNotFound when the session is gone."""
        self._now = await self._service.figures(self._session)
        return self._now != self._sent

    def frame(self) -> ServerFrame:
        """The newest figures."""
        self._seq += 1
        self._sent, skipped, self.skipped = self._now, self.skipped, 0
        return Metrics(stream=self.stream, seq=self._seq, session=self._session, state=self._now, skipped=skipped)


class UsageWatch:
    """`usage`: counts of this connection, and of its key's day, which are looked up once a second at most."""

    def __init__(self, service: TenantService, usage: Usage) -> None:
        self.stream, self.skipped, self._seq = _stream(), 0, 0
        self._usage, self._account = usage, service.account
        self._sent: tuple[Usage, UsageToday | None] | None = None
        self._today: UsageToday | None = None
        self._looked_at = float("-inf")

    async def poll(self) -> bool:
        """Look again."""
        now = asyncio.get_running_loop().time()
        if self._account is not None and now - self._looked_at >= _DAY_EVERY_S:
            self._looked_at = now
            day, used, held = await self._account.today()
            self._today = UsageToday(
                day=date_of(day), **msgspec.structs.asdict(used), held_items=held.items, held_bytes=held.bytes
            )
        return (self._usage, self._today) != self._sent

    def frame(self) -> ServerFrame:
        """The counts."""
        self._seq += 1
        mine, skipped, self.skipped = dataclasses.replace(self._usage), self.skipped, 0
        self._sent = mine, self._today
        return UsageFrame(
            stream=self.stream, seq=self._seq, skipped=skipped, today=self._today, **dataclasses.asdict(mine)
        )


_DAY_EVERY_S = 1.0


def _stream() -> str:
    return f"str_{ULID()}"


def _link(link: Any) -> dict[str, Any]:
    return dataclasses.asdict(link)
