"""Clients as a user writes them: no `try`, no retry, nothing that knows of reconnects. What they were told is kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

import qraf
from qraf.frames import ResponseDelta, ResponseDone

WRITERS, STREAMERS = 8, 4
TOKENS = 60


class Success(NamedTuple):
    """Something that a client began and that worked (a write acknowledged, a first piece of text)."""

    client: str
    begun: float
    done: float


class Load:
    """Clients that write and stream until they are stopped; a client that gives up fails the whole load."""

    def __init__(self, url: str, expected: str, *, items: int = 2, pause_s: float = 0.2) -> None:
        self._url, self._expected, self._items, self._pause_s = url, expected, items, pause_s
        self._stop = asyncio.Event()
        self.written: dict[str, dict[str, str]] = {}
        """Texts by item id, of what was acknowledged, by session."""
        self.successes: list[Success] = []
        self.ends: list[ResponseDone] = []
        self.faults: list[str] = []
        self.reconnects = 0
        self.clients = [f"writer-{n}" for n in range(WRITERS)] + [f"streamer-{n}" for n in range(STREAMERS)]

    async def run(self) -> None:
        """Until `stop`; raises what made a client give up."""
        async with asyncio.TaskGroup() as group:
            for name in self.clients:
                group.create_task(self._write(name) if name.startswith("writer") else self._stream(name), name=name)

    def stop(self) -> None:
        """Let every client finish what it has begun."""
        self._stop.set()

    async def _write(self, session: str) -> None:
        written = self.written.setdefault(session, {})
        async with qraf.connect(self._url) as q:
            await q.open_session(session)
            number = 0
            while not self._stop.is_set():
                texts = [f"note n{number + place} of {session}" for place in range(self._items)]
                # every second time the ids are the client's to choose
                own = [f"{session}-{number + place}" for place in range(self._items)] if number % 4 else []
                items = [{"text": text} for text in texts]
                for item, name in zip(items, own, strict=False):
                    item["item_id"] = name
                number += self._items
                begun = time.monotonic()
                done = await q.write(items, session=session)
                ids = own or list(done.item_ids)
                if done.rejected or done.accepted + done.duplicates != len(texts) or len(ids) != len(texts):
                    self.faults.append(f"{session}: {done}")
                    continue
                written |= dict(zip(ids, texts, strict=True))
                self._worked(session, begun)
                await asyncio.sleep(self._pause_s)
            self.reconnects += q.reconnects

    async def _stream(self, name: str) -> None:
        async with qraf.connect(self._url) as q:
            while not self._stop.is_set():
                begun, ends = time.monotonic(), []
                response = q.enhance(
                    f"which note is it, {name}?", collections=["manuals"], generate={"max_tokens": TOKENS}
                )
                async for frame in response:
                    if isinstance(frame, ResponseDone):
                        ends.append(frame)
                    elif isinstance(frame, ResponseDelta) and response.text == frame.text:
                        self._worked(name, begun)
                self._check(name, response.text, ends)
                await asyncio.sleep(self._pause_s)
            self.reconnects += q.reconnects

    def _check(self, name: str, text: str, ends: list[ResponseDone]) -> None:
        self.ends += ends
        if len(ends) != 1:
            self.faults.append(f"{name}: a response had {len(ends)} ends")
        for end in ends:
            if end.status == "failed":
                if end.error is None or not end.error.retryable:
                    self.faults.append(f"{name}: a response failed for good: {end.error}")
                if not self._expected.startswith(text):
                    self.faults.append(f"{name}: before it failed a response said {text!r}")
            elif text != self._expected:
                self.faults.append(f"{name}: a response ended {end.status} and said {text!r}")

    def _worked(self, client: str, begun: float) -> None:
        self.successes.append(Success(client, begun, time.monotonic()))

    @property
    def acknowledged(self) -> int:
        """Items."""
        return sum(map(len, self.written.values()))

    def ended(self) -> Counter[str]:
        """Responses by status and, where they failed, error code."""
        return Counter(one.status if one.error is None else f"{one.status} {one.error.code}" for one in self.ends)


class Found(NamedTuple):
    """What became of the items that were acknowledged."""

    listed: int
    recalled: int
    lost: list[str]
    doubled: list[str]


async def verify(url: str, written: dict[str, dict[str, str]], recalls: int) -> Found:
    """Look for every item by listing, and for `recalls` of each session, spread evenly, by recalling its text."""
    lost: list[str] = []
    doubled: list[str] = []
    listed = recalled = 0
    async with qraf.connect(url) as q:
        for session, texts in written.items():
            ids, said = Counter[str](), Counter[str]()
            cursor = None
            while True:
                page = await q.items.list(session=session, limit=200, cursor=cursor)
                ids.update(item["item_id"] for item in page["data"])
                said.update(item["text"] for item in page["data"])
                if not (cursor := page["next_cursor"]):
                    break
            listed += ids.total()
            lost += [f"{name}, not listed" for name in texts if not ids[name]]
            doubled += [f"{name}, listed {count} times" for name, count in (ids + said).items() if count > 1]
            held = (await q.open_session(session, create=False)).state.items
            if held != ids.total():
                lost.append(f"{session}: its memory holds {held} of {ids.total()} items")
            some = list(texts.items())[:: max(1, len(texts) // recalls)]
            for name, text in some:
                found = [one.item_id for one in (await q.recall(text, session=session, k=20)).evidence]
                recalled += 1
                if name not in found:
                    more = [one.item_id for one in (await q.recall(text, session=session, k=200)).evidence]
                    place = more.index(name) + 1 if name in more else "nowhere"
                    lost.append(
                        f"{name} ({text!r}), not among the first {len(found)} recalled but at {place} of {len(more)}"
                    )
                if len(set(found)) != len(found):
                    doubled.append(f"{name}, recalled {found}")
    return Found(listed, recalled, lost, doubled)
