"""From a text to evidence: prepare it as a state, route it, measure the nodes, join and rank what they answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from qraf.actors.runtime import Runtime
from qraf.clock import Clock
from qraf.errors import InvalidRequest, NotFound
from qraf.frames import EvidenceOut, Hop, LinkOut, RouteOut
from qraf.network.links import Crossing, cross, link_channels
from qraf.network.placement import session_node
from qraf.network.router import Router
from qraf.network.topology import Topology
from qraf.records import (
    Evidence,
    Figures,
    Filter,
    NodeAnswer,
    Prompt,
    RecallQuery,
    Visit,
    collection_memory,
    session_memory,
)
from qraf.sessions.meters import Meters
from qraf.sessions.registry import Sessions
from qraf.storage.journal import Journal
from qraf.tenants import plain
from qraf.text.lexicon import TOKENS_PER_WORD
from qraf.text.prepare import prepare, prompt_text
from qraf.times import format_time

__all__ = ["Address", "Measurement", "Recaller", "ahead_of", "choose", "evidence_out", "tokens_of"]

# the pooled state whitens the router's prompts; it moves slowly, and merging the nodes' sketches takes milliseconds
_POOL_EVERY_S = 2.0
_LATENCY_HALF_LIFE_S = 2.0


def tokens_of(words: int) -> float:
    """The estimate of tokens by which budgets are kept: 1.3 a word."""
    return words * TOKENS_PER_WORD


@dataclass(frozen=True, slots=True)
class Address:
    """What a prompt is asked of: the memories on each node, and the node that is asked in any case."""

    memories: Mapping[str, tuple[str, ...]]
    home: str | None = None
    session: str | None = None

    def memory_keys(self) -> tuple[str, ...]:
        """The memory keys, each once."""
        return tuple(dict.fromkeys(key for keys in self.memories.values() for key in keys))


@dataclass(slots=True)
class Measurement:
    """What a prompt's measurement gave so far.

    `key` decides, with the prompt and the link, what happens on noisy links; `arrived` has what did, by node: the
    crossings on its path, and the fidelity of what it measures to what was sent.
    """

    prompt: Prompt
    route: RouteOut
    key: str = ""
    answers: list[NodeAnswer] = field(default_factory=list)
    late: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None  # of a node that will not answer the next time either
    arrived: dict[str, tuple[tuple[Crossing, ...], float]] = field(default_factory=dict)

    @property
    def mass(self) -> float:
        """The summed score of everything that was measured."""
        return sum(answer.mass for answer in self.answers)

    @property
    def evicted(self) -> int:
        """Items that byte budgets have moved out of the memories that answered."""
        return sum(answer.figures.tiers.get("evicted", 0) for answer in self.answers)

    def figures(self, session: str | None) -> Figures:
        """The session's figures; without a session, those of the memory that responded most."""
        if session is not None:
            for answer in self.answers:
                if answer.memory == session_memory(session):
                    return answer.figures
        best = max(self.answers, key=lambda a: a.mass, default=None)
        return best.figures if best is not None else Figures()

    def not_visited(self) -> dict[str, str]:
        """Nodes that were not asked, or did not answer, and why."""
        return {**self.route.not_visited, **self.late}

    def links(self, node: str | None = None) -> tuple[LinkOut, ...]:
        """What noisy links did on the way to a node, or on all ways, each once."""
        ways = [self.arrived[node]] if node in self.arrived else [] if node is not None else self.arrived.values()
        crossed = dict.fromkeys(one for crossings, _ in ways for one in crossings)
        return tuple(
            LinkOut(
                source=one.source,
                target=one.target,
                errors=one.errors,
                fidelity=one.fidelity,
                lost=one.lost,
                corrections=one.corrections,
                w=one.w,
            )
            for one in crossed
        )

    def fidelity(self, node: str) -> float:
        """The fidelity of the state that a node measures to the one that was sent."""
        return self.arrived[node][1] if node in self.arrived else 1.0


def choose(evidence: Sequence[Evidence], *, k: int, token_budget: int | None, least: float = 0.0) -> list[Evidence]:
    """The first `k` by probability that fit the budget; what does not fit is passed over, not cut.

    Args:
        evidence: by falling probability.
        k: so many at most.
        token_budget: their estimated tokens together.
        least: where items with a smaller probability begin, none is taken.
    """
    chosen: list[Evidence] = []
    spent = 0.0
    for item in evidence:
        if len(chosen) == k or item.probability < least:
            break
        cost = tokens_of(item.words)
        if token_budget is not None and spent + cost > token_budget:
            continue
        spent += cost
        chosen.append(item)
    return chosen


def ahead_of(k: int) -> int:
    """How many items are ranked and joined for `k`: a few more, for those that are forgotten or do not fit."""
    return k + max(4, k // 4)


def evidence_out(items: Sequence[Evidence]) -> tuple[EvidenceOut, ...]:
    """Evidence as it goes over the wire, ranked from 1."""
    return tuple(
        EvidenceOut(
            rank=rank,
            item_id=item.item_id,
            node=item.node,
            probability=item.probability,
            score=item.score,
            text=item.text,
            session=plain(item.memory) if item.memory.startswith("s/") else None,
            collection=plain(item.memory) if item.memory.startswith("c/") else None,
            speaker=item.speaker,
            role=item.role,
            at=format_time(item.at),
            metadata=item.metadata,
            terms=item.terms,
        )
        for rank, item in enumerate(items, 1)
    )


class Recaller:
    """Routes and measures; holds the router and keeps what nodes advertise up to date."""

    def __init__(
        self,
        topology: Topology,
        runtime: Runtime,
        sessions: Sessions,
        journal: Journal,
        clock: Clock,
        meters: Meters,
    ) -> None:
        self.router = Router(topology, clock)
        self._topology, self._runtime, self._sessions = topology, runtime, sessions
        self._journal, self._clock, self._meters = journal, clock, meters
        self._is_stale, self._has_moved = True, False
        self._pooled_at = -_POOL_EVERY_S
        self._refreshing = asyncio.Lock()

    async def sample_links(self, folder: Path) -> None:
        """Sample the channels of the noisy links, or read those that were sampled before from the folder."""
        self.router.channels = await asyncio.to_thread(link_channels, self._topology, folder)

    def address(self, session: str | None, collections: Sequence[str] | None) -> Address:
        """The memories that a session and collections name; `None` means every collection of the topology.

        Raises:
            InvalidRequest: a collection that no node holds, or nothing is addressed.
        """
        memories: dict[str, list[str]] = {}
        home = None
        if session is not None:
            home = session_node(self._topology, session)
            memories.setdefault(home, []).append(session_memory(session))
        names = tuple(dict.fromkeys(self._topology.collections() if collections is None else collections))
        for index, name in enumerate(names):
            holders = self._topology.holders(name)
            if not holders:
                raise (
                    NotFound("collection", name)
                    if collections is None
                    else InvalidRequest(
                        f"no node holds a collection '{plain(name)}'; there are: "
                        + (", ".join(sorted(self._topology.collections())) or "none"),
                        f"/collections/{index}",
                    )
                )
            for node in holders:
                memories.setdefault(node, []).append(collection_memory(name))
        if not memories:
            raise InvalidRequest("name a session, a collection, or both", "/session")
        return Address({node: tuple(keys) for node, keys in memories.items()}, home, session)

    async def prepare(self, text: str, address: Address) -> Prompt:
        """The prompt as a state: encoded without the names of those who speak in the memories it is asked of."""
        speakers: dict[str, None] = {}
        for key in address.memory_keys():
            speakers.update(dict.fromkeys(await self._sessions.speakers(key)))
        with self._meters.recall.labels("encode").time():
            rows = await self._runtime.encode([prompt_text(text, tuple(speakers))])
        return prepare(text, tuple(speakers), rows[0])

    def touch(self) -> None:
        """What nodes advertise may have changed: ask again before the next route."""
        self._is_stale = True

    def _needs_refresh(self) -> bool:
        return self._is_stale

    async def refresh(self) -> None:
        """Bring the router up to date: the nodes' health, what they advertise, now and then the pooled state."""
        now = self._clock.monotonic()
        for node, health in self._runtime.health.items():
            # a node that was slow once and is left out since would never be measured again: old latencies fade
            faded = health.latency_ms * 0.5 ** ((now - health.measured_at) / _LATENCY_HALF_LIFE_S)
            self.router.observe(node, latency_ms=faded, load=health.load, up=health.up)
        if not self._needs_refresh():
            return
        async with self._refreshing:
            if not self._needs_refresh():  # another task did it meanwhile
                return
            self._is_stale = False  # before asking: what changes meanwhile counts for the next time
            try:
                changed = await self._runtime.advertisements()
                self.router.advertise(changed)
                self._has_moved = self._has_moved or bool(changed)
                now = self._clock.monotonic()
                if self._has_moved and now - self._pooled_at >= _POOL_EVERY_S:
                    self._pooled_at, self._has_moved = now, False
                    if (pooled := await self._runtime.pooled_sketch()) is not None:
                        self.router.pooled(pooled)
            except BaseException:
                self._is_stale = True
                raise

    async def route(
        self,
        prompt: Prompt,
        address: Address,
        *,
        max_visits: int | None = None,
        deadline_ms: float | None = None,
        explain: bool = False,
        model: str | None = None,
    ) -> RouteOut:
        """The nodes to measure, with reasons.

        Raises:
            NoRoute: no node that is asked can be reached.
        """
        await self.refresh()
        with self._meters.recall.labels("route").time():
            route = self.router.route(
                prompt,
                address.memories,
                required=(address.home,) if address.home is not None else (),
                max_visits=max_visits,
                deadline_ms=deadline_ms,
                explain=explain,
                model=model,
            )
        self._meters.routes.labels("partial" if route.not_visited else "full").inc()
        return route

    async def measure(
        self,
        measurement: Measurement,
        address: Address,
        *,
        k: int,
        filter: Filter | None = None,
        as_of: float | None = None,
        explain: bool = False,
        deadline_ms: float | None = None,
    ) -> AsyncIterator[NodeAnswer]:
        """Ask the routed nodes at once; yields each answer as it comes and keeps it in `measurement`.

        A node that fails or is later than `deadline_ms` is noted in `measurement.late`; the others count. When none has
        answered by then, the first answer is waited for: late evidence is better than none.
        """
        query = RecallQuery(measurement.prompt, k=k, filter=filter, as_of=as_of, explain=explain)
        asked = [(hop.node, self._crossed(measurement, hop, query)) for hop in measurement.route.hops if hop.measured]
        for link in measurement.links():
            self._meters.corrections.labels("link").inc(link.corrections)
        visits = [Visit(node, key, sent) for node, sent in asked for key in address.memories.get(node, ())]
        waiting = {(visit.node, visit.memory) for visit in visits}
        when = None if deadline_ms is None else asyncio.get_running_loop().time() + deadline_ms / 1000
        answers = self._runtime.recall(visits)
        with self._meters.recall.labels("measure").time():
            async with contextlib.aclosing(answers):
                while waiting:
                    try:
                        # around the wait alone: the reader's time is its own
                        async with asyncio.timeout_at(when if measurement.answers else None):
                            answer = await anext(answers)
                    except StopAsyncIteration:
                        break
                    except TimeoutError:
                        for node, _ in waiting:
                            measurement.late[node] = f"no answer within {deadline_ms:g} ms"
                        break
                    waiting.discard((answer.node, answer.memory))
                    if answer.error:
                        measurement.late[answer.node] = answer.error
                        measurement.fault = answer.fault or measurement.fault
                    else:
                        measurement.answers.append(answer)
                    yield answer

    def _crossed(self, measurement: Measurement, hop: Hop, query: RecallQuery) -> RecallQuery:
        """The query as it arrives at a node: its state goes over the links, words, names and dates cross exactly."""
        channels, sent = self.router.channels, query.prompt.amplitudes
        if not channels:
            return query
        arrived, crossings = cross(sent, pairwise(hop.path), channels, measurement.key)
        if not crossings:
            return query
        overlap, norm = float(np.vdot(sent, arrived)), float(np.vdot(sent, sent))
        measurement.arrived[hop.node] = crossings, min(1.0, (overlap / norm) ** 2) if norm > 0 else 0.0
        return replace(query, prompt=replace(query.prompt, amplitudes=arrived))

    async def evidence(
        self,
        measurement: Measurement,
        *,
        k: int,
        token_budget: int | None,
        min_probability: float = 0.0,
        min_share: float = 0.0,
    ) -> tuple[list[Evidence], float]:
        """The chosen evidence with texts, by falling probability, and its coverage (their summed probability)."""
        mass = measurement.mass
        merged = [item for answer in measurement.answers for item in answer.evidence if item.score > 0]
        merged.sort(key=lambda item: (-item.score, item.at, item.seq))
        ranked = (
            [msgspec.structs.replace(item, probability=min(1.0, item.score / mass)) for item in merged] if mass else []
        )
        with self._meters.recall.labels("join").time():
            # a few more than asked, so that items that were forgotten meanwhile do not shorten the list
            ahead = choose(ranked, k=ahead_of(k), token_budget=None, least=min_probability)
            texts = await asyncio.to_thread(self._journal.fetch, [item.seq for item in ahead]) if ahead else {}
        joined = [
            msgspec.structs.replace(
                item,
                item_id=found.item_id,
                text=found.text,
                speaker=found.speaker,
                role=found.role,
                at=found.at,
                metadata=found.metadata,
            )
            for item in ahead
            if (found := texts.get(item.seq)) is not None
        ]
        least = max(min_probability, min_share * joined[0].probability) if joined else 0.0
        chosen = choose(joined, k=k, token_budget=token_budget, least=least)
        return chosen, min(1.0, sum(item.probability for item in chosen))

    def settled(self, measurement: Measurement) -> RouteOut:
        """The route as it was in the end: what did not answer is no longer `measured`."""
        if not measurement.late:
            return measurement.route
        hops = tuple(
            msgspec.structs.replace(hop, measured=False, why=measurement.late[hop.node])
            if hop.node in measurement.late
            else hop
            for hop in measurement.route.hops
        )
        return msgspec.structs.replace(measurement.route, hops=hops, not_visited=measurement.not_visited())
