"""Prompts over noisy links, through the whole service: what crosses, what is told, what is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.clock import FakeClock
from qraf.frames import Enhance, Recall, RecallDone, ResponseDone, ResponseHop, WireItem, Write
from qraf.network.topology import NoiseSpec, ProtectSpec, Topology
from qraf.records import Prompt
from qraf.sessions.recall import Measurement
from qraf.sessions.service import Service
from qraf.settings import Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.sessions.samples import topology

pytestmark = pytest.mark.slow  # a whole service, or processes

TEXTS = ("The parrot is called Pixel.", "Berlin is the capital of Germany.", "The bicycle has a flat tyre.")


def noisy(**noise: object) -> Topology:
    """`desk` -> `shelf` as asked, `desk` -> `attic` protected."""
    plain = topology()
    first, second = plain.links
    protect = ProtectSpec("rotated_surface", 3, 3)
    return replace(
        plain,
        links=(
            replace(first, noise=NoiseSpec(**noise)),  # type: ignore[arg-type]
            replace(second, noise=NoiseSpec(depolarizing=0.002), protect=protect),
        ),
    )


async def started(network: Topology, folder: Path) -> tuple[Service, Journal]:
    settings, clock = Settings(data=folder, journal_url="sqlite:///:memory:"), FakeClock()
    journal = Journal.open(settings.journal(), clock)
    runtime = LocalRuntime(network, settings, journal, encoder=lambda: HashEncoder(network.dim), clock=clock)
    service = Service(settings, network, journal, runtime, clock)
    await service.start()
    for collection in ("notes", "papers"):
        items = tuple(WireItem(text=text) for text in TEXTS)
        await service.write(Write(id="w", collection=collection, items=items))
    return service, journal


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service, journal = await started(noisy(depolarizing=0.3), tmp_path)
    yield service
    await service.close()
    journal.close()


def corrections(service: Service) -> float:
    return service.meters.registry.get_sample_value("qraf_corrections_total", {"kind": "link"}) or 0.0


async def test_recall_tells_what_the_links_did_and_the_same_id_meets_the_same_errors(service: Service) -> None:
    asked = Recall(id="r1", text="What is the parrot called?", collections=("notes", "papers"))
    done: RecallDone = await service.recall(asked)
    shelf, attic = sorted(done.links, key=lambda link: link.target, reverse=True)
    assert [(link.source, link.target) for link in (shelf, attic)] == [("desk", "shelf"), ("desk", "attic")]
    assert shelf.w == pytest.approx(0.7)  # a depolarised qubit keeps w = 1 - p
    assert (shelf.corrections, len(shelf.errors)) == (0.0, 9)
    assert 0.9 < attic.w < 1
    assert attic.corrections > 1
    again = await service.recall(asked)
    assert (again.links, again.evidence) == (done.links, done.evidence)
    others = [await service.recall(msgspec.structs.replace(asked, id=f"r{n}")) for n in range(8)]
    assert len({done.links for done in others}) > 4


async def test_the_words_of_a_prompt_cross_exactly(service: Service) -> None:
    for n in range(6):
        done = await service.recall(Recall(id=f"w{n}", text="parrot Pixel", collections=("notes",), explain=True))
        found = {item.text: item.terms for item in done.evidence}
        terms = found[TEXTS[0]]
        assert terms is not None
        if n == 0:
            lexical = terms.lexical
        assert terms.lexical == pytest.approx(lexical)


async def test_hops_name_the_links_on_their_way_and_the_counter_counts_expected_corrections(service: Service) -> None:
    assert corrections(service) == 0
    response = await service.prompts.start(
        Enhance(id="e1", prompt="What is the parrot called?", collections=("notes", "papers"), generate=False), "me"
    )
    frames = [frame async for frame in response.frames()]
    assert isinstance(frames[-1], ResponseDone)
    hops = [frame for frame in frames if isinstance(frame, ResponseHop)]
    assert {hop.node: [(link.source, link.target) for link in hop.links] for hop in hops} == {
        "shelf": [("desk", "shelf")],
        "attic": [("desk", "attic")],
    }
    for hop in hops:
        assert hop.arrived == pytest.approx(hop.links[0].fidelity)  # one link: what arrived is what crossed it
    links = {hop.node: hop.links[0] for hop in hops}
    assert corrections(service) == pytest.approx(links["attic"].corrections)


async def test_states_lose_to_noise_what_they_cannot_keep(service: Service) -> None:
    told = [await service.recall(Recall(id=f"f{n}", text="parrot", collections=("notes",))) for n in range(40)]
    fidelities = [link.fidelity for done in told for link in done.links if link.target == "shelf"]
    assert len(fidelities) == 40
    # 9 qubits at pI = 1 - 3/4 of 0.3: few cross whole
    assert 0.02 < np.mean(fidelities) < 0.4
    assert max(fidelities) == pytest.approx(1)


async def test_exact_links_say_nothing(tmp_path: Path) -> None:
    service, journal = await started(topology(), tmp_path)
    done = await service.recall(Recall(id="r", text="parrot", collections=("notes",)))
    assert done.links == ()
    assert not (tmp_path / "links").exists()
    await service.close()
    journal.close()


async def test_the_channel_of_a_protected_link_is_kept_in_the_data_directory(tmp_path: Path) -> None:
    for _ in range(2):
        service, journal = await started(noisy(dephasing=0.1), tmp_path)
        assert service.recaller.router.channels["desk", "shelf"].probabilities == pytest.approx((0.95, 0, 0, 0.05))
        await service.close()
        journal.close()
        [kept] = (tmp_path / "links").iterdir()
        changed = kept.stat().st_mtime_ns
    assert kept.stat().st_mtime_ns == changed


def test_a_measurement_has_each_link_once() -> None:
    prompt = Prompt(np.zeros(4, np.float32), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    measurement = Measurement(prompt, route=None)  # type: ignore[arg-type]
    assert measurement.links() == measurement.links("anywhere") == ()
    assert measurement.fidelity("anywhere") == 1
