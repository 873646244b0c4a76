"""The synchronous twin: the same names, run by an event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from msgspec import UNSET, UnsetType

from qraf.client.client import DEFAULT_URL, Client, WatchFrame
from qraf.client.connection import Framing
from qraf.client.items import Items
from qraf.client.reconnect import Reconnect
from qraf.client.rest import Json
from qraf.client.sync_decoding import SyncDecoding
from qraf.client.sync_parts import LoopThread, SyncItemsApi, SyncResponse, SyncSessionsApi, SyncWriter, made
from qraf.client.sync_services import SyncServiceCalls
from qraf.client.sync_states import SyncStatesApi
from qraf.code_orders import CodeExperiment
from qraf.errors import InvalidRequest
from qraf.frames import (
    EvidenceChoice,
    GenerateChoice,
    MetricsChoice,
    RecallDone,
    RouteChoice,
    SessionOpened,
    Welcome,
    WriteDone,
)
from qraf.records import Filter

__all__ = ["SyncClient", "connect_sync"]


class SyncClient(SyncServiceCalls):
    """`Client` for programs without an event loop: `with qraf.connect_sync(url) as q:`. Threads may share one."""

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
        self._loop = LoopThread()
        try:
            self._client = self._loop.call(
                made(
                    lambda: Client(
                        url,
                        framing=framing,
                        coalesce_ms=coalesce_ms,
                        timeout_s=timeout_s,
                        open_timeout_s=open_timeout_s,
                        heartbeat_s=heartbeat_s,
                        api_key=api_key,
                        reconnect=reconnect,
                    )
                )
            )
        except BaseException:
            self._loop.stop()
            raise
        self.sessions = SyncSessionsApi(self._loop, self._client.sessions)
        self.items = SyncItemsApi(self._loop, self._client.items)
        self.state = SyncStatesApi(self._loop, self._client.state)

    def open(self) -> Self:
        """Connect; `with` does it. Raises `CannotConnect` or `ServerError`, and ends the client's thread then."""
        try:
            self._loop.call(self._client.__aenter__())
        except BaseException:
            self._loop.stop()
            raise
        return self

    def close(self) -> None:
        """Close the connection and end the thread. Twice: nothing more happens."""
        try:
            self._loop.call(self._client.close())
        except InvalidRequest:
            return
        finally:
            self._loop.stop()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether the socket is connected at the moment."""
        return self._client.is_open

    @property
    def reconnects(self) -> int:
        """How often a broken connection was opened again."""
        return self._client.reconnects

    @property
    def welcome(self) -> Welcome:
        """What the server said at the start."""
        return self._client.welcome

    def open_session(
        self,
        session: str | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        ttl_s: float | None = None,
        create: bool = True,
        bits: int | None = None,
        budget_bytes: int | None = None,
    ) -> SessionOpened:
        """Open a session; without a name the server makes one."""
        return self._loop.call(
            self._client.open_session(
                session, metadata=metadata, ttl_s=ttl_s, create=create, bits=bits, budget_bytes=budget_bytes
            )
        )

    def configure_session(
        self,
        session: str,
        *,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> Json:
        """Change the bits and the byte budget of a session's memory; None: as its node says."""
        return self._loop.call(self._client.configure_session(session, bits=bits, budget_bytes=budget_bytes, rank=rank))

    def write(
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
        """Write a text, an item, or an iterable of them; `progress` is called in the client's thread."""
        return self._loop.call(
            self._client.write(
                items,
                session=session,
                collection=collection,
                batch=batch,
                window=window,
                retry_s=retry_s,
                progress=progress,
            )
        )

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
    ) -> SyncWriter:
        """A stream of items into one memory."""
        return SyncWriter(
            self._loop,
            lambda: self._client.writer(
                session,
                collection=collection,
                batch=batch,
                window=window,
                linger_s=linger_s,
                retry_s=retry_s,
                keep_ids=keep_ids,
                progress=progress,
            ),
        )

    def recall(
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
        """Evidence for a text, by falling probability."""
        return self._loop.call(
            self._client.recall(
                text,
                session=session,
                collections=collections,
                k=k,
                token_budget=token_budget,
                filter=filter,
                as_of=as_of,
                max_visits=max_visits,
                explain=explain,
            )
        )

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
    ) -> SyncResponse:
        """Prompt in, routed evidence and streamed text out."""
        response = self._loop.call(
            made(
                lambda: self._client.enhance(
                    prompt,
                    session=session,
                    collections=collections,
                    route=route,
                    evidence=evidence,
                    generate=generate,
                    remember=remember,
                    metrics=metrics,
                )
            )
        )
        return SyncResponse(self._loop, response)

    def decode(
        self,
        experiment: CodeExperiment | Mapping[str, Any] | None = None,
        *,
        dem: str | None = None,
        shots: int = 1,
        window: int | None = None,
        commit: int | None = None,
        count: bool = False,
    ) -> SyncDecoding:
        """A decoder for rounds of detectors that come in one after the other; give `experiment` or `dem`."""
        decoding = self._loop.call(
            made(
                lambda: self._client.decode(experiment, dem=dem, shots=shots, window=window, commit=commit, count=count)
            )
        )
        return SyncDecoding(self._loop, decoding)

    def cancel(self, target: str) -> bool:
        """Stop a response by its stream or id; False when there is none that runs."""
        return self._loop.call(self._client.cancel(target))

    def watch(self, topic: str = "network", *, every_ms: int = 1000) -> Generator[WatchFrame]:
        """Follow `network`, `usage` or `session:ID` until the loop is left."""
        return self._loop.iterate(self._client.watch(topic, every_ms=every_ms))

    def ping(self) -> float:
        """The time to the server and back, in seconds."""
        return self._loop.call(self._client.ping())

    def topology(self) -> Json:
        """The network as the server runs it."""
        return self._loop.call(self._client.topology())

    def route(self, prompt: str, *, session: str | None = None) -> Json:
        """Where a prompt would go and why."""
        return self._loop.call(self._client.route(prompt, session=session))

    def response(self, id: str) -> Json:
        """A response by its id, with its whole text."""
        return self._loop.call(self._client.response(id))

    def health(self) -> Json:
        """The server's own report."""
        return self._loop.call(self._client.health())

    def metrics(self) -> str:
        """The server's metrics in Prometheus' text format."""
        return self._loop.call(self._client.metrics())


def connect_sync(
    url: str = DEFAULT_URL,
    *,
    framing: Framing = "msgpack",
    coalesce_ms: int = 15,
    timeout_s: float = 180.0,
    open_timeout_s: float = 10.0,
    heartbeat_s: float | None = None,
    api_key: str | None = None,
    reconnect: Reconnect | bool = True,
) -> SyncClient:
    """A synchronous client for `with`; the arguments are those of `Client`."""
    return SyncClient(
        url,
        framing=framing,
        coalesce_ms=coalesce_ms,
        timeout_s=timeout_s,
        open_timeout_s=open_timeout_s,
        heartbeat_s=heartbeat_s,
        api_key=api_key,
        reconnect=reconnect,
    )
