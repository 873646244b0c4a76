"""The REST side of a server, for what is no stream: sessions, items, topology, responses, health, metrics."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import msgspec
from msgspec import UNSET, UnsetType

from qraf.client.credentials import find_key
from qraf.client.reconnect import Reconnect
from qraf.client.urls import base_url, is_loopback
from qraf.errors import CannotConnect, ServerError, TimedOut
from qraf.records import Filter

__all__ = ["ItemsApi", "Json", "Rest", "SessionsApi"]

Json = dict[str, Any]

_UNREPEATABLE = ("/v1/keys", "/v1/ws-tickets")  # their answers hold secrets and are not kept
_ORDERS = ("/v1/quantize", "/v1/quantize/decode", "/v1/optimize", "/v1/correct")  # write nothing unless as a job


def _trust(url: str) -> ssl.SSLContext:
    """Of whom the WebSocket trusts, `SSL_CERT_FILE` included; for http of nobody: to read all of them takes 15 ms."""
    return ssl.create_default_context() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Rest:
    """A small HTTP client: JSON in, JSON out, problem+json as `ServerError`. Connects at the first call.

    `api_key` left out: as `find_key` finds it. With `reconnect`, a GET or a POST that broke off, and any request
    that found nobody, is repeated for a while; a POST has an `Idempotency-Key`, so that it is carried out once.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 180.0,
        open_timeout_s: float = 10.0,
        api_key: str | None = None,
        reconnect: Reconnect | None = None,
    ) -> None:
        self.url = base_url(url)
        key = find_key(url, api_key)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=open_timeout_s),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            trust_env=not is_loopback(self.url),
            verify=_trust(self.url),
            follow_redirects=False,
        )
        self._timeout_s, self._reconnect = timeout_s, reconnect

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        accept: tuple[int, ...] = (),
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Json:
        """One request; an empty answer is `{}`. Statuses in `accept` are no errors.

        Raises:
            ServerError: the server answered with an error.
            CannotConnect: nobody answers.
            TimedOut: no answer in time.
        """
        response = await self._send(method, path, body, query, headers)
        if response.is_error and response.status_code not in accept:
            raise _error(response)
        if not response.content:
            return {}
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            raise ServerError("protocol", f"{method} {path} did not answer with JSON") from None
        return answer if isinstance(answer, dict) else {"data": answer}

    async def file(self, path: str, **query: Any) -> bytes:
        """One GET of a file."""
        response = await self._send("GET", path, None, query)
        if response.is_error:
            raise _error(response)
        return response.content

    async def text(self, path: str) -> str:
        """One GET of plain text."""
        response = await self._send("GET", path, None, {})
        if response.is_error:
            raise _error(response)
        return response.text

    async def close(self) -> None:
        """Close the connections. Twice: nothing more happens."""
        await self._http.aclose()

    async def _send(
        self, method: str, path: str, body: Json | None, query: Json, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        params = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        params = {key: value for key, value in params.items() if value is not None}
        loop, policy = asyncio.get_running_loop(), self._reconnect
        give_up_at = loop.time() + (0.0 if policy is None else policy.give_up_s)
        is_repeatable = policy is not None and method == "POST" and path not in _UNREPEATABLE
        if path in _ORDERS and "prefer" not in (headers or {}):
            is_repeatable = False
        if is_repeatable:
            headers = {"idempotency-key": str(uuid4()), **(headers or {})}
        for attempt in itertools.count():
            try:
                response = await self._http.request(method, path, json=body, params=params, headers=headers)
                if attempt and response.status_code == 409 and loop.time() < give_up_at and _is_under_way(response):
                    assert policy is not None
                    await asyncio.sleep(policy.pause_s(attempt))
                    continue
                return response
            except httpx.TimeoutException as error:
                if isinstance(error, httpx.ConnectTimeout):
                    raise CannotConnect(self.url, "no answer in time") from None
                raise TimedOut(f"{method} {path}", self._timeout_s) from None
            except httpx.TransportError as error:
                # what only reads, was never sent, or is carried out once, may be asked again
                is_harmless = method == "GET" or is_repeatable or isinstance(error, httpx.ConnectError)
                if policy is None or not is_harmless or loop.time() >= give_up_at:
                    raise CannotConnect(self.url, str(error) or type(error).__name__) from None
                await asyncio.sleep(policy.pause_s(attempt))
        raise AssertionError("unreachable")


class SessionsApi:
    """`/v1/sessions`."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def list(self, *, limit: int = 50, cursor: str | None = None) -> Json:
        """A page of sessions; `next_cursor` leads to the next page."""
        return await self._rest.call("GET", "/v1/sessions", limit=limit, cursor=cursor)

    async def get(self, session: str) -> Json:
        """A session with its figures."""
        return await self._rest.call("GET", f"/v1/sessions/{quote(session, safe='')}")

    async def configure(
        self,
        session: str,
        *,
        bits: int | UnsetType | None = UNSET,
        budget_bytes: int | UnsetType | None = UNSET,
        rank: int | UnsetType | None = UNSET,
    ) -> Json:
        """Change bits (32, 8, 4, 2, 1), byte budget and rank of a session's memory; None: as its node says."""
        change = {"bits": bits, "budget_bytes": budget_bytes, "rank": rank}
        body: Json = {name: value for name, value in change.items() if value is not UNSET}
        return await self._rest.call("PATCH", f"/v1/sessions/{quote(session, safe='')}", body=body)

    async def pause(self, session: str) -> Json:
        """Refuse writes and prompts until `resume`."""
        return await self._rest.call("POST", f"/v1/sessions/{quote(session, safe='')}/pause")

    async def resume(self, session: str) -> Json:
        """End a pause."""
        return await self._rest.call("POST", f"/v1/sessions/{quote(session, safe='')}/resume")

    async def delete(self, session: str, *, dry_run: bool = False) -> Json:
        """Erase a session and everything it remembers; `dry_run` only counts its items."""
        return await self._rest.call("DELETE", f"/v1/sessions/{quote(session, safe='')}", dry_run=dry_run or None)


class ItemsApi:
    """`/v1/memory`: the items of a session or a collection."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def list(
        self, *, session: str | None = None, collection: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Json:
        """A page of items; `next_cursor` leads to the next page."""
        return await self._rest.call(
            "GET", "/v1/memory", session=session, collection=collection, limit=limit, cursor=cursor
        )

    async def get(self, item: str, *, session: str | None = None, collection: str | None = None) -> Json:
        """One item."""
        path = f"/v1/memory/{quote(item, safe='')}"
        return await self._rest.call("GET", path, session=session, collection=collection)

    async def delete(
        self, item: str, *, session: str | None = None, collection: str | None = None, dry_run: bool = False
    ) -> Json:
        """Forget one item; the receipt has the figures before and after. `dry_run` forgets nothing."""
        path = f"/v1/memory/{quote(item, safe='')}"
        return await self._rest.call("DELETE", path, session=session, collection=collection, dry_run=dry_run or None)

    async def forget(
        self,
        *,
        session: str | None = None,
        collection: str | None = None,
        filter: Filter | Json,
        dry_run: bool = False,
    ) -> Json:
        """Forget every item that passes the filter; `dry_run` only counts them."""
        body: Json = {"filter": msgspec.to_builtins(filter), "dry_run": dry_run}
        target = {"session": session, "collection": collection}
        body |= {key: value for key, value in target.items() if value is not None}
        return await self._rest.call("POST", "/v1/memory/forget", body=body)


def _is_under_way(response: httpx.Response) -> bool:
    """Whether what was sent before is still being carried out."""
    return _error(response).error_code == "idempotency_key_in_use"


def _error(response: httpx.Response) -> ServerError:
    try:
        problem = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        problem = None
    if not isinstance(problem, dict):
        return ServerError("http", f"HTTP status {response.status_code}")
    faults = problem.get("errors") or [{}]
    pointer = str(problem.get("pointer") or faults[0].get("pointer") or "")
    detail = str(problem.get("detail") or faults[0].get("detail") or problem.get("title") or response.status_code)
    retry_after = problem.get("retry_after_ms")
    if retry_after is None and response.headers.get("retry-after", "").isdigit():
        retry_after = int(response.headers["retry-after"]) * 1000
    code = str(problem.get("code") or f"http_{response.status_code}")
    return ServerError(code, detail, pointer, bool(problem.get("retryable")), retry_after)
