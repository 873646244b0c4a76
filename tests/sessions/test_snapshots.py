"""Snapshots as a user meets them: a server that starts again, forgets, deletes, and says what fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qraf.actors.messages import SnapshotStats
from qraf.actors.runtime import LocalRuntime
from qraf.clock import FakeClock
from qraf.frames import Recall
from qraf.sessions.meters import Meters
from qraf.sessions.operations import Operations
from qraf.sessions.service import Service
from qraf.sessions.snapshots import order_snapshots
from qraf.settings import SealSettings, Settings, SnapshotSettings
from qraf.storage.journal import Journal
from qraf.storage.seal import MasterKeys
from qraf.tenants import DEFAULT_TENANT, tenant_of
from tests.encoders import HashEncoder
from tests.openai_server import OpenAIServer
from tests.sessions.test_service import NUTS, filled, model, with_writer

__all__ = ["model"]


def test_counts_of_hosts_add_up_over_looks_and_epochs() -> None:
    meters = Meters()
    for epoch, made, failed in ((1, 2, 0), (1, 3, 1), (2, 0, 0), (2, 1, 0)):
        meters.see_snapshots({"front": (epoch, SnapshotStats(made=made, failed=failed, bytes=10 * made))})
    value = meters.registry.get_sample_value
    assert value("qraf_snapshots_total", {"outcome": "made"}) == 4
    assert value("qraf_snapshots_total", {"outcome": "failed"}) == 1
    assert value("qraf_snapshot_bytes_total") == 40


@asynccontextmanager
async def serving(folder: Path, model: OpenAIServer) -> AsyncIterator[Service]:
    settings = Settings(data=folder, snapshots=SnapshotSettings(min_items=2, every_items=1))
    journal = Journal.open(settings.journal(), None, MasterKeys(SealSettings(), settings.master_key_file()))
    network = with_writer()
    runtime = LocalRuntime(
        network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint
    )
    service = Service(settings, network, journal, runtime)
    await service.start()
    try:
        yield service
    finally:
        await service.close()
        journal.close()


def counts(service: Service) -> SnapshotStats:
    service.runtime.views()
    return service.runtime.snapshots()["front"][1]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_server_starts_from_what_the_last_one_left_and_files_hold_nothing_forgotten(
    tmp_path: Path, model: OpenAIServer
) -> None:
    def files() -> list[Path]:
        return list((tmp_path / "snapshots").rglob("*.snapshot*"))

    ask = Recall(id="2", session="ana", text="Who is allergic to nuts?", k=5)
    async with serving(tmp_path, model) as service:
        await filled(service)
        first = await service.recall(ask)
    assert len(files()) == 1  # made while it stopped
    async with serving(tmp_path, model) as service:
        again = await service.recall(ask)
        assert again.evidence == first.evidence
        assert counts(service).restored == 1
        receipt = await service.items.delete("ana", None, "i0", False)
        assert receipt.forgotten == 1
        assert files() == []
        await until(lambda: len(files()) == 1)  # and soon there is one without it
        assert NUTS[0] not in [one.text for one in (await service.recall(ask)).evidence]
        await service.delete_session("ana")
        assert files() == []


@pytest.mark.slow
async def test_health_says_when_none_can_be_made(tmp_path: Path, model: OpenAIServer) -> None:
    (tmp_path / "snapshots").write_text("no directory")
    async with serving(tmp_path, model) as service:
        assert service.health.report()["degraded"] == []
        await filled(service)
        await until(lambda: counts(service).failed > 0)
        told = service.health.report()
        assert told["ready"]
        [one] = told["degraded"]
        assert (one["what"], one["since"] > 0) == ("snapshots", True)
        assert "snapshots cannot be made" in one["detail"]
        assert str(tmp_path) not in one["detail"]


async def test_an_operator_of_a_tenant_orders_its_own_snapshots_and_one_of_the_server_all(clock: FakeClock) -> None:
    class Due:
        made: list[str]

        async def due_snapshots(self) -> list[tuple[str, str]]:
            return [("inbox", "s/ann"), ("inbox", "s/acme/ann"), ("inbox", "s/bolt/ann"), ("desk", "c/acme/manuals")]

        async def snapshot(self, node: str, memory: str) -> str:
            self.made.append(memory)
            return "made"

    runtime: Any = Due()
    operations = Operations(clock, max_open=3, kept_s=600)
    for tenant, memories in (("acme", 2), ("bolt", 1), ("idle", 0), (DEFAULT_TENANT, 4)):
        runtime.made = []
        view = await order_snapshots(runtime, SnapshotSettings(), operations, tenant)
        async with asyncio.timeout(10):
            while operations.get(view.id, tenant).status != "completed":
                await asyncio.sleep(0)
        assert len(runtime.made) == memories
        assert tenant == DEFAULT_TENANT or all(tenant_of(one[2:]) == tenant for one in runtime.made)
