"""Keys, tickets and audit lines in every database; and names of tenants in the journal's lists."""

from __future__ import annotations

import threading

import pytest

from qraf.errors import InvalidRequest, NotFound
from qraf.storage.keys import AuditRecord, KeyRecord, TicketRecord
from qraf.storage.records import SessionRecord, StateRecord


def key(id: str, tenant: str = "acme", **fields: object) -> KeyRecord:
    return KeyRecord(id=id, digest=bytes(32), tenant=tenant, role="client", created_at=float(len(id)), **fields)  # type: ignore[arg-type]


def test_keys_are_found_paged_counted_and_revoked_once(journal) -> None:
    keys = journal.keys
    for record in (key("a"), key("bb", expires_at=50.0), key("ccc", "brook")):
        keys.add(record)
    assert keys.find(["a", "bb", "zz"]) == {"a": key("a"), "bb": key("bb", expires_at=50.0)}
    assert keys.num_active(40.0) == 3
    assert keys.num_active(60.0) == 2
    first, cursor = keys.page(None, None, 2)
    rest, end = keys.page(None, cursor, 2)
    assert ([one.id for one in first + rest], end) == (["a", "bb", "ccc"], None)
    assert [one.id for one in keys.page("brook")[0]] == ["ccc"]
    assert keys.tenants(60.0) == [("acme", 1, 2), ("brook", 1, 1)]
    with pytest.raises(NotFound):
        keys.revoke("ccc", "acme", 70.0)
    assert keys.revoke("ccc", "brook", 70.0).revoked_at == 70.0
    assert keys.revoke("ccc", None, 80.0).revoked_at == 70.0
    assert keys.num_active(60.0) == 1


def test_a_ticket_is_taken_once_however_many_ask(journal) -> None:
    ticket = TicketRecord(digest=b"d" * 32, principal=b"{}", origin="", expires_at=60.0)
    journal.keys.put_ticket(ticket, 0.0)
    taken: list[TicketRecord | None] = []
    threads = [threading.Thread(target=lambda: taken.append(journal.keys.take_ticket(ticket.digest))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one for one in taken if one is not None and one.principal] == [ticket]
    used = TicketRecord(digest=b"d" * 32, principal=b"", origin="", expires_at=60.0)  # whose it was is gone
    assert [one for one in taken if one != ticket] == [used] * 5
    journal.keys.put_ticket(TicketRecord(digest=b"e" * 32, principal=b"{}", origin="", expires_at=90.0), 60.0)
    assert journal.keys.take_ticket(ticket.digest) is None  # swept


def test_audit_lines_are_added_and_read_newest_first(journal) -> None:
    def line(number: int, tenant: str) -> AuditRecord:
        return AuditRecord(at=float(number), tenant=tenant, subject="s", action="a", target="t", outcome="o")

    journal.keys.note([line(1, "acme"), line(2, "brook"), line(3, "acme")])
    journal.keys.note([line(4, "")])
    assert [one.at for one in journal.keys.audit(None)[0]] == [4, 3, 2, 1]
    first, cursor = journal.keys.audit("acme", None, 1)
    rest, end = journal.keys.audit("acme", cursor, 1)
    assert ([one.at for one in first + rest], end) == ([3, 1], None)
    assert not any(hasattr(journal.keys, name) for name in ("forget", "edit", "drop_audit"))
    with pytest.raises(InvalidRequest, match="no such cursor"):
        journal.keys.audit(None, "bad")


def test_lists_hold_one_tenants_names(journal) -> None:
    names = ("ann", "acme/ann", "acme/bob", "acm/x", "acme-2/ann")
    for at, name in enumerate(names):
        record = SessionRecord(id=name, created_at=float(at))
        assert journal.create_session(record)
        journal.states.put([StateRecord(id=name.replace("ann", "st_ann"), version=1, view=b"{}", packet=b"p")])
    for tenant, held in {"default": 1, "acme": 2, "acm": 1, "acme-2": 1, "nobody": 0}.items():
        sessions, _ = journal.list_sessions(None, 50, tenant)
        states, _ = journal.states.page(None, 50, tenant)
        assert (len(sessions), len(states)) == (held, held), tenant
    first, cursor = journal.list_sessions(None, 1, "acme")
    rest, end = journal.list_sessions(cursor, 1, "acme")
    assert ([one.id for one in first + rest], end) == (["acme/ann", "acme/bob"], None)


def test_a_states_id_has_room_for_a_tenants_name(journal) -> None:
    longest = f"{'t' * 32}/st_{'x' * 60}"
    journal.states.put([StateRecord(id=longest, version=1, view=b"{}", packet=b"p")])
    assert longest in journal.states.versions([longest])
