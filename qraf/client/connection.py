"""What a client keeps over any number of sockets: commands that wait for answers, streams, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any, TypeVar

from qraf.client.inbox import Elsewhere, Gap, Inbox
from qraf.client.link import Framing, Link, server_error
from qraf.client.reconnect import Reconnect, can_repeat
from qraf.client.sent import Call, Run, Sent, Topic, lost_end, unrepeated
from qraf.client.urls import socket_url
from qraf.decode_frames import DecodeClose, DecodeRounds
from qraf.errors import ConnectionLost, InvalidRequest, ServerError, TimedOut
from qraf.frames import (
    Ack,
    Cancel,
    ClientFrame,
    ClientInfo,
    Enhance,
    ErrorFrame,
    Hello,
    Metrics,
    NetworkDelta,
    NetworkSnapshot,
    ResponseCreated,
    ResponseDelta,
    ResponseDone,
    Resume,
    ServerFrame,
    UsageFrame,
    Watch,
    Welcome,
)

__all__ = ["Connection", "Framing"]

T = TypeVar("T")
_MAX_RESUMED = 64  # as many as one hello may name


class Connection:
    """The transport of a client. `open` once, `close` any number of times.

    Every waiting call ends: with its answer, with `ServerError`, with `TimedOut`, or with `ConnectionLost`. When the
    socket breaks, a new one is opened (unless `reconnect` is None): responses go on where they were, commands that may
    be repeated are sent again in their order, watches begin anew; what may not be repeated ends with `ConnectionLost`,
    and so does everything when there is no way back.
    """

    def __init__(
        self,
        url: str,
        *,
        framing: Framing = "msgpack",
        coalesce_ms: int = 15,
        open_timeout_s: float = 10.0,
        timeout_s: float = 180.0,
        heartbeat_s: float | None = None,
        reconnect: Reconnect | None = None,
        client: ClientInfo,
        api_key: str | None = None,
    ) -> None:
        self.url, self.timeout_s, self.reconnect = socket_url(url), timeout_s, reconnect
        self._framing, self._coalesce_ms, self._client = framing, coalesce_ms, client
        self._open_timeout_s, self._heartbeat_s = open_timeout_s, heartbeat_s
        self._api_key = api_key
        self._link: Link | None = None
        self._is_up = asyncio.Event()  # commands can be sent; also set at the end, for those who wait
        self._is_opened = False
        self._comeback: asyncio.Task[None] | None = None
        self._attempt = 0
        self._numbers = itertools.count(1)
        self._calls: dict[str, Call] = {}
        self._starting: dict[str, Run] = {}  # by command id, until `response.created` names the stream
        self._runs: dict[str, Run] = {}
        self._topics: dict[str, Topic] = {}
        self._decoders: dict[str, Inbox] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._parting: list[str] = []  # to cancel when there is a socket again
        self._lost: ConnectionLost | None = None
        self.reconnects = 0
        self.welcome: Welcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket at the moment."""
        return self._link is not None and self._lost is None

    # -------------------------------------------------------------------------------------------------- life
    async def open(self) -> Welcome:
        """Connect, say hello, and start reading. The first time is not repeated.

        Cancel: safe, the socket closes. Twice: refused.

        Raises:
            CannotConnect: nobody listens, or nobody that speaks `qraf.v1`.
            ServerError: the server refused the hello.
        """
        if self._is_opened:
            raise InvalidRequest("this client is connected already, or was; make a new one")
        self._is_opened = True
        try:
            link = self._new_link()
            welcome = await self._connect(link)
        except BaseException:
            self._is_opened = False
            raise
        self._is_up.set()
        return welcome

    async def close(self) -> None:
        """Cancel what still streams, then close the socket; calls that wait get `ConnectionLost`. Twice: harmless."""
        link = self._link
        if link is not None:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(2):
                    for target in (*self._starting, *self._runs):
                        await link.send(Cancel(id=self.next_id(), target=target))
        self._end(ConnectionLost(self.url, "closed by this client"))
        if link is not None:
            await link.close()
        if self._comeback is not None:
            self._comeback.cancel()
            await asyncio.gather(self._comeback, return_exceptions=True)

    # -------------------------------------------------------------------------------------------------- commands
    def next_id(self) -> str:
        """A command id that was not used by this client."""
        return f"c{next(self._numbers)}"

    async def send(self, frame: ClientFrame) -> None:
        """Send without waiting for an answer; waits while the server does not read, or until there is a socket.

        Raises:
            ConnectionLost: there is none, and will be none; or it broke meanwhile.
        """
        await (await self._socket()).send(frame)

    async def request(self, frame: ClientFrame, answer: type[T], timeout_s: float | None = None) -> T:
        """Send a command and wait for its answer.

        Cancel: safe; the answer is dropped when it comes.

        Raises:
            ServerError: the server answered with an error.
            ConnectionLost: the connection ended before the answer came, and the command may not be repeated.
            TimedOut: no answer in time.
        """
        timeout_s = timeout_s or self.timeout_s
        call = self._calls[frame.id] = Call(frame, answer)
        try:
            async with asyncio.timeout(timeout_s):
                await self._put(call)
                got = await call.future
        except TimeoutError:
            raise TimedOut(f"the answer to `{frame.__struct_config__.tag}`", timeout_s) from None
        finally:
            self._calls.pop(frame.id, None)
            call.see()
        assert isinstance(got, answer)
        return got

    # -------------------------------------------------------------------------------------------------- streams
    async def start(self, command: Enhance, inbox: Inbox) -> None:
        """Start a response; its frames go to `inbox`, over as many sockets as it takes."""
        run = self._starting[command.id] = Run(command, inbox)
        try:
            await self._put(run)
        except BaseException:
            self.leave(inbox)
            raise

    async def cancel(self, target: str) -> None:
        """Ask the server to stop a response, at once or when there is a socket again."""
        if self._link is not None:
            with contextlib.suppress(ConnectionLost):
                await self._link.send(Cancel(id=self.next_id(), target=target))
                return
        if self._lost is None:
            self._parting = [*self._parting[-_MAX_RESUMED:], target]

    def expect_decoder(self, stream: str, inbox: Inbox) -> None:
        """The end of this decoder goes to `inbox`."""
        self._decoders[stream] = inbox

    def expect_topic(self, watch: Watch, inbox: Inbox) -> None:
        """Frames of a watched topic go to `inbox`; one watch per topic and client."""
        if watch.topic in self._topics:
            raise InvalidRequest(f"topic '{watch.topic}' is watched already on this connection", "/topic")
        self._topics[watch.topic] = Topic(watch, inbox)

    def leave(self, inbox: Inbox) -> None:
        """Forget an inbox; frames that still come for it are dropped."""
        tables: tuple[dict[str, Any], ...] = (self._starting, self._runs, self._topics)
        for table in tables:
            for key in [key for key, one in table.items() if one.inbox is inbox]:
                del table[key]
        for stream in [stream for stream, one in self._decoders.items() if one is inbox]:
            del self._decoders[stream]

    # -------------------------------------------------------------------------------------------------- sockets
    def _new_link(self) -> Link:
        return Link(
            self.url,
            self._framing,
            self._heartbeat_s,
            api_key=self._api_key,
            take=self._dispatch,
            lost=self._on_lost,
        )

    async def _connect(self, link: Link) -> Welcome:
        resume = [Resume(stream=name, epoch=run.epoch, after_seq=run.seq) for name, run in self._runs.items()]
        hello = Hello(
            id="hello", client=self._client, coalesce_ms=self._coalesce_ms, resume=tuple(resume[:_MAX_RESUMED])
        )
        welcome = await link.open(hello, self._open_timeout_s)
        if self._lost is not None:  # closed meanwhile
            await link.close()
            raise self._lost
        results = {one.stream: one.result for one in welcome.resumed}
        for wanted in resume:
            run, result = self._runs.get(wanted.stream), results.get(wanted.stream)
            if run is None:  # left meanwhile
                self._parting.append(wanted.stream)
            elif result in ("gap", "elsewhere"):
                run.has_gap = True
                run.inbox.put(Gap() if result == "gap" else Elsewhere())
            elif result == "expired" and not run.has_text and self._may_repeat(run):
                # its gateway died before it told anybody: it is asked for again with what else was not answered
                del self._runs[wanted.stream]
                run.epoch, run.seq, run.has_gap = "", 0, False
                self._starting[run.frame.id] = run
            elif result != "replayed":
                self._give_up(wanted.stream, run)
        self._link, self.welcome = link, welcome
        link.start()
        return welcome

    def _give_up(self, stream: str, run: Run) -> None:
        """The server does not know a response any more: it ends here, once, as failed."""
        del self._runs[stream]
        run.inbox.put(lost_end(stream, run.seq + 1))

    def _on_lost(self, link: Link, lost: ConnectionLost) -> None:
        if link is not self._link or self._lost is not None:
            return
        self._link = None
        self._is_up.clear()
        if self.reconnect is None or link.is_final:
            self._end(lost)
            return
        for inbox in self._decoders.values():
            inbox.close(lost)
        self._decoders.clear()
        for call in self._calls.values():
            if call.sends and not self._may_repeat(call):
                call.fail(unrepeated(call, lost))
        for run in list(self._starting.values()):
            if run.sends and not self._may_repeat(run):
                run.inbox.close(unrepeated(run, lost))
                self.leave(run.inbox)
        if link.is_proven:
            self._attempt = 0
        self._comeback = asyncio.create_task(self._come_back(lost, link.reconnect_after_s))

    async def _come_back(self, lost: ConnectionLost, at_least_s: float) -> None:
        assert self.reconnect is not None
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.reconnect.give_up_s
        while True:
            await asyncio.sleep(self.reconnect.pause_s(self._attempt, at_least_s))
            self._attempt, at_least_s = self._attempt + 1, 0.0
            link = self._new_link()
            try:
                await self._connect(link)
                break
            except ServerError as error:
                is_final, reason, close = not error.can_retry, str(error), None
            except ConnectionLost as error:  # or CannotConnect
                is_final, reason, close = link.is_final, error.reason, error.close
            if is_final or loop.time() >= give_up_at:
                self._end(ConnectionLost(self.url, f"{lost.reason}; no way back: {reason}", close or lost.close))
                return
        self.reconnects += 1
        with contextlib.suppress(ConnectionLost):  # it broke again: another comeback has begun
            await self._send_again(link)
            if self._link is link:
                self._is_up.set()

    async def _send_again(self, link: Link) -> None:
        """Repeat what was sent and not answered, in its order, before anything new is sent."""
        for one in [one for one in (*self._calls.values(), *self._starting.values()) if one.sends]:
            if not one.is_settled:
                one.repeat()
                await link.send(one.frame)
        for topic in [topic for topic in self._topics.values() if topic.stream]:
            topic.watch_id = self.next_id()
            await link.send(Watch(id=topic.watch_id, topic=topic.watch.topic, every_ms=topic.watch.every_ms))
        while self._parting:
            await link.send(Cancel(id=self.next_id(), target=self._parting[-1]))
            self._parting.pop()

    def _ask_again(self, run: Run, link: Link | None) -> None:
        """A response that was begun on another gateway: ask this one until it has ended; over a new socket it was."""
        if link is not None and self._link is link and self._starting.get(run.frame.id) is run:
            task = asyncio.create_task(link.send(run.frame))
            self._asking.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # the connection broke: everything is sent again

    def _may_repeat(self, one: Sent) -> bool:
        return self.reconnect is not None and one.sends < self.reconnect.max_sends and can_repeat(one.frame)

    async def _socket(self) -> Link:
        while self._lost is None:
            if not self._is_opened:
                raise ConnectionLost(self.url, "not connected; use `async with`")
            if self._link is not None and self._is_up.is_set():
                return self._link
            await self._is_up.wait()
        raise self._lost

    async def _put(self, one: Sent) -> None:
        link = await self._socket()
        if isinstance(one.frame, DecodeRounds | DecodeClose) and one.frame.stream not in self._decoders:
            raise ConnectionLost(self.url, "the connection of this decoder broke; its rounds are not resumed")
        one.sends += 1
        try:
            await link.send(one.frame)
        except ConnectionLost:
            if self._lost is not None:
                raise self._lost from None
            # it is sent again, or was ended, by whoever noticed

    # -------------------------------------------------------------------------------------------------- frames
    def _dispatch(self, frame: ServerFrame) -> None:
        match frame:
            case ErrorFrame():
                self._on_error(frame)
            case Ack(status="queued"):
                pass  # it waits for room; its answer is still to come
            case ResponseCreated():
                run = self._starting.pop(frame.id, None)
                if run is not None:
                    self._runs[frame.stream] = run
                    run.epoch = frame.epoch
                self._deliver_run(frame)
            case NetworkSnapshot() | NetworkDelta():
                self._deliver_topic("network", frame)
            case Metrics():
                self._deliver_topic(f"session:{frame.session}", frame)
            case UsageFrame():
                self._deliver_topic("usage", frame)
            case _ if getattr(frame, "stream", "") in self._runs:
                self._deliver_run(frame)
            case _:
                call = self._calls.get(getattr(frame, "id", ""))
                if call is not None:
                    call.take(frame)
                inbox = self._decoders.get(getattr(frame, "stream", ""))
                if inbox is not None and not hasattr(frame, "id") and not inbox.put(frame):
                    self.leave(inbox)

    def _deliver_topic(self, name: str, frame: ServerFrame) -> None:
        topic = self._topics.get(name)
        if topic is not None:
            topic.stream = getattr(frame, "stream", "")
            if not topic.inbox.put(frame):
                self.leave(topic.inbox)

    def _deliver_run(self, frame: Any) -> None:
        """Pass on what is new; what was seen before the socket broke is dropped, what is missing is told."""
        run = self._runs.get(frame.stream)
        if run is None or frame.seq <= run.seq:
            return
        if frame.seq > run.seq + 1 and not run.has_gap:
            run.inbox.put(Gap())
        run.seq, run.has_gap, run.has_text = frame.seq, False, run.has_text or isinstance(frame, ResponseDelta)
        if isinstance(frame, ResponseDone):
            del self._runs[frame.stream]
        if not run.inbox.put(frame):
            self.leave(run.inbox)

    def _on_error(self, frame: ErrorFrame) -> None:
        error = server_error(frame.error)
        if error.error_code == "runs_elsewhere" and frame.id in self._starting:
            pause_s = (error.retry_after_ms or 500) / 1000
            asyncio.get_running_loop().call_later(pause_s, self._ask_again, self._starting[frame.id], self._link)
            return
        call = self._calls.get(frame.id) if frame.id else None
        if call is not None:
            call.fail(error)
            return
        owners: list[Any] = [self._starting.get(frame.id), self._runs.get(frame.stream)]
        owners += [topic for topic in self._topics.values() if topic.is_meant(frame.id, frame.stream)]
        inbox = next((one.inbox for one in owners if one is not None), self._decoders.get(frame.stream))
        if inbox is not None:
            inbox.close(error)
            self.leave(inbox)

    def _end(self, lost: ConnectionLost) -> None:
        if self._lost is not None:
            return
        self._lost, self._link = lost, None
        for call in self._calls.values():
            call.fail(lost)
        inboxes = [one.inbox for table in (self._starting, self._runs) for one in table.values()]
        for inbox in (*inboxes, *(topic.inbox for topic in self._topics.values()), *self._decoders.values()):
            inbox.close(lost)
        for table in (self._starting, self._runs, self._topics, self._decoders):
            table.clear()
        self._is_up.set()
