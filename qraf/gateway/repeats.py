"""Requests that come twice: with an `Idempotency-Key` a POST that writes is carried out once and answered each time."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from ulid import ULID

from qraf.errors import InvalidRequest, KeyInUse, KeyReused, LimitExceeded, QrafError
from qraf.gateway.bodies import gate, principal, whole_body
from qraf.settings import RepeatSettings
from qraf.storage.answers import AnswerTable, KeptAnswer
from qraf.tenants import inside

__all__ = ["HEADER", "REPLAYED", "Repeats", "Route", "about_session", "key_of", "made_id", "repeatable", "unrepeatable"]

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
POINTER = "/headers/idempotency-key"

Route = Callable[[Request], Awaitable[Response]]

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT = ("content-type", "etag", "location", "retry-after", "preference-applied")
_TRIM_EVERY = 500  # keys between two looks whether a tenant has too many


class Repeats:
    """Carries out what comes with a key once. Belongs to one gateway; the table is that of all."""

    def __init__(self, answers: AnswerTable, settings: RepeatSettings) -> None:
        self._answers, self._settings = answers, settings
        self._taken = 0

    async def once(
        self,
        tenant: str,
        key: str,
        asked: bytes,
        work: Callable[[], Awaitable[Response]],
        is_kept: Callable[[Response], bool],
        session: Callable[[], str | None] = lambda: None,
    ) -> Response:
        """The answer of `work`, or the one that it gave when the same was asked before.

        `session` tells, after the work, whose the answer is; it is erased with it. What fails, and what `is_kept` does
        not want, frees the key. Cancel: the key stays taken until its lease ends, because nobody knows how far the work
        came.

        Raises:
            KeyReused: the key came with another request. KeyInUse: that one is not answered yet.
            LimitExceeded: it was carried out, but its answer was too long to be kept.
        """
        table, settings, attempt = self._answers, self._settings, uuid4().hex
        there = await asyncio.to_thread(table.begin, tenant, key, asked, attempt, settings.lease_s)
        if there is not None:
            return self._again(there, asked)
        holding = asyncio.create_task(self._hold(tenant, key, attempt), name="hold an Idempotency-Key")
        try:
            response = await work()
        except Exception:
            await self._note(table.give_up, tenant, key, attempt)
            raise
        finally:
            holding.cancel()
        if not (response.status_code < 300 and is_kept(response)):
            await self._note(table.give_up, tenant, key, attempt)
            return response
        body = bytes(response.body)
        answer = KeptAnswer(
            asked=asked,
            status=response.status_code,
            headers={name: response.headers[name] for name in _KEPT if name in response.headers},
            body=body if len(body) <= settings.max_answer_bytes else b"",
            is_whole=len(body) <= settings.max_answer_bytes,
        )
        await self._note(table.finish, tenant, key, attempt, answer, settings.kept_s, session())
        self._taken += 1
        if self._taken % _TRIM_EVERY == 0:
            await self._note(table.trim, tenant, settings.max_answers)
        return response

    async def _hold(self, tenant: str, key: str, attempt: str) -> None:
        """Keep the key taken while the work goes on, however long that is."""
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            await self._note(self._answers.renew, tenant, key, attempt, self._settings.lease_s)

    async def _note(self, work: Callable[..., object], *args: object) -> None:
        """A journal that fails now does not spoil an answer: the key is free again when its lease ends."""
        try:
            await asyncio.to_thread(work, *args)
        except QrafError as fault:
            log.warning("an Idempotency-Key: %s", fault)

    def _again(self, there: KeptAnswer, asked: bytes) -> Response:
        if there.asked != asked:
            raise KeyReused("came with another request before", POINTER)
        if not there.status:
            raise KeyInUse()
        if not there.is_whole:
            raise LimitExceeded("repeats.max_answer_bytes", self._settings.max_answer_bytes)
        return Response(there.body, there.status, {**there.headers, REPLAYED: "true"})


def repeatable(route: Route, is_kept: Callable[[Response], bool] = lambda _: True) -> Route:
    """Let a route that writes heed `Idempotency-Key`."""

    @functools.wraps(route)
    async def asked(request: Request) -> Response:
        key = key_of(request)
        if key is None:
            return await route(request)
        settings = gate(request).settings
        most = max(settings.limits.max_frame_bytes, settings.states.max_body_bytes, settings.services.max_body_bytes)
        digest = hashlib.sha256()
        for part in (request.method, request.url.path, request.url.query, request.headers.get("if-match", "")):
            digest.update(part.encode() + b"\0")
        digest.update(await whole_body(request, most))
        tenant = principal(request).tenant
        state = request.scope["state"]
        state["repeat"] = (tenant, key, digest.hexdigest())
        return await gate(request).repeats.once(
            tenant, key, digest.digest(), lambda: route(request), is_kept, lambda: state.get("repeat_session")
        )

    return asked


def about_session(request: Request, session: str | None) -> None:
    """The answer will be about a session of the tenant: where it is kept it goes with it."""
    if session is not None:
        request.scope["state"]["repeat_session"] = inside(principal(request).tenant, session)


def unrepeatable(request: Request) -> None:
    """Refuse `Idempotency-Key` where the answer holds a secret, which nothing keeps; raises InvalidRequest."""
    if HEADER in request.headers:
        raise InvalidRequest("is not for this route: its answer holds a secret, and is not kept", POINTER)


def key_of(request: Request) -> str | None:
    """The request's `Idempotency-Key`; raises InvalidRequest for one that cannot be."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidRequest("must be 1 to 255 visible ASCII characters, given once", POINTER)
    return given[0]


def made_id(request: Request, prefix: str, *place: Any) -> str | None:
    """An id for what a request makes without naming it: the same for the same request with the same key, else None.

    So what was written before a gateway died is found, not written again, when the request comes again.
    """
    known: tuple[str, str, str] | None = request.scope["state"].get("repeat")
    if known is None:
        return None
    seed = "\0".join((*known, prefix, *map(str, place)))
    return f"{prefix}_{ULID(hashlib.sha256(seed.encode()).digest()[:16])}"
