"""What the synchronous client is made of: a loop in a thread, and the twins of response, writer and REST nouns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec import UNSET, UnsetType

from qraf.client.items import Writable
from qraf.client.response import Response
from qraf.client.rest import ItemsApi, Json, SessionsApi
from qraf.client.writer import Writer
from qraf.errors import InvalidRequest
from qraf.frames import (
    EvidenceOut,
    ResponseCreated,
    ResponseDone,
    ResponseHop,
    ResponseRoute,
    ServerFrame,
    WriteDone,
)
from qraf.records import Filter

__all__ = ["LoopThread", "SyncItemsApi", "SyncResponse", "SyncSessionsApi", "SyncWriter", "made"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread; `call` runs a coroutine there and waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="qraf-client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end; Ctrl-C cancels it there."""
        if not self._thread.is_alive():
            work.close()
            raise InvalidRequest("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T]) -> Generator[T]:
        """Step through an asynchronous generator; leaving the loop closes it."""
        try:
            while True:
                try:
                    yield self.call(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            if self._thread.is_alive():
                self.call(source.aclose())

    def stop(self) -> None:
        """End the thread. Twice: nothing more happens."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


class SyncResponse:
    """`Response` for a plain `for` loop; leaving the loop cancels it at the server."""

    def __init__(self, loop: LoopThread, response: Response) -> None:
        self._loop, self._response = loop, response

    def __iter__(self) -> Generator[ServerFrame]:
        return self._loop.iterate(self._response.__aiter__())

    def texts(self) -> Generator[str]:
        """Yield the pieces of generated text as they come."""
        return self._loop.iterate(self._response.texts())

    def result(self) -> ResponseDone:
        """Read to the end and return it; raises `ServerError` when the response failed."""
        return self._loop.call(self._response.result())

    def cancel(self) -> None:
        """Ask the server to stop. Harmless when late."""
        self._loop.call(self._response.cancel())

    @property
    def id(self) -> str:
        """The response's id; empty until it was created."""
        return self._response.id

    @property
    def created(self) -> ResponseCreated | None:
        """The first frame."""
        return self._response.created

    @property
    def route(self) -> ResponseRoute | None:
        """Where the prompt went."""
        return self._response.route

    @property
    def hops(self) -> list[ResponseHop]:
        """What each node answered."""
        return self._response.hops

    @property
    def evidence(self) -> tuple[EvidenceOut, ...]:
        """What went to the model."""
        return self._response.evidence

    @property
    def coverage(self) -> float:
        """The probability that the evidence holds together."""
        return self._response.coverage

    @property
    def text(self) -> str:
        """The text until now."""
        return self._response.text

    @property
    def done(self) -> ResponseDone | None:
        """The end, once it has come."""
        return self._response.done


class SyncWriter:
    """`Writer` for a plain `with` block."""

    def __init__(self, loop: LoopThread, make: Callable[[], Writer]) -> None:
        self._loop = loop
        self._writer = loop.call(made(make))  # made on the loop, where its parts belong

    @property
    def result(self) -> WriteDone:
        """What was written until now."""
        return self._writer.result

    def add(self, item: Writable, **fields: Any) -> str:
        """Take one item and return its id; waits while the window is full."""
        return self._loop.call(self._writer.add(item, **fields))

    def flush(self) -> WriteDone:
        """Wait until everything that was added is durable and absorbed."""
        return self._loop.call(self._writer.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call(self._writer.__aexit__(kind, error, trace))


class SyncSessionsApi:
    """`/v1/sessions`."""

    def __init__(self, loop: LoopThread, api: SessionsApi) -> None:
        self._loop, self._api = loop, api

    def list(self, *, limit: int = 50, cursor: str | None = None) -> Json:
        """A page of sessions."""
        return self._loop.call(self._api.list(limit=limit, cursor=cursor))

    def get(self, session: str) -> Json:
        """A session with its figures."""
        return self._loop.call(self._api.get(session))

    def configure(
        self,
        session: str,
        *,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> Json:
        """Change the bits and the byte budget of a session's memory; None: as its node says."""
        return self._loop.call(self._api.configure(session, bits=bits, budget_bytes=budget_bytes, rank=rank))

    def pause(self, session: str) -> Json:
        """Refuse writes and prompts until `resume`."""
        return self._loop.call(self._api.pause(session))

    def resume(self, session: str) -> Json:
        """End a pause."""
        return self._loop.call(self._api.resume(session))

    def delete(self, session: str) -> Json:
        """Erase a session and everything it remembers."""
        return self._loop.call(self._api.delete(session))


class SyncItemsApi:
    """`/v1/memory`: the items of a session or a collection."""

    def __init__(self, loop: LoopThread, api: ItemsApi) -> None:
        self._loop, self._api = loop, api

    def list(
        self, *, session: str | None = None, collection: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Json:
        """A page of items."""
        return self._loop.call(self._api.list(session=session, collection=collection, limit=limit, cursor=cursor))

    def get(self, item: str, *, session: str | None = None, collection: str | None = None) -> Json:
        """One item."""
        return self._loop.call(self._api.get(item, session=session, collection=collection))

    def delete(self, item: str, *, session: str | None = None, collection: str | None = None) -> Json:
        """Forget one item."""
        return self._loop.call(self._api.delete(item, session=session, collection=collection))

    def forget(
        self,
        *,
        session: str | None = None,
        collection: str | None = None,
        filter: Filter | Json,
        dry_run: bool = False,
    ) -> Json:
        """Forget every item that passes the filter; `dry_run` only counts them."""
        return self._loop.call(self._api.forget(session=session, collection=collection, filter=filter, dry_run=dry_run))


async def _next(source: AsyncGenerator[T]) -> T:
    return await anext(source)


async def made(make: Callable[[], T]) -> T:
    """Make a thing on the loop, where its parts belong."""
    return make()
