"""Keys over REST, the audit log's bounds, and key sets that move."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter

import pytest

from qraf.clock import FakeClock
from qraf.errors import (
    CredentialExpired,
    CredentialInvalid,
    InvalidRequest,
    NotAllowed,
    NotFound,
    StorageFailed,
    TicketInvalid,
    TicketUsed,
    TokenAlgorithmRefused,
)
from qraf.gateway.security import audit as audit_module
from qraf.gateway.security.audit import Audit
from qraf.gateway.security.keys import Keys
from qraf.gateway.security.principal import LOCAL
from qraf.gateway.security.tokens import Tokens
from qraf.settings import JwtSettings
from qraf.storage.journal import Journal


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(clock):
    journal = Journal.open("sqlite:///:memory:", clock)
    yield journal
    journal.close()


async def test_a_key_ends_and_a_wrong_one_is_none(journal, clock) -> None:
    keys = Keys(journal.keys, clock)
    record, text = await keys.create(tenant="acme", role="client", expires_at=clock.now() + 10)
    who = await keys.verify(text)
    assert (who.tenant, who.role, who.key, who.subject) == ("acme", "client", record.id, f"key:{record.id}")
    for wrong in (text[:-1], text + "x", text.replace(record.id, "0" * 12), f"qraf_{record.id}_", "qraf_", "qraf___"):
        with pytest.raises(CredentialInvalid, match="no such API key"):
            await keys.verify(wrong)
    clock.advance(11)
    with pytest.raises(CredentialExpired):
        await keys.verify(text)


async def test_a_key_that_was_seen_goes_on_for_a_minute_while_the_journal_is_away(journal, clock, monkeypatch) -> None:
    keys = Keys(journal.keys, clock)
    _, seen = await keys.create(tenant="acme", role="client")
    _, other = await keys.create(tenant="acme", role="client")
    await keys.verify(seen)

    def away(*_: object) -> None:
        raise StorageFailed("read keys", "away")

    monkeypatch.setattr(journal.keys, "find", away)
    clock.advance(30)
    assert (await keys.verify(seen)).tenant == "acme"
    with pytest.raises(StorageFailed):
        await keys.verify(other)
    clock.advance(40)
    with pytest.raises(StorageFailed):
        await keys.verify(seen)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"tenant": "Acme"}, "/tenant"),
        ({"tenant": "a/b"}, "/tenant"),
        ({"tenant": ""}, "/tenant"),
        ({"tenant": "a" * 33}, "/tenant"),
        ({"role": "root"}, "/role"),
        ({"scopes": ("memory:eat",)}, "/scopes/0"),
        ({"role": "viewer", "scopes": ("memory:read", "memory:write")}, "/scopes/1"),
        ({"name": "x" * 129}, "/name"),
        ({"expires_at": 1.0}, "/expires_at"),
    ],
)
async def test_a_key_that_cannot_be_is_not_made(journal, clock, fields, pointer) -> None:
    with pytest.raises(InvalidRequest) as fault:
        await Keys(journal.keys, clock).create(**({"tenant": "acme", "role": "client"} | fields))
    assert fault.value.pointer == pointer
    assert journal.keys.num_active(clock.now()) == 0


async def test_keys_are_made_listed_and_revoked_over_rest(place) -> None:
    async with place.http("brook admin") as http:
        made = (await http.post("/v1/keys", json={"role": "viewer", "name": "a page", "ttl_s": 60})).json()
        assert (made["tenant"], made["role"], made["status"]) == ("brook", "viewer", "active")
        async with place.http(made["api_key"]) as viewer:
            assert (await viewer.get("/v1/whoami")).json()["subject"] == f"key:{made['key']}"
        listed = (await http.get("/v1/keys?limit=200")).json()["data"]
        assert {one["tenant"] for one in listed} == {"brook"}
        assert "api_key" not in listed[-1]
        assert (await http.delete(f"/v1/keys/{made['key']}")).json()["status"] == "revoked"
        assert (await http.delete(f"/v1/keys/{made['key']}")).json()["status"] == "revoked"
        assert (await http.delete("/v1/keys/none")).status_code == 404
        assert [one["tenant"] for one in (await http.get("/v1/tenants")).json()["data"]] == ["brook"]
        both = await http.post("/v1/keys", json={"ttl_s": 5, "expires_at": "2999-01-01T00:00:00Z"})
        assert (both.status_code, both.json()["errors"][0]["pointer"]) == (422, "/ttl_s")
        changed = [line for line in (await http.get("/v1/audit")).json()["data"] if line["target"] == made["key"]]
    assert {line["action"] for line in changed} == {"keys.create", "keys.revoke"}
    assert {line["tenant"] for line in changed} == {"brook"}
    async with place.http("default admin") as http:
        tenants = {one["tenant"] for one in (await http.get("/v1/tenants")).json()["data"]}
        assert tenants >= {"default", "acme", "brook"}
        other = (await http.post("/v1/keys", json={"tenant": "cedar", "role": "admin"})).json()
        assert other["tenant"] == "cedar"
        assert (await http.delete(f"/v1/keys/{other['key']}")).status_code == 200


async def test_a_narrowed_key_makes_no_wider_one(place) -> None:
    async with place.http("acme admin") as http:
        narrow = (await http.post("/v1/keys", json={"role": "admin", "scopes": ["keys:write", "memory:read"]})).json()
    async with place.http(narrow["api_key"]) as http:
        wider = await http.post("/v1/keys", json={"role": "client"})
        assert (wider.status_code, "beyond it" in wider.json()["detail"]) == (403, True)
        assert (await http.post("/v1/keys", json={"role": "viewer", "scopes": ["memory:read"]})).status_code == 201


async def test_the_log_has_no_way_to_change_it(place) -> None:
    async with place.http("default admin") as http:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert (await http.request(method, "/v1/audit", json={})).status_code == 405
            assert (await http.request(method, "/v1/audit/1", json={})).status_code == 404


async def test_a_flood_of_refusals_is_a_bounded_number_of_lines(journal, clock) -> None:
    audit = Audit(journal.keys, clock)
    for number in range(3000):
        audit.refused(None, f"GET /{number % 1000}", NotAllowed("it"), address="10.0.0.1")
    await audit.close()
    lines, cursor = [], None
    while True:
        page, cursor = journal.keys.audit(None, cursor, 200)
        lines += page
        if cursor is None:
            break
    assert len(lines) == 501
    assert sum(line.times for line in lines) == 3000
    assert max(line.times for line in lines if line.action != "more") == 3


async def test_who_goes_on_knocking_is_a_line_a_minute(journal, clock, monkeypatch) -> None:
    monkeypatch.setattr(audit_module, "_EVERY_S", 0.01)
    audit = Audit(journal.keys, clock)

    async def written(count: int) -> list[int]:
        async with asyncio.timeout(5):
            while len(lines := journal.keys.audit(None, None, 200)[0]) < count:
                await asyncio.sleep(0.01)
        return [line.times for line in lines]

    audit.refused(None, "GET /", NotAllowed("it"))
    assert await written(1) == [1]  # the first at once
    for _ in range(100):
        clock.advance(0.5)
        audit.refused(None, "GET /", NotAllowed("it"))
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert await written(1) == [1]
    clock.advance(11)
    assert await written(2) == [100, 1]
    await audit.close()


async def test_different_lines_have_a_budget_and_changes_of_keys_none(journal, clock) -> None:
    audit = Audit(journal.keys, clock)
    for number in range(700):
        audit.refused(None, f"GET /{number}", NotAllowed("it"))
        if number % 400 == 399:
            await audit._flush()  # what waits is bounded, too
    await audit.changed(LOCAL, "keys.create", "k1", "admin of tenant acme")
    clock.advance(20)
    for number in range(50):
        audit.refused(None, f"POST /{number}", NotAllowed("it"))
    await audit.close()
    lines, cursor = [], None
    while True:
        page, cursor = journal.keys.audit(None, cursor, 200)
        lines += page
        if cursor is None:
            break
    kinds = Counter(line.action.partition(" ")[0] for line in lines)
    assert (kinds["GET"], kinds["POST"], kinds["keys.create"]) == (500, 10, 1)
    assert sum(line.times for line in lines) == 751
    assert journal.keys.check_audit().broken is None


async def test_lines_wait_for_a_journal_that_is_away(journal, clock, monkeypatch) -> None:
    audit, note = Audit(journal.keys, clock), journal.keys.note

    def away(*_: object) -> None:
        raise StorageFailed("write audit", "away")

    monkeypatch.setattr(journal.keys, "note", away)
    audit.refused(LOCAL, "GET /x", NotAllowed("it"))
    with pytest.raises(StorageFailed):
        await audit.changed(LOCAL, "keys.create", "k", "")
    monkeypatch.setattr(journal.keys, "note", note)
    await audit.close()
    assert {line.action for line in journal.keys.audit(None)[0]} == {"GET /x", "keys.create"}


async def test_tickets_of_the_past_are_swept_away(journal, clock) -> None:
    from qraf.gateway.security.tickets import Tickets

    tickets = Tickets(journal.keys, clock, 60)
    old, _ = await tickets.issue(LOCAL, "")
    clock.advance(61)
    new, _ = await tickets.issue(LOCAL, "")
    with pytest.raises(TicketInvalid, match="none of ours"):  # gone, not only expired
        await tickets.redeem(old, "")
    assert await tickets.redeem(new, "") == LOCAL
    both = await asyncio.gather(*(tickets.redeem(new, "") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, TicketUsed) for one in both)


def test_another_tenants_key_cannot_be_revoked(journal, clock) -> None:
    record, _ = asyncio.run(Keys(journal.keys, clock).create(tenant="acme", role="client"))
    with pytest.raises(NotFound):
        journal.keys.revoke(record.id, "brook", clock.now())
    assert journal.keys.revoke(record.id, None, clock.now()).revoked_at == clock.now()


# ---------------------------------------------------------------------------------------------------- key sets
def settings(**fields: object) -> JwtSettings:
    return JwtSettings(**({"audience": "qraf", "issuer": "https://id.example"} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"secret": "short"}, "32 bytes"),
        ({"secret": "x" * 32, "audience": ""}, "audience"),
        ({"secret": "x" * 32, "issuer": ""}, "issuer"),
        ({"jwks_url": "http://keys.example/jwks"}, "https alone"),
        ({"jwks_url": "https://keys.example/jwks", "jwks_file": "x"}, "not both"),
    ],
)
def test_settings_that_would_be_weak_are_refused(clock, fields, said) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Tokens(settings(**fields), clock)


async def test_without_settings_no_token_is_taken(clock, signer) -> None:
    with pytest.raises(CredentialInvalid, match="API keys"):
        await Tokens(JwtSettings(), clock).verify(signer.token())


async def test_a_key_set_is_read_again_when_a_key_is_missing_but_not_at_every_knock(tmp_path, clock, signer) -> None:
    file = tmp_path / "jwks.json"
    with pytest.raises(InvalidRequest, match="no file"):
        Tokens(settings(jwks_file=file), clock)
    file.write_text(json.dumps({"keys": signer.key_set()["keys"][:1]}))
    tokens = Tokens(settings(jwks_file=file), clock)
    assert (await tokens.verify(signer.token())).role == "client"
    file.write_text(json.dumps(signer.key_set()))
    with pytest.raises(CredentialInvalid, match="by no key of ours"):
        await tokens.verify(signer.token("ES256"))  # read a moment ago
    clock.advance(11)
    assert (await tokens.verify(signer.token("ES256"))).tenant == "acme"
    os.unlink(file)
    clock.advance(400)
    assert (await tokens.verify(signer.token())).tenant == "acme"  # the old set goes on


async def test_a_key_set_comes_by_url_once_and_is_kept(clock, signer) -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(signer.key_set()).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        tokens = Tokens(settings(jwks_url=f"http://127.0.0.1:{port}/jwks"), clock)
        for _ in range(3):
            assert (await tokens.verify(signer.token())).tenant == "acme"
        assert asked == 1
        clock.advance(301)
        await tokens.verify(signer.token())
        assert asked == 2


async def test_an_oct_key_in_the_set_is_never_a_secret(tmp_path, clock, signer) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(
        json.dumps({"keys": [{"kty": "oct", "kid": "o1", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]})
    )
    token = signer.token("HS256", key="secretsecretsecretsecretsecret" + "ab", kid="o1")
    with pytest.raises(TokenAlgorithmRefused, match="must be RS256 or ES256"):
        await Tokens(settings(jwks_file=file), clock).verify(token)
