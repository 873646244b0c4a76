"""The REST side of a server, for what is no stream: sessions, items, topology, responses, health, metrics."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from qraf.client.urls import base_url, is_loopback
from qraf.errors import CannotConnect, ServerError, TimedOut
from qraf.records import Filter

__all__ = ["ItemsApi", "Json", "Rest", "SessionsApi"]

Json = dict[str, Any]


class Rest:
    """A small HTTP client: JSON in, JSON out, problem+json as `ServerError`. Connects at the first call."""

    def __init__(self, url: str, *, timeout_s: float = 180.0, open_timeout_s: float = 10.0) -> None:
        self.url = base_url(url)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=open_timeout_s),
            trust_env=not is_loopback(self.url),
            follow_redirects=False,
        )
        self._timeout_s = timeout_s

    async def call(
        self, method: str, path: str, *, body: Json | None = None, accept: tuple[int, ...] = (), **query: Any
    ) -> Json:
        """One request; an empty answer is `{}`. Statuses in `accept` are no errors.

        Raises:
            ServerError: the server answered with an error.
            CannotConnect: nobody answers.
            TimedOut: no answer in time.
        """
        response = await self._send(method, path, body, query)
        if response.is_error and response.status_code not in accept:
            raise _error(response)
        if not response.content:
            return {}
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            raise ServerError("protocol", f"{method} {path} did not answer with JSON") from None
        return answer if isinstance(answer, dict) else {"data": answer}

    async def text(self, path: str) -> str:
        """One GET of plain text."""
        response = await self._send("GET", path, None, {})
        if response.is_error:
            raise _error(response)
        return response.text

    async def close(self) -> None:
        """Close the connections. Twice: nothing more happens."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, body: Json | None, query: Json) -> httpx.Response:
        params = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        params = {key: value for key, value in params.items() if value is not None}
        try:
            return await self._http.request(method, path, json=body, params=params)
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise CannotConnect(self.url, "no answer in time") from None
            raise TimedOut(f"{method} {path}", self._timeout_s) from None
        except httpx.TransportError as error:
            raise CannotConnect(self.url, str(error) or type(error).__name__) from None


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

    async def pause(self, session: str) -> Json:
        """Refuse writes and prompts until `resume`."""
        return await self._rest.call("POST", f"/v1/sessions/{quote(session, safe='')}/pause")

    async def resume(self, session: str) -> Json:
        """End a pause."""
        return await self._rest.call("POST", f"/v1/sessions/{quote(session, safe='')}/resume")

    async def delete(self, session: str) -> Json:
        """Erase a session and everything it remembers."""
        return await self._rest.call("DELETE", f"/v1/sessions/{quote(session, safe='')}")


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

    async def delete(self, item: str, *, session: str | None = None, collection: str | None = None) -> Json:
        """Forget one item; the receipt has the figures before and after."""
        path = f"/v1/memory/{quote(item, safe='')}"
        return await self._rest.call("DELETE", path, session=session, collection=collection)

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
