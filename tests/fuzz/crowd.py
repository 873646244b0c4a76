"""Some connections to one world, side by side: what they do, and what must hold when they are done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from tests.fuzz.frames import FRAMINGS, Said
from tests.fuzz.talk import Broken, Known, Talk
from tests.fuzz.world import LIMITS, World

__all__ = ["HELLO", "Crowd"]

HELLO: Said = ("valid", {"type": "hello"}, 0)
_ENHANCE: Said = ("valid", {"type": "enhance", "id": "@id", "prompt": "tea", "collections": ["manuals"]}, 0)
_PING: Said = ("valid", {"type": "ping", "id": "@id"}, 0)


class Crowd:
    """Connections by their slots, which know together what the server has told. A slot that is used has one.

    Every method but `drop` and `problems` raises Broken for what the protocol does not allow.
    """

    def __init__(self, world: World, hang_s: float = 15.0) -> None:
        self.known = Known()
        self.is_gone = False
        """Whether it left the world as it found it."""
        self._world, self._hang_s = world, hang_s
        self._talks: dict[int, Talk] = {}
        self._every: list[Talk] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self, slot: int, framing: str = "", hello: Said = HELLO) -> Talk:
        """A new connection in place of the one that is there."""
        self.drop(slot)
        talk = self._talks[slot] = Talk(self.known, framing or FRAMINGS[slot % 2])
        self._every.append(talk)
        self._serving.add(asyncio.create_task(self._serve(talk)))
        talk.hello(hello)
        await asyncio.sleep(0)
        return talk

    async def say(self, slot: int, frames: Sequence[Said]) -> None:
        """Send frames; where the connection has ended, on a new one."""
        for said in frames:
            talk = self._talks.get(slot)
            if talk is None or talk.is_over:
                talk = await self.open(slot)
            talk.say(said)
            await asyncio.sleep(0)

    def drop(self, slot: int) -> None:
        """Go away without a word."""
        if slot in self._talks:
            self._talks[slot].drop()

    def stall(self, slot: int) -> None:
        """Read no more, for good."""
        if slot in self._talks:
            self._talks[slot].stall(for_good=True)

    async def read_slowly(self, slot: int, is_flooded: bool) -> None:
        """Stop in the middle of a response until the server closes with 4008, come back, and go on after what was read.

        `is_flooded`: more answers wait than may; else the socket takes nothing for too long.
        """
        await self.settle()
        talk = await self.open(slot)
        await self.say(slot, [_ENHANCE])
        async with self._in_time(talk):
            while not (talk.to_resume() or talk.quiet.is_set()):
                await asyncio.sleep(0.001)
        talk.stall(for_good=False)
        await self.say(slot, [_PING] * (LIMITS.outbox_frames + 10 if is_flooded else 1))
        async with self._in_time(talk):
            while not talk.is_over:
                await asyncio.sleep(0.005)
        if talk.code != 4008:
            raise Broken(f"a reader that took nothing was closed with {talk.code}\n{talk.told()}")
        left = talk.to_resume()
        back = await self.open(slot, talk.framing, ("valid", {"type": "hello", "resume": left}, 0))
        await self.settle()
        results = [back.resumed[one["stream"]] for one in left]
        if not set(results) <= {"replayed", "gap"} or back.is_over:
            raise Broken(f"after 4008 the streams {left} are {results}\n{back.told()}")
        self.known.caught_up += len(results)

    async def settle(self) -> None:
        """Wait until nothing is owed; who reads no more goes."""
        for talk in self._every:
            if talk.is_deaf:
                talk.drop()
            elif talk.is_reading:
                async with self._in_time(talk):
                    await talk.quiet.wait()
        self._every = [talk for talk in self._every if not talk.is_over or talk.problems]

    def problems(self) -> None:
        """Raise Broken for what was heard and is not allowed."""
        for talk in self._every:
            if talk.problems:
                raise Broken("\n".join(f"{talk.framing}: {one}" for one in talk.problems[:20]) + "\n\n" + talk.told())

    async def leave(self) -> None:
        """Everybody settles and goes, and the server lets go of them and of all that they made."""
        try:
            await self.settle()
        finally:
            await self._gone()
        self.problems()

    async def _gone(self) -> None:
        for talk in self._every:
            talk.drop()
        left: set[asyncio.Task[None]] = set()
        if self._serving:
            _, left = await asyncio.wait(self._serving, timeout=self._hang_s)
        if left:
            raise Broken(f"{len(left)} connections go on without their clients: {left}")
        for task in self._serving:
            task.result()
        await self._world.end(self.known)
        self.is_gone = True

    async def _serve(self, talk: Talk) -> None:
        scope = {
            "type": "websocket",
            "path": "/v1/ws",
            "headers": [(b"host", b"127.0.0.1")],
            "subprotocols": [talk.framing],
            "client": ("127.0.0.1", 1),
            "query_string": b"",
        }
        await self._world.app(scope, talk.receive, talk.send)
        if talk.is_reading:  # one that does not cannot be told
            talk.problems.append("the server went without a close")
            talk.quiet.set()

    @contextlib.asynccontextmanager
    async def _in_time(self, talk: Talk) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._hang_s):
                yield
        except TimeoutError:
            owed = talk.unanswered()
            raise Broken(f"no answer in {self._hang_s:g} s: {talk.framing}, {owed}\n{talk.told()}") from None
