import asyncio

import pytest

from qraf.errors import InvalidRequest, SessionClosed, SessionNotFound
from qraf.sessions.registry import Sessions
from qraf.storage.journal import Draft
from tests.sessions.samples import topology


@pytest.fixture
def sessions(journal, clock):
    return Sessions(journal, topology(), clock)


@pytest.fixture
def elsewhere(journal, clock):
    """Another gateway's view of the same journal."""
    return Sessions(journal, topology(), clock)


async def test_a_session_is_made_once_and_then_found(sessions, elsewhere, clock):
    made, created = await sessions.open("alice", {"team": "red"})
    assert (made.id, made.metadata, made.state, made.created_at, made.node_hint, created) == (
        "alice",
        {"team": "red"},
        "open",
        clock.now(),
        "desk",
        True,
    )
    assert await elsewhere.open("alice", {"team": "blue"}) == (made, False)
    assert await sessions.get("alice") == made


async def test_without_a_name_each_session_gets_an_id_of_its_own(sessions):
    (one, new), (two, _) = await sessions.open(), await sessions.open()
    assert new
    assert one.id.startswith("ses_")
    assert len(one.id) == 30
    assert one.id != two.id


async def test_many_gateways_opening_at_once_make_one_session(sessions, elsewhere):
    opened = await asyncio.gather(*(which.open("alice") for which in (sessions, elsewhere) * 4))
    assert sum(created for _, created in opened) == 1


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "A/b", "a/", "a/b/c", "ä", "a\0", "a" * 129, "a\n", "😀"])
async def test_names_that_cannot_be_are_refused(sessions, name):
    with pytest.raises(InvalidRequest) as caught:
        await sessions.open(name)
    assert caught.value.pointer == "/session"


@pytest.mark.parametrize("name", ["a", "Zoë".replace("ë", "e"), "ses_01H", "a.b:c-d_e", "9" * 128])
async def test_names_that_can_be_are_taken(sessions, name):
    assert (await sessions.open(name))[0].id == name


async def test_a_session_that_is_not_there(sessions):
    for call in (
        sessions.open("nobody", create=False),
        sessions.get("nobody"),
        sessions.writable("nobody"),
        sessions.pause("nobody"),
        sessions.resume("nobody"),
        sessions.delete("nobody"),
    ):
        with pytest.raises(SessionNotFound):
            await call
    with pytest.raises(InvalidRequest):
        await sessions.open(None, create=False)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 1e12])
async def test_a_time_to_live_that_cannot_be_is_refused(sessions, ttl_s):
    with pytest.raises(InvalidRequest) as caught:
        await sessions.open("alice", ttl_s=ttl_s)
    assert caught.value.pointer == "/ttl_s"


@pytest.mark.parametrize("metadata", [{"a": "x" * 5000}, {"a": "\ud800"}])
async def test_metadata_that_cannot_be_is_refused(sessions, metadata):
    with pytest.raises(InvalidRequest) as caught:
        await sessions.open("alice", metadata)
    assert caught.value.pointer == "/metadata"


async def test_a_paused_session_takes_no_writes_until_it_is_resumed(sessions):
    await sessions.open("alice")
    assert (await sessions.pause("alice")).state == "paused"
    assert (await sessions.open("alice"))[0].state == "paused"
    with pytest.raises(SessionClosed, match="paused"):
        await sessions.writable("alice")
    assert (await sessions.resume("alice")).state == "open"
    assert (await sessions.writable("alice")).id == "alice"


async def test_a_deleted_session_is_gone_and_its_name_is_free(sessions):
    await sessions.open("alice", {"old": True})
    await sessions.delete("alice")
    with pytest.raises(SessionNotFound):
        await sessions.get("alice")
    assert (await sessions.open("alice"))[0].metadata == {}


async def test_what_another_gateway_did_is_seen_within_a_second(sessions, elsewhere, clock):
    await sessions.open("alice")
    await elsewhere.pause("alice")
    clock.advance(1)
    with pytest.raises(SessionClosed):
        await sessions.writable("alice")
    await elsewhere.delete("alice")
    clock.advance(1)
    with pytest.raises(SessionNotFound):
        await sessions.get("alice")
    with pytest.raises(SessionNotFound):  # and a change does not bring it back
        await sessions.resume("alice")


async def test_a_session_expires_unless_it_is_opened_again(sessions, clock):
    await sessions.open("alice", ttl_s=10)
    await sessions.open("bob")
    clock.advance(8)
    assert (await sessions.open("alice"))[0].expires_at == clock.now() + 10
    clock.advance(9)
    assert await sessions.expired() == ()
    clock.advance(1)
    for call in (sessions.open("alice"), sessions.writable("alice"), sessions.resume("alice")):
        with pytest.raises(SessionClosed, match="expired"):
            await call
    assert await sessions.expired() == ("alice",)
    await sessions.delete("alice")
    assert await sessions.expired() == ()
    assert (await sessions.open("alice"))[1]


async def test_sessions_are_listed_in_pages(sessions, clock):
    for name in "abc":
        await sessions.open(name)
        clock.advance(1)
    page, cursor = await sessions.list(None, 2)
    rest, end = await sessions.list(cursor, 2)
    assert [record.id for record in page + rest] == ["a", "b", "c"]
    assert end is None


async def test_speakers_are_those_of_the_journal_and_of_the_moment(sessions, journal, clock):
    journal.commit("s/a", [Draft(item_id="1", speaker="Ada")])
    sessions.note_speakers("s/a", ["Bo", None])
    assert await sessions.speakers("s/a") == ("Ada", "Bo")
    journal.commit("s/a", [Draft(item_id="2", speaker="Cy")])  # by another gateway
    assert await sessions.speakers("s/a") == ("Ada", "Bo")
    clock.advance(30)
    assert await sessions.speakers("s/a") == ("Ada", "Bo", "Cy")
    assert await sessions.speakers("s/b") == ()
