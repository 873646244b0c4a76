"""A small OpenAI-compatible server that says what it is told: known tokens at a known pace, and every kind of fault.

In a thread: `with OpenAIServer(Script(tokens_per_s=50)) as server: server.endpoint`. As a process of its own, for the
stream benchmark: `python -m tests.openai_server --per-write 16`, which prints its URL and serves until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any

from qraf.text.generator import Endpoint

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many", 500: "Broken"}


@dataclass
class Script:
    """What the next requests get. Token i is `words[i % len(words)]`, or " t<i>" without words."""

    words: tuple[str, ...] = ()
    num_tokens: int | None = None  # None: as many as `max_tokens` asks for
    tokens_per_s: float | None = None  # None: as fast as the reader takes them
    per_write: int = 1  # deltas that leave together
    delay_s: float = 0.0  # before the first token
    status: int = 200
    error_body: str = '{"error":{"message":"refused by the script","type":"test"}}'
    close_after: int | None = None  # tokens, then the connection breaks
    error_after: int | None = None  # tokens, then an error event
    stall_after: int | None = None  # tokens, then silence
    garbage_after: int | None = None  # tokens, then an event that is no JSON
    has_finish: bool = True
    has_usage: bool = True
    has_done: bool = True
    newline: bytes = b"\n"

    def token(self, i: int) -> str:
        return self.words[i % len(self.words)] if self.words else f" t{i}"

    def text(self, num: int) -> str:
        return "".join(self.token(i) for i in range(num))


class OpenAIServer:
    """Serves `script`, which may be changed between requests. `produced` counts tokens written, over all requests."""

    def __init__(self, script: Script | None = None, api_key: str = "", port: int = 0) -> None:
        self.script = script or Script()
        self.api_key = api_key
        self.port = port
        self.produced = 0
        self.running = 0
        self.max_running = 0
        self.connections = 0
        self.requests: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="openai-server", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, "scripted", self.api_key)

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(15)
            assert not self._thread.is_alive(), "it still answers"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()
        # what still runs is cancelled by the runner

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/health":
            return await self._reply(writer, 200, '{"status":"ok"}')
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            return await self._reply(writer, 401, '{"error":{"message":"Invalid API Key","code":401}}')
        if path == "/v1/models":
            return await self._reply(writer, 200, '{"object":"list","data":[{"id":"scripted","object":"model"}]}')
        if (method, path) != ("POST", "/v1/chat/completions"):
            return await self._reply(writer, 404, '{"detail":"Not Found"}')
        request = json.loads(body)
        self.requests.append(request)
        script = self.script
        if script.status != 200:
            return await self._reply(writer, script.status, script.error_body)
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        answer = asyncio.ensure_future(self._answer(script, request, writer))
        gone = asyncio.ensure_future(reader.read(1))  # nothing more is due: it returns when the client leaves
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            return answer.done() and not gone.done() and answer.result()
        finally:
            self.running -= 1
            for task in (answer, gone):
                task.cancel()
            # `await task` would take a cancel of this connection, when the server stops, for one of the task
            await asyncio.wait({answer, gone})
            for task in (answer, gone):
                if not task.cancelled():
                    task.exception()  # a connection that broke is no news

    async def _reply(self, writer: asyncio.StreamWriter, status: int, body: str) -> bool:
        data = body.encode()
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True

    async def _answer(self, script: Script, request: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Stream the script; returns whether the connection can serve again."""
        end = script.newline
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        writer.write(_chunk(_event({"delta": {"role": "assistant", "content": None}}, end)))
        await writer.drain()
        if script.delay_s:
            await asyncio.sleep(script.delay_s)
        total = script.num_tokens if script.num_tokens is not None else int(request.get("max_tokens", 16))
        stops = [
            at
            for at in (script.close_after, script.error_after, script.stall_after, script.garbage_after)
            if at is not None
        ]
        total = min([total, *stops])
        # all but the token's text is the same in every event
        before, after = _event({"delta": {"content": "@"}, "finish_reason": None}, end).split(b'"@"')
        start = self._loop.time()
        sent = 0
        while sent < total:
            n = min(script.per_write, total - sent)
            if script.tokens_per_s:
                await asyncio.sleep(max(0.0, start + (sent + n) / script.tokens_per_s - self._loop.time()))
            words = [before + json.dumps(script.token(i)).encode() + after for i in range(sent, sent + n)]
            writer.write(_chunk(b"".join(words)))
            sent += n
            self.produced += n
            await writer.drain()
            if not script.tokens_per_s:
                await asyncio.sleep(0)  # a fast reader must not keep the other streams waiting
        if sent == script.close_after:
            writer.transport.abort()
            return False
        if sent == script.stall_after:
            await asyncio.Event().wait()
        if sent == script.error_after:
            writer.write(_chunk(b'data: {"error":{"code":500,"message":"broke by script"}}' + end + end))
        elif sent == script.garbage_after:
            writer.write(_chunk(b"data: {not json" + end + end))
        else:
            self._finish(script, request, sent, writer)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _finish(self, script: Script, request: dict[str, Any], sent: int, writer: asyncio.StreamWriter) -> None:
        end = script.newline
        if script.has_finish:
            is_cut = sent >= int(request.get("max_tokens", 16))
            writer.write(_chunk(_event({"delta": {}, "finish_reason": "length" if is_cut else "stop"}, end)))
        if script.has_usage:
            words = sum(len(str(message.get("content", "")).split()) for message in request["messages"])
            usage = {"prompt_tokens": words, "completion_tokens": sent, "prompt_tokens_details": {"cached_tokens": 1}}
            writer.write(_chunk(_data({"choices": [], "usage": usage, "timings": {"predicted_n": sent}}, end)))
        if script.has_done:
            writer.write(_chunk(b": a comment" + end + b"data: [DONE]" + end + end))


def _event(choice: dict[str, Any], end: bytes) -> bytes:
    return _data({"choices": [{"index": 0, **choice}], "object": "chat.completion.chunk", "model": "scripted"}, end)


def _data(body: dict[str, Any], end: bytes) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + end + end


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--per-write", type=int, default=1)
    parser.add_argument("--tokens-per-s", type=float)
    choice = parser.parse_args()
    with OpenAIServer(Script(per_write=choice.per_write, tokens_per_s=choice.tokens_per_s), port=choice.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _main()
