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
from tests.fuzz.frames import Step
from tests.fuzz.talk import Broken, Known, Talk
from tests.gateway.conftest import topology

__all__ = ["World", "world"]

HANG_S = 15.0
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
    send_timeout_s=0.3,
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

    async def play(self, episodes: Sequence[Sequence[Step]]) -> list[Known]:
        """Run episodes side by side; raises Broken for whatever the protocol does not allow."""
        done = await asyncio.gather(*map(self._play, episodes), return_exceptions=True)
        for one in done:
            if isinstance(one, BaseException):
                raise one
        played = [one for one in done if isinstance(one, Known)]
        await self._end(played)
        return played

    async def _play(self, steps: Sequence[Step]) -> Known:
        known, talks, every = Known(), dict[int, Talk](), list[Talk]()
        serving: set[asyncio.Task[None]] = set()
        try:
            for step in steps:
                await self._take(step, known, talks, every, serving)
            await self._settled(every)
        finally:
            for talk in every:
                talk.drop()
            ended, left = await asyncio.wait(serving, timeout=HANG_S)
        if left:
            raise Broken(f"{len(left)} connections go on without their clients: {left}")
        for task in ended:
            task.result()
        problems = [f"{talk.framing}: {what}" for talk in every for what in talk.problems]
        if problems:
            told = next(talk.told() for talk in every if talk.problems)
            raise Broken("\n".join(problems[:20]) + "\n\n" + told)
        return known

    async def _take(
        self, step: Step, known: Known, talks: dict[int, Talk], every: list[Talk], serving: set[asyncio.Task[None]]
    ) -> None:
        match step:
            case ("open", slot, framing, hello):
                if slot in talks:
                    talks[slot].drop()
                talk = talks[slot] = Talk(known, framing)
                every.append(talk)
                serving.add(asyncio.create_task(self._serve(talk)))
                talk.hello(hello)
            case ("send" | "spoil" | "break", slot, *_):
                if slot in talks:
                    talks[slot].say(step)
            case ("drop", slot) | ("stall", slot):
                if slot in talks:
                    getattr(talks[slot], step[0])()
            case ("rest", n):
                await asyncio.sleep(0.001 * n)
            case ("settle",):
                await self._settled(every)
        await asyncio.sleep(0)

    async def _serve(self, talk: Talk) -> None:
        scope = {
            "type": "websocket",
            "path": "/v1/ws",
            "headers": [(b"host", b"127.0.0.1")],
            "subprotocols": [talk.framing],
            "client": ("127.0.0.1", 1),
            "query_string": b"",
        }
        await self.app(scope, talk.receive, talk.send)
        if talk.is_reading:  # one that does not cannot be told
            talk.problems.append("the server went without a close")
            talk.quiet.set()

    async def _settled(self, every: Sequence[Talk]) -> None:
        """Wait until nothing is owed."""
        try:
            async with asyncio.timeout(HANG_S):
                for talk in every:
                    if talk.is_reading:
                        await talk.quiet.wait()
        except TimeoutError:
            hanging = [talk for talk in every if talk.is_reading and not talk.quiet.is_set()]
            told = hanging[0].told() if hanging else ""
            raise Broken(f"no answer in {HANG_S} s: {[one.unanswered() for one in hanging]}\n{told}") from None

    async def _end(self, played: Sequence[Known]) -> None:
        """Everything that ran comes to its end; then let go of what the episodes made."""
        service = self.service
        async with asyncio.timeout(HANG_S):
            for response in service.responses.all_running():
                response.cancel()
            while service.responses.all_running() or self.app.state.gate.sockets._streams:
                await asyncio.sleep(0.002)
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(("write ", "absorb "))]
            if tasks:
                await asyncio.wait(tasks)
        for heard in [heard for known in played for heard in known.responses.values()]:
            response = service.response(heard.stream)
            if response is not None and heard.status not in ("", response.status):
                raise Broken(f"{heard.stream} was told {heard.status}, and is {response.status}")
        for session in (await service.list_sessions(None, 200))[0]:
            await service.delete_session(session.id)
        while states := (await service.states.page(None, 200))[0]:
            await service.states.order(StateDelete(ids=tuple(one.id for one in states)))

    async def empty(self) -> None:
        """Nothing is held any more; raises Broken. What is about to end gets a moment."""
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
    service._generators["writer"] = model  # type: ignore[assignment]
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
