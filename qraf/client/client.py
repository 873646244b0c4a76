"""The asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from qraf import __version__
from qraf.client.connection import Connection, Framing
from qraf.client.credentials import find_key
from qraf.client.decoding import Decoding, decode_command
from qraf.client.inbox import Inbox
from qraf.client.items import Items, each, new_id
from qraf.client.reconnect import Reconnect
from qraf.client.response import Response
from qraf.client.rest import ItemsApi, Json, Rest, SessionsApi
from qraf.client.services import ServiceCalls
from qraf.client.states import StatesApi
from qraf.client.writer import Writer
from qraf.code_orders import CodeExperiment
from qraf.errors import ConnectionLost, InvalidRequest, QrafError
from qraf.frames import (
    Ack,
    Cancel,
    ClientInfo,
    Enhance,
    EvidenceChoice,
    GenerateChoice,
    Metrics,
    MetricsChoice,
    NetworkDelta,
    NetworkSnapshot,
    Ping,
    Pong,
    Recall,
    RecallDone,
    RouteChoice,
    SessionOpen,
    SessionOpened,
    Unwatch,
    UsageFrame,
    Watch,
    Welcome,
    WriteDone,
)
from qraf.records import Filter

__all__ = ["DEFAULT_URL", "Client", "connect", "enhance_command"]

DEFAULT_URL = "ws://127.0.0.1:8642"
WatchFrame = NetworkSnapshot | NetworkDelta | Metrics | UsageFrame
Part = TypeVar("Part")


class Client(ServiceCalls):
    """A connection to a QRAF server: `async with qraf.connect(url) as q:`.

    Any number of tasks may use one client at once. Every call ends: with its answer, with `ServerError` (the server's
    own code and advice), with `TimedOut` after `timeout_s`, or with `ConnectionLost`. A connection that breaks is
    opened again unasked: responses go on where they were, commands that may be repeated are. `sessions`, `items` and
    `state` hold the REST calls of these nouns.

    Args:
        url: the server, as ws, wss, http or https address.
        framing: `msgpack` (small, fast) or `json` (readable in a trace).
        coalesce_ms: how long the server gathers deltas of text before it sends them, 0 to 100.
        timeout_s: the longest time that one answer, or the next frame of a response, may take.
        open_timeout_s: the longest time to connect.
        heartbeat_s: pause between pings; default: what the server asks for. A server that is silent for twice this
            time is taken for lost.
        api_key: an API key or a token; default: `QRAF_API_KEY`, or the key of a server that this user runs on this
            machine.
        reconnect: when to try again after the connection broke; False: never, then everything that waits ends with
            `ConnectionLost`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        framing: Framing = "msgpack",
        coalesce_ms: int = 15,
        timeout_s: float = 180.0,
        open_timeout_s: float = 10.0,
        heartbeat_s: float | None = None,
        api_key: str | None = None,
        reconnect: Reconnect | bool = True,
    ) -> None:
        api_key = find_key(url, api_key)
        policy = (Reconnect() if reconnect else None) if isinstance(reconnect, bool) else reconnect
        self._connection = Connection(
            url,
            framing=framing,
            coalesce_ms=coalesce_ms,
            open_timeout_s=open_timeout_s,
            timeout_s=timeout_s,
            heartbeat_s=heartbeat_s,
            reconnect=policy,
            client=ClientInfo(name="qraf-python", version=__version__),
            api_key=api_key,
        )
        self._rest = Rest(url, timeout_s=timeout_s, open_timeout_s=open_timeout_s, api_key=api_key, reconnect=policy)
        self.sessions = SessionsApi(self._rest)
        self.items = ItemsApi(self._rest)
        self.state = StatesApi(self._rest)

    # -------------------------------------------------------------------------------------------------- life
    async def open(self) -> Self:
        """Connect; `async with` does it. Raises `CannotConnect` or `ServerError`."""
        await self._connection.open()
        return self

    async def close(self) -> None:
        """Close; running responses are cancelled, waiting calls get `ConnectionLost`. Twice: nothing more happens."""
        await self._connection.close()
        await self._rest.close()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            await self._rest.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether the socket is connected at the moment."""
        return self._connection.is_open

    @property
    def reconnects(self) -> int:
        """How often a broken connection was opened again."""
        return self._connection.reconnects

    @property
    def welcome(self) -> Welcome:
        """What the server said at the start: its version, topology, limits."""
        if self._connection.welcome is None:
            raise ConnectionLost(self._connection.url, "not connected; use `async with`")
        return self._connection.welcome

    # -------------------------------------------------------------------------------------------------- commands
    async def open_session(
        self,
        session: str | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        ttl_s: float | None = None,
        create: bool = True,
        bits: int | None = None,
        budget_bytes: int | None = None,
    ) -> SessionOpened:
        """Open a session; without a name the server makes one. `create=False` refuses one that is not there.

        `bits` and `budget_bytes` are the precision of its memory's codes and the most that this memory may hold.
        """
        if session is None and create:
            session = new_id("ses")  # named here, so that asking twice makes one
        frame = SessionOpen(
            id=self._connection.next_id(),
            session=session,
            metadata=metadata or {},
            ttl_s=ttl_s,
            create=create,
            bits=bits,
            budget_bytes=budget_bytes,
        )
        return await self._connection.request(frame, SessionOpened)

    async def configure_session(
        self,
        session: str,
        *,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> Json:
        """Change bits (32, 8, 4, 2, 1), byte budget and rank of a session's memory; the session with its figures.

        None: as its node says; what is left out stays. Below what is stored the codes are used, above it the texts are
        encoded again, some milliseconds each; the memory answers meanwhile.
        """
        return await self.sessions.configure(session, bits=bits, budget_bytes=budget_bytes, rank=rank)

    async def write(
        self,
        items: Items,
        *,
        session: str | None = None,
        collection: str | None = None,
        batch: int = 32,
        window: int = 8,
        retry_s: float = 60.0,
        progress: Callable[[int], None] | None = None,
    ) -> WriteDone:
        """Write a text, an item, or an iterable (also asynchronous) of them; return when all is durable and absorbed.

        Items without an id get one, so that retries change nothing twice. `progress` is told how many items were done
        since the last time. What the server refuses for good is in `rejected`, by its place in `items`.
        """
        async with self.writer(
            session, collection=collection, batch=batch, window=window, retry_s=retry_s, progress=progress
        ) as writer:
            async for item in each(items):
                await writer.add(item)
            return await writer.flush()

    def writer(
        self,
        session: str | None = None,
        *,
        collection: str | None = None,
        batch: int = 32,
        window: int = 8,
        linger_s: float = 0.02,
        retry_s: float = 60.0,
        keep_ids: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Writer:
        """A stream of items into one memory; see `Writer`."""
        return Writer(
            self._connection,
            session=session,
            collection=collection,
            batch=batch,
            window=window,
            linger_s=linger_s,
            retry_s=retry_s,
            keep_ids=keep_ids,
            progress=progress,
        )

    async def recall(
        self,
        text: str,
        *,
        session: str | None = None,
        collections: Sequence[str] = (),
        k: int = 10,
        token_budget: int | None = None,
        filter: Filter | Json | None = None,
        as_of: str | float | None = None,
        max_visits: int | None = None,
        explain: bool = False,
    ) -> RecallDone:
        """Evidence for a text, by falling probability, with the route that led to it."""
        frame = Recall(
            id=self._connection.next_id(),
            session=session,
            collections=tuple(collections),
            text=text,
            k=k,
            token_budget=token_budget,
            filter=_part(filter, Filter),
            as_of=as_of,
            max_visits=max_visits,
            explain=explain,
        )
        return await self._connection.request(frame, RecallDone)

    def enhance(
        self,
        prompt: str,
        *,
        session: str | None = None,
        collections: Sequence[str] | None = None,
        route: RouteChoice | Json | None = None,
        evidence: EvidenceChoice | Json | None = None,
        generate: GenerateChoice | Json | Literal[False] | None = None,
        remember: bool = False,
        metrics: MetricsChoice | Json | None = None,
    ) -> Response:
        """Prompt in, routed evidence and streamed text out; see `Response`. Nothing is sent before it is read.

        `collections`: None means all of the topology, `[]` none. `generate=False` stops at the evidence.
        """
        command = enhance_command(
            self._connection.next_id(),
            prompt,
            session=session,
            collections=collections,
            route=route,
            evidence=evidence,
            generate=generate,
            remember=remember,
            metrics=metrics,
        )
        return Response(self._connection, msgspec.structs.replace(command, key=new_id("key")), self.response)

    def decode(
        self,
        experiment: CodeExperiment | Mapping[str, Any] | None = None,
        *,
        dem: str | None = None,
        shots: int = 1,
        window: int | None = None,
        commit: int | None = None,
        count: bool = False,
    ) -> Decoding:
        """A decoder for rounds of detectors that come in one after the other; see `Decoding`.

        `experiment` describes a code, `dem` is a detector error model in stim's text; give one of the two.
        """
        command = decode_command(
            self._connection.next_id(), experiment, dem=dem, shots=shots, window=window, commit=commit, count=count
        )
        return Decoding(self._connection, command)

    async def cancel(self, target: str) -> bool:
        """Stop a response by its stream or id; False when there is none that runs."""
        ack = await self._connection.request(Cancel(id=self._connection.next_id(), target=target), Ack)
        return ack.status == "accepted"

    async def watch(self, topic: str = "network", *, every_ms: int = 1000) -> AsyncGenerator[WatchFrame]:
        """Follow `network`, `usage` or `session:ID` until the loop is left; one watch per topic and client.

        After the connection broke it begins anew: a snapshot of the network again, `usage` from 0 again.
        A slow reader gets network deltas united and other frames skipped to the newest, so it never falls behind.
        """
        inbox = Inbox(soft=8)
        watch = Watch(id=self._connection.next_id(), topic=topic, every_ms=every_ms)
        self._connection.expect_topic(watch, inbox)
        try:
            await self._connection.request(watch, Ack)
            # a topic may rest for long; the heartbeat tells when the server is gone
            while (frame := await inbox.get(timeout_s=7 * 86400, what=f"topic '{topic}'")) is not None:
                assert isinstance(frame, WatchFrame)
                yield frame
        finally:
            self._connection.leave(inbox)
            with contextlib.suppress(QrafError, TimeoutError):
                async with asyncio.timeout(5):
                    await self._connection.send(Unwatch(id=self._connection.next_id(), topic=topic))

    async def ping(self) -> float:
        """The time to the server and back, in seconds."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        await self._connection.request(Ping(id=self._connection.next_id()), Pong)
        return loop.time() - start

    # -------------------------------------------------------------------------------------------------- REST
    async def topology(self) -> Json:
        """The network as the server runs it: nodes, links, ingress."""
        return await self._rest.call("GET", "/v1/topology")

    async def route(self, prompt: str, *, session: str | None = None) -> Json:
        """Where a prompt would go and why, without asking any node."""
        return await self._rest.call("GET", "/v1/topology/route", prompt=prompt, session=session)

    async def response(self, id: str) -> Json:
        """A response by its id, running or ended a short while ago, with its whole text."""
        return await self._rest.call("GET", f"/v1/responses/{id}")

    async def health(self) -> Json:
        """The server's own report; a server that is not ready is no error here."""
        return await self._rest.call("GET", "/v1/health", accept=(503,))

    async def metrics(self) -> str:
        """The server's metrics in Prometheus' text format."""
        return await self._rest.text("/metrics")


def connect(
    url: str = DEFAULT_URL,
    *,
    framing: Framing = "msgpack",
    coalesce_ms: int = 15,
    timeout_s: float = 180.0,
    open_timeout_s: float = 10.0,
    heartbeat_s: float | None = None,
    api_key: str | None = None,
    reconnect: Reconnect | bool = True,
) -> Client:
    """A client for `async with`; the arguments are those of `Client`."""
    return Client(
        url,
        framing=framing,
        coalesce_ms=coalesce_ms,
        timeout_s=timeout_s,
        open_timeout_s=open_timeout_s,
        heartbeat_s=heartbeat_s,
        api_key=api_key,
        reconnect=reconnect,
    )


def enhance_command(
    id: str,
    prompt: str,
    *,
    session: str | None = None,
    collections: Sequence[str] | None = None,
    route: RouteChoice | Json | None = None,
    evidence: EvidenceChoice | Json | None = None,
    generate: GenerateChoice | Json | Literal[False] | None = None,
    remember: bool = False,
    metrics: MetricsChoice | Json | None = None,
) -> Enhance:
    """The `enhance` frame of these choices.

    Raises:
        InvalidRequest: an unknown or mistyped choice, by its pointer.
    """
    return Enhance(
        id=id,
        session=session,
        prompt=prompt,
        collections=None if collections is None else tuple(collections),
        route=_part(route, RouteChoice, "/route") or RouteChoice(),
        evidence=_part(evidence, EvidenceChoice, "/evidence") or EvidenceChoice(),
        generate=False if generate is False else (_part(generate, GenerateChoice, "/generate") or GenerateChoice()),
        remember=remember,
        metrics=_part(metrics, MetricsChoice, "/metrics"),
    )


def _part(value: Part | Json | None, kind: type[Part], pointer: str = "/filter") -> Part | None:
    if value is None or isinstance(value, kind):
        return value
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), pointer) from None
