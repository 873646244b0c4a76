"""One streaming client for every language model that speaks OpenAI's chat protocol: the embedded engine, or a URL.

Server-sent events are cut out of the bytes and decoded into typed records; what the protocol leaves open (role-only
first chunks, empty `choices`, timings, comments, a missing `[DONE]`) is met where it was seen in real servers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import msgspec

from qraf.errors import EngineFailed, LimitExceeded
from qraf.settings import GeneratorSettings
from qraf.text.transport import StreamTransport

__all__ = ["Endpoint", "Generator", "Lease", "Piece", "TokenUsage"]

_CONNECT_TIMEOUT_S = 10.0
_MAX_ERROR_BYTES = 65536
_MAX_LINE_BYTES = 1 << 20  # one event; a server that sends more without a line end is not one of ours
_RETRY_AFTER_MS = 1000
_OF_THE_PROMPT = (400, 413, 422)  # statuses by which servers refuse what is asked, not that it is asked now


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers: base URL up to and with `/v1`, its name there, and the key that opens it."""

    url: str
    model: str
    api_key: str = ""

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, model={self.model!r})"


Lease = Callable[[], AbstractAsyncContextManager[Endpoint]]
"""Where a model answers, held for as long as one answer streams."""


class TokenUsage(msgspec.Struct, frozen=True):
    """The server's own count; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Piece(msgspec.Struct, frozen=True):
    """Text that arrived together, in `tokens` tokens. Only the last one has `finish_reason`, and `usage` if it came."""

    text: str
    tokens: int
    finish_reason: str | None = None
    usage: TokenUsage | None = None


class Generator:
    """Streams answers from the model behind `endpoint`, which is asked anew for every request.

    At most `slots` requests run at once, `settings.max_waiting` more wait their turn, and what comes beyond is refused
    at once with `LimitExceeded`. Belongs to one event loop.

    Args:
        endpoint: where the model answers now.
        settings: limits and time-outs.
        lease: instead of `endpoint`, an endpoint for one answer, from several replicas for example.
        slots: requests that run at once; default: as many as the settings give one engine.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        settings: GeneratorSettings,
        *,
        lease: Lease | None = None,
        slots: int | None = None,
    ) -> None:
        self._endpoint, self._settings, self._lease = endpoint, settings, lease
        self._num_slots = slots or settings.slots
        self._slots = asyncio.Semaphore(self._num_slots)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            transport=StreamTransport(self._num_slots, _certificates()),
            trust_env=False,
        )
        self.running = 0
        self.waiting = 0

    async def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        model: str | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer as it is generated; the last piece carries `finish_reason`.

        Cancel: safe; leaving the iterator (`aclose`, use `contextlib.aclosing`) or cancelling the task closes the
        connection at once, by which the server stops generating.
        Twice: two calls are two independent answers.

        Raises:
            LimitExceeded: as many requests run and wait as may, or the wait took `first_token_timeout_s`.
            EngineFailed: no connection, an error status, an error in the stream, silence, or an end without an end.
        """
        body: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if stop:
            body["stop"] = list(stop)
        if seed is not None:
            body["seed"] = seed
        async with self._slot(), self._leased() as endpoint:
            body["model"] = model or endpoint.model
            async with aclosing(self._answer(endpoint, msgspec.json.encode(body), str(body["model"]))) as pieces:
                async for piece in pieces:
                    yield piece

    async def aclose(self) -> None:
        """Close every connection. Twice: nothing more happens."""
        await self._http.aclose()

    @asynccontextmanager
    async def _leased(self) -> AsyncGenerator[Endpoint, None]:
        if self._lease is None:
            yield self._endpoint()
            return
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._settings.first_token_timeout_s):
                    endpoint = await stack.enter_async_context(self._lease())
            except TimeoutError:
                raise LimitExceeded("slots", self._num_slots, self.running + 1, _RETRY_AFTER_MS) from None
            yield endpoint

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[None, None]:
        if self._slots.locked():
            if self.waiting >= self._settings.max_waiting:
                raise LimitExceeded("max_waiting", self._settings.max_waiting, self.waiting + 1, _RETRY_AFTER_MS)
            self.waiting += 1
            try:
                async with asyncio.timeout(self._settings.first_token_timeout_s):
                    await self._slots.acquire()
            except TimeoutError:
                raise LimitExceeded("slots", self._num_slots, self.running + 1, _RETRY_AFTER_MS) from None
            finally:
                self.waiting -= 1
        else:
            await self._slots.acquire()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    async def _answer(self, endpoint: Endpoint, body: bytes, model: str) -> AsyncGenerator[Piece, None]:
        deadline = asyncio.get_running_loop().time() + self._settings.first_token_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                try:
                    response = await self._send(endpoint, body)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    # a kept connection that the server has closed, or a server that is just being replaced
                    endpoint = endpoint if self._lease is not None else self._endpoint()
                    response = await self._send(endpoint, body)
        except TimeoutError:
            raise EngineFailed(model, self._silence("first_token_timeout_s")) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineFailed(model, f"no answer from {endpoint.url}: {_reason(error)}") from error
        try:
            if response.status_code != 200:
                status = response.status_code
                raise EngineFailed(model, f"HTTP {status}: {await _refusal(response)}", status in _OF_THE_PROMPT)
            async for piece in self._pieces(response, model, deadline):
                yield piece
        finally:
            await response.aclose()

    async def _send(self, endpoint: Endpoint, body: bytes) -> httpx.Response:
        # compressed, a stream would come in lumps
        headers = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
        if endpoint.api_key:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        url = f"{endpoint.url.rstrip('/')}/chat/completions"
        return await self._http.send(self._http.build_request("POST", url, content=body, headers=headers), stream=True)

    async def _pieces(self, response: httpx.Response, model: str, deadline: float) -> AsyncGenerator[Piece, None]:
        events = _Events(model)
        chunks = response.aiter_raw()
        now = asyncio.get_running_loop().time
        limit = "first_token_timeout_s"
        while not events.is_done:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise EngineFailed(model, self._silence(limit)) from None
            except httpx.HTTPError as error:
                raise EngineFailed(model, f"connection lost in the middle of an answer: {_reason(error)}") from error
            text, tokens = events.end() if chunk is None else events.feed(chunk)
            if tokens:
                yield Piece(text, tokens)
                # the reader's own time does not count
                limit, deadline = "token_timeout_s", now() + self._settings.token_timeout_s
            if events.fault is not None:
                raise events.fault
        yield Piece("", 0, events.finish_reason or "stop", events.usage)
        await _drain(chunks)

    def _silence(self, limit: str) -> str:
        return f"silent for {getattr(self._settings, limit):g} s (`{limit}`)"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Events:
    """Bytes of an event stream -> text, in whatever pieces they come. What breaks it is in `fault`, after the text."""

    def __init__(self, model: str) -> None:
        self._model, self._rest = model, b""
        self.finish_reason: str | None = None
        self.usage: TokenUsage | None = None
        self.is_done = False
        self.fault: EngineFailed | None = None

    def feed(self, chunk: bytes) -> tuple[str, int]:
        """The text of the whole lines up to here and its number of tokens."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        texts = []
        for line in lines:
            if self.is_done or self.fault:
                break
            if line.startswith(b"data:"):
                if text := self._data(line[5:].strip()):
                    texts.append(text)
            elif line.startswith(b"error:"):  # older llama.cpp servers
                self._fail(_message(line[6:]))
        if len(self._rest) > _MAX_LINE_BYTES:
            self._fail(f"an event of more than {_MAX_LINE_BYTES} bytes")
        return "".join(texts), len(texts)

    def end(self) -> tuple[str, int]:
        """The connection ended: what was left, and a fault if the answer had not ended before."""
        last = self.feed(b"\n")
        if not self.is_done and self.finish_reason is None:
            self._fail("connection ended in the middle of an answer")
        self.is_done = True
        return last

    def _fail(self, reason: str) -> None:
        self.fault = self.fault or EngineFailed(self._model, reason)

    def _data(self, data: bytes) -> str:
        if data == b"[DONE]":
            self.is_done = True
            return ""
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(f"an event that is not a chat chunk ({error}): {data[:80]!r}")
            return ""
        if chunk.error is not None or chunk.object == "error":
            self._fail(_message(data))
            return ""
        if chunk.usage is not None:
            usage, details = chunk.usage, chunk.usage.prompt_tokens_details
            cached = (details.cached_tokens or 0) if details else 0
            self.usage = TokenUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        return (choice.delta.content or "") if choice.delta else ""


def _message(data: bytes) -> str:
    """The prose in an error body, whichever of the usual shapes it has."""
    try:
        error = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data.decode("utf-8", "replace").strip()[:500] or "no reason given"
    for _ in range(2):
        if isinstance(error, dict):
            error = error.get("error") or error.get("message") or error.get("detail") or error
    return (error if isinstance(error, str) else msgspec.json.encode(error).decode())[:500]


async def _refusal(response: httpx.Response) -> str:
    body = b""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _MAX_ERROR_BYTES:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass  # the status says enough
    return _message(body)


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)  # 0.1 s, the same for all


async def _drain(chunks: Any) -> None:
    """Read the end of a finished body, so that its connection serves again; one that lingers is closed instead."""
    try:
        async with asyncio.timeout(0.2):
            while await anext(chunks, None) is not None:
                pass
    except (TimeoutError, httpx.HTTPError):
        pass


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
