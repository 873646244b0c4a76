import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.clock import SystemClock
from qraf.errors import InvalidRequest, LimitExceeded, NodeDown, NotFound, SessionClosed, SessionNotFound, StorageFailed
from qraf.frames import WireItem
from qraf.network.placement import item_node
from qraf.records import RecallQuery, Visit
from qraf.sessions.commits import ByteBudget
from qraf.sessions.registry import Sessions
from qraf.sessions.write import Writer
from qraf.settings import LimitSettings, Settings
from qraf.storage.journal import Draft, Journal
from qraf.text.prepare import prepare
from tests.encoders import HashEncoder
from tests.sessions.samples import MemoryRuntime, topology

LIMITS = LimitSettings(max_write_bytes_in_flight=8192, write_wait_ms=0, max_item_bytes=2000, max_items_per_write=16)


@pytest.fixture
async def runtime():
    return MemoryRuntime()


@pytest.fixture
def network():
    return topology()


@pytest.fixture
async def sessions(journal, network, clock):
    sessions = Sessions(journal, network, clock)
    await sessions.open("alice")
    return sessions


@pytest.fixture
async def writer(journal, runtime, sessions, network, clock):
    writer = Writer(LIMITS, journal, runtime, sessions, network, clock, patience_s=0.2)
    await writer.start()
    yield writer
    runtime.gate.set()
    await writer.close()
    assert writer.budget.used == 0


def said(*texts: str, **fields) -> list[WireItem]:
    return [WireItem(text=text, **fields) for text in texts]


async def settled() -> None:
    """Let everything go on that can, threads included."""
    for _ in range(50):
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------------ what is written
async def test_what_was_said_is_durable_and_absorbed(writer, journal, runtime, sessions, clock):
    item = WireItem(
        item_id="i1", text="Hello there", speaker="Ada", at="2023-05-07T12:00:00Z", metadata={"a": 1}, pin=True
    )
    done = await writer.write(session="alice", items=[item, *said("And again", ttl_s=60)], id="w1")
    assert (done.id, done.accepted, done.duplicates, done.rejected) == ("w1", 2, 0, ())
    assert (done.state.items, done.state_version) == (2, done.state.version)
    first, second = journal.items("s/alice")
    assert done.item_ids == (first.item_id, second.item_id)
    assert (first.text, first.speaker, first.at, first.metadata, first.pin) == (
        "Hello there",
        "Ada",
        1683460800.0,
        {"a": 1},
        True,
    )
    assert (second.at, second.expires_at) == (clock.now(), clock.now() + 60)
    assert second.item_id.startswith("itm_")
    assert runtime.held("s/alice") == {"desk": {first.seq, second.seq}}
    assert await sessions.speakers("s/alice") == ("Ada",)


CARD = "4111 1111 1111 1111"


async def written(journal, runtime, sessions, network, clock, on_secret):
    writer = Writer(LIMITS, journal, runtime, sessions, network, clock, on_secret=on_secret)
    await writer.start()
    items = [
        *said("nothing here", item_id="a"),
        *said(f"my card is {CARD}", item_id="b"),
        WireItem(item_id="c", text="see there", metadata={"card": [CARD]}),
        *said(f"Two cards. {CARD}. The end.", item_id="d", role="document"),
    ]
    done = await writer.write(session="alice", items=items)
    await writer.close()
    return done, [(item.text, item.metadata) for item in journal.items("s/alice")]


async def test_a_secret_is_written_and_warned_of(journal, runtime, sessions, network, clock):
    done, held = await written(journal, runtime, sessions, network, clock, "warn")
    assert (done.accepted, done.rejected) == (4, ())
    assert [(one.item_id, one.kind, one.is_masked) for one in done.warnings] == [
        (name, "card_number", False) for name in "bcd"
    ]
    assert held[1] == (f"my card is {CARD}", {})


async def test_a_secret_is_masked(journal, runtime, sessions, network, clock):
    done, held = await written(journal, runtime, sessions, network, clock, "mask")
    assert [(one.item_id, one.is_masked) for one in done.warnings] == [(name, True) for name in "bcd"]
    assert held[1:3] == [("my card is [card_number]", {}), ("see there", {"card": ["[card_number]"]})]
    assert CARD not in str(held)


async def test_an_item_with_a_secret_is_refused_and_the_others_go_on(journal, runtime, sessions, network, clock):
    done, held = await written(journal, runtime, sessions, network, clock, "refuse")
    assert (done.accepted, done.warnings, [text for text, _ in held]) == (1, (), ["nothing here"])
    assert [(one.index, one.item_id, one.error.pointer) for one in done.rejected] == [
        (1, "b", "/items/1/text"),
        (2, "c", "/items/2/metadata"),
        (3, "d", "/items/3/text"),
    ]
    assert CARD not in str(done.rejected)


async def test_nobody_looks_where_that_is_off(journal, runtime, sessions, network, clock):
    done, _ = await written(journal, runtime, sessions, network, clock, "off")
    assert (done.accepted, done.warnings) == (4, ())


async def test_the_same_item_id_again_changes_nothing(writer, journal, runtime):
    await writer.write(session="alice", items=said("one", item_id="a"))
    done = await writer.write(
        session="alice", items=[*said("two", item_id="a"), *said("x", item_id="b"), *said("y", item_id="b")]
    )
    assert (done.accepted, done.duplicates, done.item_ids, done.state.items) == (1, 2, ("b",), 2)
    assert [item.text for item in journal.items("s/alice")] == ["one", "x"]


async def test_a_duplicate_that_was_never_absorbed_is_absorbed_from_the_journal(writer, journal, runtime):
    [old] = journal.commit("s/alice", [Draft(item_id="a", text="the first words")])
    done = await writer.write(session="alice", items=said("other words", item_id="a"))
    assert (done.accepted, done.duplicates, done.state.items) == (0, 1, 1)
    assert runtime.held("s/alice") == {"desk": {old.seq}}
    assert journal.find("s/alice", "a").text == "the first words"


async def test_documents_become_passages_with_ids_that_stay(writer, journal):
    text = " ".join(f"Sentence number {n} tells of owls." for n in range(55))
    document = WireItem(item_id="doc", text=text, role="document", metadata={"source": "owls.txt"})
    done = await writer.write(collection="papers", items=[document])
    assert done.accepted == len(done.item_ids) > 2
    assert done.item_ids == tuple(f"doc#{n}" for n in range(done.accepted))
    items = journal.items("c/papers")
    assert all(item.metadata == {"source": "owls.txt"} and item.role == "document" for item in items)
    assert "number 0 " in items[0].text
    assert "number 54 " in items[-1].text
    again = await writer.write(collection="papers", items=[document])
    assert (again.accepted, again.duplicates) == (0, done.accepted)


async def test_a_collection_is_shared_out_over_its_nodes(writer, journal, runtime, network):
    done = await writer.write(
        collection="notes", items=[WireItem(item_id=f"n{n}", text=f"note {n}") for n in range(16)]
    )
    shares = {"shelf": set(), "attic": set()}
    for item in journal.items("c/notes"):
        shares[item_node(network, "notes", item.item_id)].add(item.seq)
    assert runtime.held("c/notes") == shares
    assert all(shares.values())
    assert done.state.items == max(map(len, shares.values()))


async def test_amplitudes_from_outside_are_written_at_unit_norm(writer, journal):
    values = [0.0] * 384
    values[3], values[4] = 3e200, -4e200
    done = await writer.write(session="alice", items=[WireItem(amplitudes=tuple(values))])
    psi = np.frombuffer(journal.items("s/alice")[0].amplitudes, np.float32)
    assert done.accepted == 1
    np.testing.assert_allclose(psi[[3, 4]], [0.6, -0.8], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- what is refused
def amplitudes(*head: float, length: int = 384) -> tuple[float, ...]:
    return (*head, *[1.0] * (length - len(head)))


@pytest.mark.parametrize(
    ("item", "code", "pointer"),
    [
        (WireItem(text="x", role="recalled"), "recalled_not_absorbed", "/items/1/role"),
        (WireItem(), "invalid_request", "/items/1"),
        (WireItem(text="x", amplitudes=amplitudes()), "invalid_request", "/items/1"),
        (WireItem(text=""), "invalid_request", "/items/1/text"),
        (WireItem(text=" \n\t "), "invalid_request", "/items/1/text"),
        (WireItem(text="half \ud83d"), "invalid_request", "/items/1/text"),
        (WireItem(text="x" * 2001), "limit_exceeded", ""),
        (WireItem(text="x", item_id="\udc00"), "invalid_request", "/items/1/item_id"),
        (WireItem(text="x", item_id=""), "invalid_request", "/items/1/item_id"),
        (WireItem(text="x", item_id="a\nb"), "invalid_request", "/items/1/item_id"),
        (WireItem(text="x", speaker=" "), "invalid_request", "/items/1/speaker"),
        (WireItem(text="x", speaker="A\0da"), "invalid_request", "/items/1/speaker"),
        (WireItem(text="x", at="yesterday"), "invalid_request", "/items/1/at"),
        (WireItem(text="x", at=1e15), "invalid_request", "/items/1/at"),
        (WireItem(text="x", ttl_s=0), "invalid_request", "/items/1/ttl_s"),
        (WireItem(text="x", ttl_s=float("nan")), "invalid_request", "/items/1/ttl_s"),
        (WireItem(text="x", metadata={"a": "\ud800"}), "invalid_request", "/items/1/metadata"),
        (WireItem(text="x", metadata={"a": "b" * 5000}), "limit_exceeded", ""),
        (WireItem(amplitudes=()), "invalid_request", "/items/1/amplitudes"),
        (WireItem(amplitudes=amplitudes(length=383)), "invalid_request", "/items/1/amplitudes"),
        (WireItem(amplitudes=(0.0,) * 384), "invalid_request", "/items/1/amplitudes"),
        (WireItem(amplitudes=amplitudes(float("nan"))), "invalid_request", "/items/1/amplitudes"),
        (WireItem(amplitudes=amplitudes(float("inf"))), "invalid_request", "/items/1/amplitudes"),
    ],
)
async def test_a_wrong_item_is_rejected_and_the_others_are_written(writer, journal, runtime, item, code, pointer):
    done = await writer.write(session="alice", items=[*said("before"), item, *said("after\0")])
    [rejected] = done.rejected
    assert (rejected.index, rejected.error.code, rejected.error.pointer) == (1, code, pointer)
    assert rejected.error.detail
    rejected.item_id.encode()
    assert [item.text for item in journal.items("s/alice")] == ["before", "after\0"]
    assert (done.accepted, len(done.item_ids), done.state.items) == (2, 2, 2)


async def test_a_write_of_nothing_good_still_tells_the_figures(writer, journal):
    await writer.write(session="alice", items=said("hello"))
    done = await writer.write(session="alice", items=said(""))
    assert (done.accepted, len(done.rejected), done.state.items) == (0, 1, 1)
    done = await writer.write(collection="papers", items=said(""))
    assert (done.accepted, done.state.items) == (0, 0)


async def test_requests_that_cannot_be_are_refused_whole(writer, journal, sessions, clock):
    for error, call in (
        (InvalidRequest, writer.write(items=said("x"))),
        (InvalidRequest, writer.write(session="alice", collection="papers", items=said("x"))),
        (InvalidRequest, writer.write(session="alice", items=[])),
        (NotFound, writer.write(collection="unknown", items=said("x"))),
        (SessionNotFound, writer.write(session="nobody", items=said("x"))),
        (LimitExceeded, writer.write(session="alice", items=said(*"x" * 17))),
        (LimitExceeded, writer.write(session="alice", items=said(*["x" * 1900] * 5))),
    ):
        with pytest.raises(error):
            await call
    await sessions.pause("alice")
    with pytest.raises(SessionClosed):
        await writer.write(session="alice", items=said("x"))
    assert journal.memories() == []


async def test_a_session_deleted_by_another_gateway_takes_nothing(writer, journal, sessions):
    await sessions.get("alice")
    journal.delete_session("alice")  # not seen yet by `sessions`
    with pytest.raises(SessionNotFound):
        await writer.write(session="alice", items=said("x"))
    assert journal.memories() == []


# --------------------------------------------------------------------------------------------------- many and at once
async def test_writes_of_a_session_keep_their_order(writer, journal, sessions):
    await sessions.open("bob")
    long = [WireItem(text="word " * 300, role="document", item_id="long")]
    writes = [writer.write(session="alice", items=long if n == 3 else said(f"a{n}")) for n in range(6)]
    writes += [writer.write(session="bob", items=said(f"b{n}")) for n in range(3)]
    await asyncio.gather(*writes)
    texts = [item.text.strip() for item in journal.items("s/alice") if len(item.text) < 10]
    assert texts == ["a0", "a1", "a2", "a4", "a5"]
    ids = [item.item_id for item in journal.items("s/alice")]
    assert ids.index("long#0") == 3
    assert [item.text for item in journal.items("s/bob")] == ["b0", "b1", "b2"]


async def test_many_writes_share_a_commit_and_a_call(writer, journal, runtime):
    await writer.write(session="alice", items=said("first"))
    commits = writer.commits
    runtime.calls.clear()
    done = await asyncio.gather(*(writer.write(session="alice", items=said(f"n{n}")) for n in range(10)))
    assert all(one.accepted == 1 for one in done)
    assert writer.commits - commits < 10
    assert len(runtime.calls) < 10
    assert max(one.state.items for one in done) == 11


async def test_bytes_under_way_are_bounded(writer, runtime, journal):
    runtime.gate.clear()
    first = asyncio.create_task(writer.write(session="alice", items=said(*["x" * 1900] * 3)))
    second = asyncio.create_task(writer.write(collection="papers", items=said("y" * 1000)))
    await settled()
    with pytest.raises(LimitExceeded) as caught:
        await writer.write(collection="notes", items=said("z" * 1900))
    assert (caught.value.limit, caught.value.retry_after_ms) == ("max_write_bytes_in_flight", 100)
    runtime.gate.set()
    await asyncio.gather(first, second)
    assert (await writer.write(collection="notes", items=said("z" * 1900))).accepted == 1


async def test_a_write_given_up_by_its_client_is_still_absorbed(writer, runtime, journal):
    runtime.gate.clear()
    write = asyncio.create_task(writer.write(session="alice", items=said("hello")))
    await until(lambda: journal.count("s/alice"))
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    runtime.gate.set()
    [item] = journal.items("s/alice")
    await until(lambda: runtime.held("s/alice") == {"desk": {item.seq}})


async def test_closing_brings_writes_to_their_end_and_refuses_new_ones(writer, runtime):
    runtime.gate.clear()
    write = asyncio.create_task(writer.write(session="alice", items=said("hello")))
    await settled()
    closing = asyncio.create_task(writer.close())
    await settled()
    with pytest.raises(LimitExceeded):
        await writer.write(session="alice", items=said("late"))
    assert not closing.done()
    runtime.gate.set()
    await closing
    assert (await write).accepted == 1


# -------------------------------------------------------------------------------------------------------------- faults
async def test_a_node_that_comes_back_gets_the_items(writer, runtime, journal):
    runtime.faults["desk"] = [NodeDown("desk"), LimitExceeded("calls that wait", 1, 2, 500)]
    done = await writer.write(session="alice", items=said("hello"))
    assert (done.accepted, done.state.items, len(runtime.calls)) == (1, 1, 3)


async def test_a_node_that_stays_down_leaves_the_items_durable(writer, runtime, journal):
    runtime.faults["desk"] = [NodeDown("desk")] * 50
    done = await writer.write(session="alice", items=said("hello"))
    assert (done.accepted, done.state.items, done.state_version) == (1, 0, 0)
    assert journal.count("s/alice") == 1


async def test_what_a_node_refuses_for_good_is_taken_back_everywhere(writer, runtime, journal):
    await writer.write(collection="notes", items=[WireItem(item_id="kept", text="kept")])
    runtime.faults["shelf"] = [LimitExceeded("capacity_bytes of node 'shelf'", 10, 20)]
    items = [WireItem(item_id="kept", text="kept"), *(WireItem(item_id=f"n{n}", text=f"note {n}") for n in range(12))]
    with pytest.raises(LimitExceeded, match="capacity"):
        await writer.write(collection="notes", items=items)
    [kept] = journal.items("c/notes")
    assert kept.item_id == "kept"
    assert {seq for seqs in runtime.held("c/notes").values() for seq in seqs} == {kept.seq}
    assert (await writer.write(collection="notes", items=items)).accepted == 12


async def test_a_journal_that_fails_is_told_and_nothing_is_absorbed(network, runtime, clock, tmp_path):
    journal = Journal.open(f"sqlite:///{tmp_path / 'j.db'}", clock)
    sessions = Sessions(journal, network, clock)
    writer = Writer(LIMITS, journal, runtime, sessions, network, clock)
    await writer.start()
    with journal._write("break") as connection:
        connection.exec_driver_sql("DROP TABLE items")
    with pytest.raises(StorageFailed, match="no such table"):
        await writer.write(collection="papers", items=said("x"))
    assert (runtime.calls, writer.budget.used) == ([], 0)
    await writer.close()
    journal.close()


# -------------------------------------------------------------------------------------------------------------- budget
def soon() -> float:
    return asyncio.get_running_loop().time() + 5


async def test_room_goes_to_who_came_first():
    budget = ByteBudget(10, wait_ms=5000, max_queued_bytes=100)
    await budget.take(8, soon())
    order, waits = [], []

    async def take(name: str, size: int) -> None:
        await budget.take(size, soon(), lambda: waits.append(name))
        order.append(name)

    large, small = asyncio.create_task(take("large", 9)), asyncio.create_task(take("small", 1))
    await settled()
    assert order == []  # the small one would fit, but does not overtake
    assert (waits, budget.is_full) == (["large", "small"], True)
    budget.give(8)
    await asyncio.gather(large, small)
    assert (order, budget.used) == (["large", "small"], 10)


async def test_who_gives_up_waiting_lets_the_next_one_in():
    budget = ByteBudget(10, wait_ms=5000, max_queued_bytes=100)
    await budget.take(8, soon())
    large, small = asyncio.create_task(budget.take(9, soon())), asyncio.create_task(budget.take(2, soon()))
    await settled()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await small
    assert budget.used == 10


async def test_who_is_too_late_is_refused_and_what_waits_is_bounded():
    budget = ByteBudget(10, wait_ms=250, max_queued_bytes=12)
    await budget.take(8, soon())
    with pytest.raises(LimitExceeded) as late:
        await budget.take(9, asyncio.get_running_loop().time())
    assert late.value.retry_after_ms == 250
    with budget.line(9):
        with pytest.raises(LimitExceeded, match="max_queued_write_bytes"), budget.line(4):
            pass
        with budget.line(3):
            assert (budget.queued, budget.queued_bytes) == (2, 12)
    assert (budget.queued, budget.queued_bytes) == (0, 0)


# ---------------------------------------------------------------------------------------------------- with real nodes
async def test_what_is_written_can_be_recalled_from_real_nodes(tmp_path, network):
    """And a runtime that starts afresh on the same journal recalls the same."""
    url, settings = f"sqlite:///{tmp_path / 'journal.db'}", Settings(data=tmp_path)
    queries = [RecallQuery(prepare("the parrot", (), HashEncoder(384).encode(["the parrot"])[0]), k=3)]
    recalled = []
    for start in range(2):
        journal = Journal.open(url)
        runtime = LocalRuntime(network, settings, journal, encoder=lambda: HashEncoder(384))
        sessions = Sessions(journal, network, SystemClock())
        writer = Writer(settings.limits, journal, runtime, sessions, network, SystemClock())
        await runtime.start()
        await writer.start()
        if start == 0:
            await sessions.open("alice")
            texts = ["The parrot is called Pixel", "Berlin is large", "The parrot sleeps"]
            done = await asyncio.gather(*(writer.write(session="alice", items=said(text)) for text in texts))
            assert sorted(one.state.items for one in done)[-1] == 3
        [answer] = [one async for one in runtime.recall([Visit("desk", "s/alice", queries[0])])]
        recalled.append([(one.seq, pytest.approx(one.score)) for one in answer.evidence])
        await writer.close()
        await runtime.close()
        journal.close()
    assert {seq for seq, _ in recalled[0][:2]} == {1, 3}
    assert recalled[0] == recalled[1]
