"""Nothing that was forgotten is recalled, listed, or advertised, and the journal does not hold it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text as sql

from qraf.clock import FakeClock
from qraf.errors import NodeDown, NotFound, SessionNotFound
from qraf.frames import Recall, WireItem, Write
from qraf.records import Filter
from qraf.sessions.service import Service
from tests.sessions.test_service import NUTS, clock, filled, model, service

__all__ = ["clock", "model", "service"]

pytestmark = pytest.mark.slow  # a whole service

AWAY = "Quetzalcoatl plays the xylophone."
MEMORY = ("desk", "s/ana")


async def advertised(service: Service) -> tuple[bytes, np.ndarray, int] | None:
    """What the router holds of the session: bitmap, mean state, items; None where it knows nothing."""
    service.recaller.touch()
    await service.recaller.refresh()
    ads = service.recaller.router._advertised
    row = ads._row.get(MEMORY)
    if row is None:
        return None
    mean = ads._centroid[row].astype(np.float64) * float(ads._scale[row])
    return ads._bitmap[row].tobytes(), mean, int(ads._items[row])


def raw(service: Service) -> str:
    """All of the journal's items, as they are in the database."""
    with service.journal._read("look") as connection:
        return str(connection.execute(sql("select * from items where memory = 's/ana'")).all())


async def gone(service: Service) -> None:
    found = await service.recall(Recall(id="r", session="ana", text=AWAY, k=50))
    assert [item for item in found.evidence if "xylophone" in item.text] == []
    items, _ = await service.items.page("ana", None, None, 100)
    assert [item for item in items if item.text == AWAY] == []
    with pytest.raises(NotFound):
        await service.items.get("ana", None, "away")
    assert "xylophone" not in raw(service)


async def write_away(service: Service, **fields) -> None:
    done = await service.write(Write(id="w", session="ana", items=(WireItem(item_id="away", text=AWAY, **fields),)))
    assert done.accepted == 1
    assert AWAY in raw(service)  # nothing is sealed here, so that the tests see


async def by_item(service: Service, dry_run: bool = False):
    return await service.items.delete("ana", None, "away", dry_run)


async def by_filter(service: Service, dry_run: bool = False):
    which = Filter(field="item_id", eq="away")
    count, receipts = await service.items.forget("ana", None, which, dry_run)
    assert count == 1
    return receipts[0] if receipts else None


@pytest.mark.parametrize("how", [by_item, by_filter])
async def test_the_receipt_of_a_memory_that_was_not_open_says_what_it_held(service: Service, how) -> None:
    await filled(service)
    await write_away(service)
    held = (await service.figures("ana")).items
    await service.runtime.drop(*MEMORY)  # as after a restart
    receipt = await how(service)
    assert (receipt.forgotten, receipt.before.items, receipt.after.items) == (1, held, held - 1)


@pytest.mark.parametrize("how", [by_item, by_filter])
async def test_what_is_forgotten_is_not_advertised(service: Service, how) -> None:
    await filled(service)
    without = await advertised(service)
    await write_away(service, pin=True)  # a pin keeps from decay, not from being forgotten
    with_it = await advertised(service)
    assert with_it[2] == 4
    assert with_it[0] != without[0]
    await how(service, dry_run=True)
    assert (await service.items.get("ana", None, "away")).text == AWAY
    receipt = await how(service)
    assert (receipt.forgotten, receipt.before.items, receipt.after.items) == (1, 4, 3)
    bitmap, mean, items = await advertised(service)
    assert (bitmap, items) == (without[0], 3)
    np.testing.assert_allclose(mean, without[1], atol=1e-6)
    await gone(service)


async def test_the_last_item_of_a_memory_leaves_an_empty_advertisement(service: Service) -> None:
    await filled(service, texts=NUTS[:1])
    bitmap, mean, items = await advertised(service)
    assert (any(bitmap), bool(np.any(mean)), items) == (True, True, 1)
    await service.items.delete("ana", None, "i0")
    assert (await service.figures("ana")).items == 0
    bitmap, mean, items = await advertised(service)
    assert (any(bitmap), bool(np.any(mean)), items) == (False, False, 0)


async def test_an_erased_session_is_known_no_more(service: Service, clock: FakeClock) -> None:
    await filled(service)
    await write_away(service)
    assert (await advertised(service))[2] == 4
    dry = await service.delete_session("ana", dry_run=True)
    assert (dry.forgotten, dry.before, dry.before.items) == (4, dry.after, 4)
    receipt = await service.delete_session("ana")
    assert (receipt.forgotten, receipt.before.items, receipt.after.items) == (4, 4, 0)
    left = await advertised(service)
    assert left is None or (any(left[0]), bool(np.any(left[1])), left[2]) == (False, False, 0)
    assert service.recaller.router._advertised._pooled is not None
    clock.advance(60)  # the pooled state is made anew every few seconds
    await advertised(service)
    assert service.recaller.router._advertised._pooled is None
    assert "xylophone" not in raw(service)
    with pytest.raises(SessionNotFound):
        await service.items.page("ana", None, None, 10)


async def test_what_has_expired_is_removed_and_not_only_hidden(service: Service, clock: FakeClock) -> None:
    await filled(service)
    without = await advertised(service)
    await write_away(service, ttl_s=60, pin=True)
    assert (await advertised(service))[2] == 4
    clock.advance(61)
    await service.items.forget_expired()
    assert (await service.figures("ana")).items == 3
    bitmap, mean, items = await advertised(service)
    assert (bitmap, items) == (without[0], 3)
    np.testing.assert_allclose(mean, without[1], atol=1e-6)
    await gone(service)


async def test_a_node_that_is_down_is_not_advertised_with_what_was_forgotten(service: Service, monkeypatch) -> None:
    await filled(service)
    await write_away(service)
    assert (await advertised(service))[2] == 4
    ask = service.runtime._ask

    async def down(host: str, method: str, *args, **kwargs):
        if method == "forget":
            raise NodeDown("desk", "it died")
        return await ask(host, method, *args, **kwargs)

    monkeypatch.setattr(service.runtime, "_ask", down)
    await service.items.delete("ana", None, "away")
    assert await advertised(service) is None
    assert "xylophone" not in raw(service)


async def test_a_generator_that_another_stands_in_for_is_not_needed(service: Service) -> None:
    health, nodes = service.runtime.health, dict(service.topology.nodes)
    health["writer"] = replace(health["writer"], up=False)
    assert not service.health.report()["ready"]
    nodes["second"] = replace(nodes["writer"], name="second")
    service.health._topology = replace(service.topology, nodes=nodes)
    told = service.health.report()
    assert (told["ready"], told["degraded"][0]["what"]) == (True, "node writer")
    since = told["degraded"][0]["since"]
    assert service.health.report()["degraded"][0]["since"] == since
