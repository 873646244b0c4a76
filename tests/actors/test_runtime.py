"""One body for both runtimes: what sessions may rely on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from qraf.actors.hosted import HostedRuntime
from qraf.actors.runtime import LocalRuntime, Runtime
from qraf.actors.services import InlineServices
from qraf.errors import InvalidRequest, LimitExceeded, NodeDown, NotFound, VersionConflict
from qraf.network.placement import item_node
from qraf.records import Item
from qraf.service_orders import Nearest, NearestStates, Repair, Repaired
from qraf.state_orders import (
    Compared,
    Preparation,
    StateCompare,
    StateDelete,
    StateEvolve,
    StateMeasure,
    StatePrepare,
    StateViews,
    Step,
)
from qraf.states.sketch import Sketch
from qraf.storage.journal import Journal, SessionRecord
from tests.actors import samples
from tests.actors.samples import DIM, FACTS, commit, visit
from tests.encoders import HashEncoder

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@dataclass
class World:
    runtime: HostedRuntime
    journal: Journal

    async def write(self, memory: str, texts: list[str], prefix: str = "") -> list[Item]:
        items = await asyncio.to_thread(commit, self.journal, memory, texts, prefix)
        if memory.startswith("s/"):
            await self.runtime.absorb("desk", memory, items)
        else:
            for node in self.runtime.topology.holders(memory[2:]):
                share = [i for i in items if item_node(self.runtime.topology, memory[2:], i.item_id) == node]
                await self.runtime.absorb(node, memory, share)
        return items


@pytest_asyncio.fixture(
    params=["local", pytest.param("ray", marks=pytest.mark.ray)], scope="module", loop_scope="module"
)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = samples.settings(tmp_path_factory.mktemp("runtime"), spare_hosts=0)
    journal = Journal.open(settings.journal())
    runtime: HostedRuntime
    if request.param == "local":
        runtime = LocalRuntime(samples.topology(), settings, journal, encoder=samples.encoder)
    else:
        request.getfixturevalue("ray_cluster")
        from qraf.actors.ray_runtime import RayRuntime

        runtime = RayRuntime(samples.topology(), settings, encoder=samples.encoder)
    checked: Runtime = runtime  # the contract, held by the type checker
    await checked.start()
    yield World(runtime, journal)
    await runtime.close()
    await runtime.close()
    with pytest.raises(NodeDown):
        await runtime.encode(["late"])
    journal.close()


async def test_it_starts_with_every_node_up(world: World) -> None:
    assert world.runtime.phase == "ready"
    assert all(health.up for health in world.runtime.health.values())
    assert {world.runtime.health[node].epoch for node in ("desk", "shelf")} <= {1, 2}


async def test_prompts_are_encoded_in_order_whoever_asks_at_the_same_time(world: World) -> None:
    texts = [[f"prompt {n}", f"and {n}"][: 1 + n % 2] for n in range(20)]
    rows = await asyncio.gather(*(world.runtime.encode(one) for one in texts))
    for given, got in zip(texts, rows, strict=True):
        assert np.array_equal(got, HashEncoder(DIM).encode(given))


async def test_text_that_was_written_is_recalled_with_figures(world: World) -> None:
    items = await world.write("s/ann", list(FACTS))
    answers = [one async for one in world.runtime.recall([visit("desk", "s/ann", "what is the parrot called")])]
    assert [one.error for one in answers] == [""]
    assert answers[0].evidence[0].seq == items[0].seq
    assert answers[0].evidence[0].node == "desk"
    assert answers[0].figures == await world.runtime.figures("desk", "s/ann")
    assert answers[0].figures.items == len(FACTS)


async def test_a_visit_of_several_hosts_is_answered_by_all(world: World) -> None:
    await world.write("c/notes", list(FACTS), prefix="n")
    visits = [visit(node, "c/notes", "parrot", k=10) for node in ("shelf", "attic")] + [visit("desk", "s/x", "parrot")]
    answers = {one.node: one async for one in world.runtime.recall(visits)}
    assert set(answers) == {"shelf", "attic", "desk"}
    assert answers["shelf"].items_scanned + answers["attic"].items_scanned == len(FACTS)
    assert answers["desk"].items_scanned == 0


async def test_many_at_once_get_their_own_answers(world: World) -> None:
    await world.write("s/crowd", list(FACTS), prefix="c")

    async def ask(n: int) -> int:
        async for one in world.runtime.recall([visit("desk", "s/crowd", FACTS[n % 6], k=1)]):
            return one.evidence[0].seq
        raise AssertionError("no answer")

    seqs = await asyncio.gather(*(ask(n) for n in range(60)))
    texts = world.journal.fetch(seqs)
    assert [texts[seq].text for seq in seqs] == [FACTS[n % 6] for n in range(60)]


async def test_errors_arrive_as_themselves(world: World) -> None:
    items = commit(world.journal, "c/other", ["text"])
    with pytest.raises(NotFound, match="other"):
        await world.runtime.absorb("shelf", "c/other", items)
    with pytest.raises(InvalidRequest, match="no sessions"):
        await world.runtime.absorb("shelf", "s/ann", items)
    with pytest.raises(NotFound, match="nowhere"):
        await world.runtime.figures("nowhere", "s/ann")


async def test_forgetting_reaches_the_node(world: World) -> None:
    items = await world.write("s/forget", list(FACTS), prefix="f")
    await asyncio.to_thread(world.journal.tombstone, "s/forget", [items[0].seq])
    receipt = await world.runtime.forget("desk", "s/forget", [items[0].seq])
    assert (receipt.forgotten, receipt.after.items) == (1, 5)
    await asyncio.to_thread(world.journal.drop_memory, "s/forget")
    await world.runtime.drop("desk", "s/forget")
    assert (await world.runtime.figures("desk", "s/forget")).items == 0


async def test_a_memory_is_coded_anew_with_what_its_session_says_now(world: World) -> None:
    await world.write("s/thin", list(FACTS))
    plain = await world.runtime.figures("desk", "s/thin")
    record = SessionRecord(id="thin", created_at=1.0, bits=1, budget_bytes=8192)
    await asyncio.to_thread(world.journal.put_session, record)
    thin = await world.runtime.recode("desk", "s/thin", len(FACTS))
    assert (thin.bits, thin.budget_bytes, thin.tiers) == (1, 8192, {"1": len(FACTS), "evicted": 0})
    assert (thin.version > plain.version, thin.fidelity < plain.fidelity) == (True, True)
    answers = [answer async for answer in world.runtime.recall([visit("desk", "s/thin", FACTS[2], k=1)])]
    [best] = answers[0].evidence
    assert (await asyncio.to_thread(world.journal.fetch, [best.seq]))[best.seq].text == FACTS[2]


async def test_advertisements_come_once_and_the_pooled_state_holds_everything(world: World) -> None:
    await world.runtime.advertisements()
    await world.write("s/ad", list(FACTS), prefix="ad")
    changed = await world.runtime.advertisements()
    assert [(ad.node, ad.memory, ad.items) for ad in changed] == [("desk", "s/ad", len(FACTS))]
    assert await world.runtime.advertisements() == []
    everything = await world.runtime.advertisements(everything=True)
    pooled = await world.runtime.pooled_sketch()
    assert pooled is not None
    assert Sketch.from_bytes(pooled).mass == pytest.approx(sum(ad.items for ad in everything))


async def test_an_absorb_that_did_not_arrive_is_made_good_by_the_next_recall(world: World) -> None:
    items = await world.write("s/late", list(FACTS[:3]), prefix="l")
    late = await asyncio.to_thread(commit, world.journal, "s/late", list(FACTS[3:]), "late")
    absorbing = asyncio.create_task(world.runtime.absorb("desk", "s/late", late))
    await asyncio.sleep(0)
    absorbing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await absorbing
    async for one in world.runtime.recall([visit("desk", "s/late", "tomatoes", k=10)]):
        assert one.items_scanned == len(items) + len(late)
    assert world.runtime._stale == {}


async def test_a_forget_that_did_not_arrive_is_made_good_by_the_next_recall(world: World) -> None:
    items = await world.write("s/lost", list(FACTS), prefix="f")
    await asyncio.to_thread(world.journal.tombstone, "s/lost", [items[0].seq])
    forgetting = asyncio.create_task(world.runtime.forget("desk", "s/lost", []))  # as if it had come to nothing
    await asyncio.sleep(0)
    forgetting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forgetting
    async for one in world.runtime.recall([visit("desk", "s/lost", "parrot", k=10)]):
        assert one.items_scanned == len(FACTS) - 1
    assert world.runtime._stale == {}


async def test_leaving_a_recall_early_leaves_nothing_behind(world: World) -> None:
    answers = world.runtime.recall([visit("desk", "s/ann", "parrot"), visit("shelf", "c/notes", "parrot")])
    async for _ in answers:
        break
    await answers.aclose()  # type: ignore[attr-defined]
    assert [one.error async for one in world.runtime.recall([visit("desk", "s/ann", "parrot")])] == [""]


async def test_views_and_stats_tell_what_nodes_hold(world: World) -> None:
    await world.write("s/views", list(FACTS), prefix="v")
    stats = {one.node: one for one in await world.runtime.stats()}
    assert set(stats) == {"desk", "shelf", "attic"}
    views = {one.node: one for one in world.runtime.views()}
    assert set(views) == {"desk", "shelf", "attic", "writer"}
    assert views["desk"].items == stats["desk"].items >= len(FACTS)
    assert views["desk"].up
    assert views["writer"].role == "generator"


async def test_a_generator_with_a_url_is_found_there(world: World) -> None:
    endpoint = world.runtime.endpoint("writer")
    assert (endpoint.url, endpoint.model) == ("http://127.0.0.1:9/v1", "test")


@pytest.mark.ray
@pytest.mark.parametrize("world", ["ray"], indirect=True)
async def test_hosts_are_other_processes_with_names(world: World) -> None:
    import ray

    pids = {report.pid for report in world.runtime._reports.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    space = world.runtime.settings.runtime.namespace
    assert ray.get_actor("host/front", namespace=space) is not None


async def test_calls_that_wait_are_bounded(tmp_path: Path) -> None:
    settings = samples.settings(tmp_path, max_waiting=2)
    journal = Journal.open(settings.journal())
    runtime = LocalRuntime(samples.topology(), settings, journal, encoder=samples.encoder)
    await runtime.start()
    calls = [asyncio.create_task(runtime.encode(["text"])) for _ in range(7)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in results] == [np.ndarray] * 4 + [LimitExceeded] * 3  # two wait for each of two hosts
    await runtime.close()
    journal.close()


async def test_states_are_made_changed_and_refused_by_hosts(world: World) -> None:
    made = await world.runtime.states(StatePrepare(states=(Preparation(named="bell"), Preparation(text="hello"))))
    assert isinstance(made, StateViews)
    pair, text = made.states
    assert text.d == DIM
    damp = Step(channel="amplitude_damping", gamma=0.3, subsystems=(0,))
    orders = [StateEvolve(ids=(pair.id,), steps=(damp,), versions=(1,)) for _ in range(4)]
    answers = await asyncio.gather(*map(world.runtime.states, orders), return_exceptions=True)
    assert sum(isinstance(answer, StateViews) for answer in answers) == 1
    assert sum(isinstance(answer, VersionConflict) for answer in answers) == 3
    compared = await world.runtime.states(StateCompare(pairs=((pair.id, Preparation(named="bell")),)), is_job=True)
    assert isinstance(compared, Compared)
    assert compared.results[0].fidelity == pytest.approx(0.8433300132670378)
    with pytest.raises(InvalidRequest) as caught:
        await world.runtime.states(StateMeasure(ids=(pair.id,), basis="Z"))
    assert caught.value.pointer == "/basis"
    with pytest.raises(NotFound):
        await world.runtime.states(StateDelete(ids=("st_none",)))
    assert set(world.journal.states.versions([pair.id, text.id]).values()) == {1, 2}


async def test_services_work_in_a_host_each_order_with_its_own_answer(world: World) -> None:
    services = InlineServices(send=world.runtime.work)
    answers = await asyncio.gather(
        services.call("optimization", Nearest(matrices=([1.25, 0.0], [0.0, -0.25]))),
        services.call("optimization", Nearest(matrices=([1.0, 2.0],))),
        services.call("correction", Repair(matrices=([1.25, 0.0], [0.0, -0.25]))),
        return_exceptions=True,
    )
    assert isinstance(answers[0], NearestStates)
    assert isinstance(answers[1], InvalidRequest)
    assert answers[1].pointer == "/matrices"
    assert isinstance(answers[2], Repaired)
    assert {one.place for one in await services.status()} == {"host"}
    await services.close()
