"""Prompts are let in here: checked, found again by their key, counted, and started as responses."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from weakref import WeakValueDictionary

import msgspec

from qraf.errors import GatewayLost, InvalidRequest, NotReady, QrafError, StorageFailed
from qraf.frames import Enhance, GenerateChoice, ResponseCreated
from qraf.network.topology import Topology
from qraf.sessions.accounts import Account
from qraf.sessions.checks import check_enhance
from qraf.sessions.enhance import Enhancer
from qraf.sessions.health import Health
from qraf.sessions.ledger import Ledger
from qraf.sessions.recall import Recaller
from qraf.sessions.registry import Sessions
from qraf.sessions.response import Response
from qraf.sessions.responses import Responses
from qraf.settings import LimitSettings
from qraf.tenants import tenant_of

__all__ = ["Prompts"]

log = logging.getLogger(__name__)


class Prompts:
    """Makes one response of each prompt, and owns the task in which it runs. `close` ends them all."""

    def __init__(
        self,
        limits: LimitSettings,
        topology: Topology,
        sessions: Sessions,
        recaller: Recaller,
        enhancer: Enhancer,
        responses: Responses,
        ledger: Ledger,
        health: Health,
    ) -> None:
        self._limits, self._topology, self._sessions = limits, topology, sessions
        self._recaller, self._enhancer = recaller, enhancer
        self._responses, self._ledger, self._health = responses, ledger, health
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self, request: Enhance, owner: str, account: Account | None = None) -> Response:
        """Start a response, or find the one that was started with the same key; `Response.attach` reads it.

        Raises:
            LimitExceeded: too many run. NotReady: the server starts or stops.
            RateExceeded, QuotaExceeded: `account` may not have more now.
            InvalidRequest, SessionNotFound, SessionClosed: nothing was started.
        """
        if request.key is None:
            return await self._start(request, owner, account)
        # the same command may come twice at once: the second waits for what becomes of the first
        async with self._starting.setdefault(request.key, asyncio.Lock()):
            found = self._responses.of_key(request.key)
            return await self._start(request, owner, account) if found is None else _same(found, request)

    async def close(self) -> None:
        """Cancel what runs, and wait for its ends. Twice is harmless."""
        for response in self._responses.all_running():
            response.cancel("shutdown")
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, request: Enhance, owner: str, account: Account | None) -> Response:
        if self._health.state != "ready":
            raise NotReady(self._health.state)
        check_enhance(request, self._limits, self._topology)
        if request.session is not None:
            await self._sessions.active(request.session)
        address = self._recaller.address(request.session, request.collections)
        if account is not None and request.generate is not False:
            await account.check_tokens()
        if request.again and (found := await self._begun_elsewhere(request, tenant_of(owner))) is not None:
            return found
        if account is not None:
            await account.enter("responses")
        try:
            response = self._responses.create(request.id, owner, session=request.session, key=request.key)
        except QrafError:
            if account is not None:
                account.leave("responses")
            raise
        response.request = _digest(request) if request.key else b""
        response.model = (isinstance(request.generate, GenerateChoice) and request.generate.model) or ""
        # before the task runs: one that is cancelled at once answers its command, too
        response.emit(
            ResponseCreated(
                stream=response.stream,
                seq=0,
                id=response.command_id,
                response=response.id,
                model=response.model,
                epoch=response.epoch,
            )
        )
        work = self._enhancer.run(response, request, address, account)
        task = response.task = asyncio.create_task(work, name=f"response {response.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # a task that is cancelled before its first step runs no `finally`
        task.add_done_callback(lambda _: self._ended(response, account))
        self._ledger.note(response)
        return response

    def _ended(self, response: Response, account: Account | None) -> None:
        if account is not None:
            account.leave("responses")
        response.end("cancelled", response.cancel_reason or "cancelled")
        self._ledger.note(response)

    async def _begun_elsewhere(self, request: Enhance, tenant: str) -> Response | None:
        """The response that another gateway began with this key; None also where its gateway died, or nobody knows."""
        try:
            found = None if request.key is None else await self._ledger.find("", tenant, key=request.key)
        except StorageFailed as error:
            log.warning("a prompt may run a second time: %s", error)
            return None
        if found is None or (found.error is not None and found.error.code == GatewayLost.code):
            return None
        return _same(found, request)


def _same(found: Response, request: Enhance) -> Response:
    """A response that has the request's key. Raises InvalidRequest where that stands for something else."""
    if found.request != _digest(request):
        raise InvalidRequest("was used for another request already", "/key")
    return found


def _digest(request: Enhance) -> bytes:
    """What a key stands for, in 16 bytes."""
    return hashlib.blake2b(
        msgspec.json.encode(msgspec.structs.replace(request, id="", again=False)), digest_size=16
    ).digest()
