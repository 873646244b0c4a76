"""A small server that speaks `qraf.v1` by a script, so that the client is tested against faults no real server has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]
FIGURES: Frame = {"version": 1, "items": 1}
LIMITS: Frame = {
    "max_frame_bytes": 64 * 1024,
    "max_items_per_write": 16,
    "max_item_bytes": 4096,
    "max_inflight_writes": 8,
    "max_write_bytes_in_flight": 1 << 20,
    "max_responses": 8,
    "max_prompt_bytes": 4096,
    "max_k": 100,
    "max_tokens": 256,
}


class Peer:
    """The server's side of one connection."""

    def __init__(self, ws: ServerConnection, server: ScriptedServer) -> None:
        self.ws, self.server = ws, server
        self.is_json = ws.subprotocol == "qraf.v1"

    async def send(self, frame: Frame) -> None:
        data = msgspec.json.encode(frame).decode() if self.is_json else msgspec.msgpack.encode(frame)
        await self.ws.send(data)

    async def receive(self) -> Frame:
        data = await self.ws.recv()
        return msgspec.json.decode(data) if isinstance(data, str) else msgspec.msgpack.decode(data)

    async def welcome(self) -> None:
        hello = await self.receive()
        assert hello["type"] == "hello"
        await self.send(
            {
                "type": "welcome",
                "connection": "cn_1",
                "server": {"version": "test"},
                "heartbeat_ms": 20_000,
                "limits": LIMITS,
                "resumed": [
                    one | {"result": self.server.result} for one in hello.get("resume", ()) if self.server.result
                ],
                "a_field_of_tomorrow": 1,
            }
        )


Handler = Callable[[Peer, Frame], Awaitable[None]]


class ScriptedServer:
    """Answers each command with the handler for its type; `received` keeps everything."""

    def __init__(self, **handlers: Handler) -> None:
        self.handlers = {"ping": pong, **{name.replace("_", "."): handler for name, handler in handlers.items()}}
        self.received: list[Frame] = []
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.result = ""
        """What becomes of every response that a client wants to go on with; empty: it hears nothing of it."""
        self._changed = asyncio.Condition()
        self._server: Server | None = None

    def of(self, kind: str) -> list[Frame]:
        return [frame for frame in self.received if frame["type"] == kind]

    async def wait_for(self, kind: str, count: int = 1) -> list[Frame]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    async def serve_peer(self, ws: ServerConnection) -> None:
        peer = Peer(ws, self)
        self.peers.append(peer)
        with contextlib.suppress(ConnectionClosed):
            await peer.welcome()
            while True:
                frame = await peer.receive()
                async with self._changed:
                    self.received.append(frame)
                    self._changed.notify_all()
                handler = self.handlers.get(frame["type"])
                if handler is not None:
                    task = asyncio.create_task(self._guard(handler(peer, frame)))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)

    @staticmethod
    async def _guard(work: Awaitable[None]) -> None:
        with contextlib.suppress(ConnectionClosed):
            await work


@contextlib.asynccontextmanager
async def scripted(**handlers: Handler) -> AsyncIterator[ScriptedServer]:
    script = ScriptedServer(**handlers)
    async with serve(
        script.serve_peer, "127.0.0.1", 0, subprotocols=["qraf.v1+msgpack", "qraf.v1"], compression=None
    ) as server:
        host, port = server.sockets[0].getsockname()[:2]
        script.url = f"ws://{host}:{port}"
        try:
            yield script
        finally:
            for task in list(script.tasks):
                task.cancel()
            for peer in script.peers:
                peer.ws.transport.abort()


async def pong(peer: Peer, frame: Frame) -> None:
    await peer.send({"type": "pong", "id": frame["id"]})


async def write_done(peer: Peer, frame: Frame) -> None:
    await peer.send(
        {
            "type": "write.done",
            "id": frame["id"],
            "accepted": len(frame["items"]),
            "item_ids": [item["item_id"] for item in frame["items"]],
            "state_version": 1,
            "state": FIGURES,
        }
    )


def stamped(stream: str) -> Callable[..., Frame]:
    """A maker of the frames of one stream, with rising `seq`."""
    seq = 0

    def make(kind: str, **fields: Any) -> Frame:
        nonlocal seq
        seq += 1
        return {"type": kind, "stream": stream, "seq": seq, **fields}

    return make


def created(make: Callable[..., Frame], frame: Frame) -> Frame:
    return make("response.created", id=frame["id"], response=f"re_{frame['id']}", model="scripted")


async def answer(peer: Peer, frame: Frame, pieces: tuple[str, ...] = ("Hello", ", ", "world")) -> None:
    make = stamped(f"st_{frame['id']}")
    await peer.send({"type": "ack", "id": frame["id"], "status": "accepted"})
    await peer.send(created(make, frame))
    hop = {"node": "n1", "host": "h", "relevance": 1.0, "price": 0.1, "measured": True}
    await peer.send(make("response.route", hops=[hop], predicted_ms=1.0))
    await peer.send(make("response.hop", node="n1", ms=0.5, items_scanned=3, state=FIGURES))
    item = {"rank": 1, "item_id": "it_1", "node": "n1", "probability": 0.7, "score": 1.0, "text": "Hello world"}
    await peer.send(make("response.evidence", items=[item], coverage=0.7))
    for piece in pieces:
        await peer.send(make("response.delta", text=piece, tokens=1))
    await peer.send({"type": "response.tomorrow", "stream": "x", "seq": 1})
    await peer.send(make("response.done", status="completed", finish_reason="stop"))


def error(id: str, code: str, *, retryable: bool = False, pointer: str = "") -> Frame:
    body = {"code": code, "title": code, "detail": f"detail of {code}", "pointer": pointer, "retryable": retryable}
    return {"type": "error", "id": id, "error": body}
