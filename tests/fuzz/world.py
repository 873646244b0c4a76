"""A whole gateway without sockets: a service with hosts in this process, an application, and a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.app import create_app
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, LimitSettings, Settings
from qraf.state_orders import StateDelete
from qraf.storage.journal import Journal
from qraf.text.generator import Piece
from tests.encoders import HashEncoder
from tests.fuzz.talk import Broken, Known
from tests.gateway.conftest import topology

__all__ = ["LIMITS", "World", "world"]

_END_S = 15.0
LIMITS = LimitSettings(
    max_frame_bytes=65_536,
    max_item_bytes=4096,
    max_prompt_bytes=4096,
    max_write_bytes_in_flight=6000,
    max_queued_write_bytes=12_000,
    write_wait_ms=50,
    max_inflight_writes=8,
    max_inflight_commands=16,
    max_responses=4,
    max_running_responses=24,
    max_watches=3,
    max_decoders=2,
    max_decode_detectors=200,
    outbox_frames=64,
    send_timeout_s=0.1,
    kept_responses=40,
    response_grace_s=0.5,
    max_unread_responses=8,
    ring_frames=6,
)


class ScriptedModel:
    """Says ` t0 t1 t2 ...`, one token after the other, and lets others run in between."""

    def __init__(self) -> None:
        self.running = self.waiting = 0

    async def stream(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 256, **given: Any
    ) -> AsyncGenerator[Piece, None]:
        self.running += 1
        try:
            for token in range(min(max_tokens, 12)):
                await asyncio.sleep(0.002 if token % 4 == 0 else 0)
                yield Piece(f" t{token}", 1)
            yield Piece("", 0, "stop")
        finally:
            self.running -= 1

    async def aclose(self) -> None:
        pass


@dataclass
class World:
    """What is fuzzed."""

    service: Service
    app: FastAPI
    model: ScriptedModel

    async def end(self, known: Known) -> None:
        """Everything that ran comes to its end; then let go of what was made. Raises Broken for what is left."""
        service = self.service
        async with asyncio.timeout(_END_S):
            for response in service.responses.all_running():
                response.cancel()
            while service.responses.all_running() or self.app.state.gate.sockets._streams:
                await asyncio.sleep(0.002)
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(("write ", "absorb "))]
            if tasks:
                await asyncio.wait(tasks)
        for heard in known.responses.values():
            response = service.responses.find(heard.stream)
            if response is not None and heard.status not in ("", response.status):
                raise Broken(f"{heard.stream} was told {heard.status}, and is {response.status}")
        for session in (await service.sessions.list(None, 200))[0]:
            await service.delete_session(session.id)
        while states := (await service.states.page(None, 200))[0]:
            await service.states.order(StateDelete(ids=tuple(one.id for one in states)))
        await self._emptied()

    async def _emptied(self) -> None:
        """Nothing is held any more; what is about to end gets a moment."""
        for _ in range(200):
            held = {name: count for name, count in self.held().items() if count}
            if not held:
                return
            await asyncio.sleep(0.01)
        raise Broken(f"left when everybody had gone: {held}")

    def held(self) -> dict[str, int]:
        """What must be nothing when nobody is there."""
        service, sockets = self.service, self.app.state.gate.sockets
        writer = service.writer
        return {
            "sockets": len(sockets._streams),
            "decoders": sockets._decoders.open,
            "bytes of decoders": sockets._decoders.reserved,
            "running responses": service.responses.running(),
            "running models": self.model.running,
            "bytes of writes": writer.budget.used,
            "queued writes": writer.budget.queued,
            "queued bytes": writer.budget.queued_bytes,
            "turns": len(writer._turns),
            "write tasks": len(writer._tasks),
            "batches": len(writer._absorbing),
            "lanes": len(writer._lanes._lanes),
            "open things of accounts": sum(not one.is_idle for one in service.accounts._known.values()),
            "sessions": len(service.journal.memories("s/")),
        }

    async def objects(self) -> int:
        """How many objects there are, once what is kept for a while has gone."""
        self.service.responses.sweep()
        gc.collect()
        return len(gc.get_objects())


@contextlib.asynccontextmanager
async def world(data: Path) -> AsyncIterator[World]:
    settings = Settings(data=data, auth=AuthSettings(mode="off"), limits=LIMITS, journal_url="sqlite:///:memory:")
    journal = Journal.open(settings.journal())
    network = topology()
    runtime = LocalRuntime(network, settings, journal, encoder=lambda: HashEncoder(network.dim))
    service = Service(settings, network, journal, runtime)
    model = ScriptedModel()
    service.generators._by_node["writer"] = model  # type: ignore[assignment]
    await service.start()
    app = create_app(service, settings)
    gc.collect()
    gc.freeze()  # what is there already is not looked through again and again
    try:
        yield World(service, app, model)
    finally:
        gc.unfreeze()
        await app.state.gate.sockets.close()
        await app.state.gate.authority.close()
        await service.close()
        journal.close()
