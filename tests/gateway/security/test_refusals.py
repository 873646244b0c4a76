"""Everybody who may not: over HTTP and over a socket, each by its own code, close code and reason, and an audit line.

A page in a browser sees of a socket that does not open only the close code and its reason; so these are looked at, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

import qraf
from qraf.client.reconnect import FINAL_CLOSES, Reconnect
from qraf.errors import ConnectionLost, ServerError
from qraf.gateway.protocol import CLOSE_CODES
from qraf.gateway.security.tickets import SUBPROTOCOL
from qraf.settings import QuotaSettings
from tests.gateway.security.conftest import ORIGIN, Place, guarded
from tests.gateway.security.test_enter import Ticketed, by_hand
from tests.gateway.wire import Wire

pytestmark = pytest.mark.slow  # all of them together

NARROW = {
    "few-items": {"items": 2},
    "few-requests": {"requests": "4/hour"},
    "few-frames": {"frames": "4/hour"},
    "few-sockets": {"sockets": 1},
}
WRITE = {"collection": "manuals", "items": [{"text": text} for text in ("one", "two", "three")]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(models, tmp_path_factory, signer):
    async with guarded(models, tmp_path_factory.mktemp("refusals"), signer, QuotaSettings(tenants=NARROW)) as place:
        yield place


@dataclass
class Stranger:
    """Tries to come in. `rest` tells status, code and detail; `socket` close code, reason and the error's code."""

    place: Place
    signer: Any

    async def rest(self, credential: str, times: int = 1, **headers: str) -> tuple[int, str, str]:
        async with self.place.http(credential) as http:
            for _ in range(times):
                response = await http.post("/v1/memory", json=WRITE, headers=headers)
        return response.status_code, response.json()["code"], response.json()["detail"]

    async def socket(self, wire: Wire, *frames: dict[str, Any]) -> tuple[int, str, str]:
        async with wire:
            for frame in frames:
                await wire.send(frame)
            frame = await wire.recv()
            while frame["type"] != "error":
                frame = await wire.recv()
            close = await wire.closed()
            return close, wire.ws.close_reason or "", frame["error"]["code"]

    def wire(self, credential: str, **options: Any) -> Wire:
        return Wire(self.place.url, hello=False, additional_headers=self.place.bearer(credential), **options)

    async def key(self, tenant: str) -> str:
        async with self.place.http("default admin") as http:
            return str((await http.post("/v1/keys", json={"tenant": tenant, "role": "client"})).json()["api_key"])

    async def revoked(self) -> str:
        async with self.place.http("default admin") as http:
            made = (await http.post("/v1/keys", json={"tenant": "acme", "role": "client"})).json()
            await http.delete(f"/v1/keys/{made['key']}")
        return str(made["api_key"])

    async def used_ticket(self) -> str:
        async with self.place.http("acme client") as http:
            ticket = str((await http.post("/v1/ws-tickets", headers={"origin": ORIGIN})).json()["subprotocol"])
        async with Ticketed(self.place.url, ticket, ORIGIN):
            return ticket


Rest = Callable[[Stranger], Awaitable[tuple[int, str, str]]]
Socket = Callable[[Stranger], Awaitable[tuple[int, str, str]]]
HELLO = {"type": "hello"}


def shows(make: Callable[[Stranger], Awaitable[str]]) -> tuple[Rest, Socket]:
    """Shows a credential: over HTTP, in the header of a socket, and in `hello`."""

    async def rest(who: Stranger) -> tuple[int, str, str]:
        return await who.rest(await make(who))

    async def socket(who: Stranger) -> tuple[int, str, str]:
        credential = await make(who)
        by_header = await who.socket(who.wire(credential), HELLO)
        by_hello = await who.socket(Wire(who.place.url, hello=False), HELLO | {"auth": credential})
        assert by_header == by_hello
        return by_header

    return rest, socket


def token(**claims: Any) -> tuple[Rest, Socket]:
    async def make(who: Stranger) -> str:
        late = {name: time.time() + value for name, value in claims.items() if name in ("exp", "nbf")}
        return str(who.signer.token(**claims | late))

    return shows(make)


async def _wrong(who: Stranger) -> str:
    return who.place.keys["acme client"][:-2] + "zz"


async def _unsigned(who: Stranger) -> str:
    return by_hand({"alg": "none"}, who.signer.claims(), b"")


async def _forged(who: Stranger) -> str:
    """Wrong in everything: of a token that nobody signed nothing else is told."""
    claims = {"aud": "elsewhere", "iss": "https://evil.example", "exp": 1}
    return str(who.signer.token("HS256", key="another secret of more than thirty-two bytes", **claims))


async def _bad_page(who: Stranger) -> tuple[int, str, str]:
    return await who.rest("acme client", origin="https://evil.example")


async def _bad_page_socket(who: Stranger) -> tuple[int, str, str]:
    return await who.socket(who.wire("acme client", origin="https://evil.example"))


async def _used_ticket(who: Stranger) -> tuple[int, str, str]:
    return await who.socket(Ticketed(who.place.url, await who.used_ticket(), ORIGIN, hello=False))


async def _no_ticket(who: Stranger) -> tuple[int, str, str]:
    return await who.socket(Ticketed(who.place.url, f"{SUBPROTOCOL}made-up", ORIGIN, hello=False))


async def _ticket_of_others(who: Stranger) -> tuple[int, str, str]:
    async with who.place.http("acme client") as http:
        ticket = str((await http.post("/v1/ws-tickets", headers={"origin": ORIGIN})).json()["subprotocol"])
    return await who.socket(Ticketed(who.place.url, ticket, "http://localhost:3000", hello=False))


async def _ticket_as_bearer(who: Stranger) -> tuple[int, str, str]:
    return await who.rest(f"{SUBPROTOCOL}made-up")


async def _viewer(who: Stranger) -> tuple[int, str, str]:
    return await who.rest("acme viewer")


async def _viewer_socket(who: Stranger) -> tuple[int, str, str]:
    return await who.socket(who.wire("acme viewer"), HELLO, {"type": "write", "id": "1", **WRITE})


def goes_on(tenant: str, times: int = 1) -> tuple[Rest, Socket]:
    """Goes on though it is refused."""

    async def rest(who: Stranger) -> tuple[int, str, str]:
        return await who.rest(await who.key(tenant), times)

    async def socket(who: Stranger) -> tuple[int, str, str]:
        writes = ({"type": "write", "id": str(number), **WRITE} for number in range(60))
        return await who.socket(who.wire(await who.key(tenant)), HELLO, *writes)

    return rest, socket


async def _one_socket_more(who: Stranger) -> tuple[int, str, str]:
    own = await who.key("few-sockets")
    async with who.wire(own) as first:
        await first.ask(HELLO)
        return await who.socket(who.wire(own), HELLO)


# what: ((over HTTP, over a socket), HTTP status, close code, code, what the audit line says)
REFUSALS: dict[str, tuple[tuple[Rest | None, Socket | None], int, int, str, str]] = {
    "wrong key": (shows(_wrong), 401, 4401, "credential_invalid", "no such API key"),
    "expired token": (token(exp=-60), 401, 4010, "credential_expired", "the token has expired"),
    "revoked key": (shows(Stranger.revoked), 401, 4411, "credential_revoked", "was revoked"),
    "alg none": (shows(_unsigned), 401, 4422, "token_algorithm_refused", "but is 'none'"),
    "wrong audience": (token(aud="elsewhere"), 401, 4421, "token_audience_wrong", "for another audience"),
    "used ticket": ((None, _used_ticket), 401, 4412, "ticket_used", "was used already"),
    "bad origin": ((_bad_page, _bad_page_socket), 403, 4403, "origin_refused", "a page of 'https://evil.example'"),
    "a viewer who writes": ((_viewer, _viewer_socket), 403, 4403, "not_allowed", "memory:write"),
    "over quota": (goes_on("few-items"), 429, 4429, "quota_exceeded", "quota `tenant.items` of 2 is used up"),
}
"""Each is told from every other by its code, and over a socket by close code and reason."""

MORE: dict[str, tuple[tuple[Rest | None, Socket | None], int, int, str, str]] = {
    "wrong issuer": (token(iss="https://evil.example"), 401, 4421, "token_issuer_wrong", "from another issuer"),
    "not yet valid": (token(nbf=60), 401, 4425, "token_not_yet_valid", "not valid yet"),
    "forged token": (shows(_forged), 401, 4401, "credential_invalid", "by no key of ours"),
    "no ticket": ((_ticket_as_bearer, _no_ticket), 401, 4412, "ticket_invalid", "ticket is"),
    "another page's ticket": ((None, _ticket_of_others), 403, 4403, "origin_refused", "another origin asked for it"),
    "too many requests": ((goes_on("few-requests", 5)[0], None), 429, 4429, "rate_limited", "`tenant.requests` allows"),
    "too many frames": ((None, goes_on("few-frames")[1]), 429, 4429, "rate_limited", "`tenant.frames` allows 4"),
    "too many sockets": ((None, _one_socket_more), 429, 4429, "quota_exceeded", "quota `tenant.sockets` of 1"),
}


@pytest.mark.parametrize("what", [*REFUSALS, *MORE])
async def test_everybody_who_may_not_is_told_why_closed_and_noted_once(place, model, signer, what) -> None:
    (rest, socket), status, close, code, said = (REFUSALS | MORE)[what]
    stranger = Stranger(place, signer)
    before = {one["seq"] for one in await lines(place)}
    ways = []
    if rest is not None:
        answer = await rest(stranger)
        assert answer[:2] == (status, code)
        assert said in answer[2]
        ways.append("POST /v1/memory")
    if socket is not None:
        assert await socket(stranger) == (close, code, code)
        ways.append("WS")
    async with asyncio.timeout(10):
        while True:
            new = [one for one in await lines(place) if one["seq"] not in before and one["outcome"] != "done"]
            if len(new) >= len(ways):
                break
            await asyncio.sleep(0.05)
    assert {(line["outcome"], said in line["detail"], line["address"]) for line in new} == {(code, True, "127.0.0.1")}
    assert sorted(line["action"].split(" ")[0] for line in new) == sorted(way.split(" ")[0] for way in ways)


async def lines(place: Place) -> list[dict[str, Any]]:
    async with place.http("default admin") as http:
        return list((await http.get("/v1/audit?limit=200")).json()["data"])


def test_no_two_of_them_look_alike() -> None:
    assert len({code for _, _, _, code, _ in REFUSALS.values()}) == len(REFUSALS)
    closes = [close for _, _, close, _, _ in REFUSALS.values()]
    assert len(set(closes)) == len(closes) - 1  # 4403 twice: neither a page nor a viewer can help it
    assert set(closes) <= CLOSE_CODES.keys()


# --------------------------------------------------------------------------------------------------- the Python client
FOREVER = {4010, 4401, 4403, 4411, 4412, 4421, 4422}


def test_the_client_knows_what_is_pointless_to_try_again() -> None:
    closes = {close for _, _, close, _, _ in (REFUSALS | MORE).values()}
    assert closes & FINAL_CLOSES == closes & FOREVER == closes - {4425, 4429}


async def test_the_client_tells_the_codes_and_does_not_come_back_with_a_revoked_key(place, model, signer) -> None:
    stranger = Stranger(place, signer)
    for make, code in ((_unsigned, "token_algorithm_refused"), (_wrong, "credential_invalid")):
        with pytest.raises(ServerError) as refused:
            async with qraf.connect(place.url, api_key=await make(stranger)):
                pass
        assert (refused.value.error_code, refused.value.can_retry) == (code, False)
    key = await stranger.key("acme")
    async with qraf.connect(place.url, api_key=key, reconnect=Reconnect(first_s=0.01, most_s=0.05)) as q:
        async with place.http("default admin") as http:
            await http.delete(f"/v1/keys/{key.split('_')[1]}")
        with pytest.raises(ConnectionLost) as lost:
            await pinged_to_the_end(q)
        assert (lost.value.close, q.reconnects) == (4411, 0)
        assert lost.value.reason.startswith("credential_revoked: API key ")


async def pinged_to_the_end(q: Any) -> None:
    while True:
        await q.ping()
        await asyncio.sleep(0.05)


async def test_what_is_not_allowed_is_said_once(place) -> None:
    async with qraf.connect(place.url, api_key=place.keys["acme viewer"]) as q:
        with pytest.raises(ServerError) as refused:
            await q.write("x", collection="manuals")
    assert str(refused.value).startswith("not_allowed: `write`; it needs scope 'memory:write'")


# ------------------------------------------------------------------------------------------------- pages from elsewhere
async def test_a_page_from_elsewhere_gets_nothing_but_its_refusal_and_leaves_nothing(place, model) -> None:
    service = place.server.service
    account = service.accounts.of("acme", place.keys["acme admin"].split("_")[1], "admin")
    sockets = place.server.app.state.gate.sockets
    stranger = Stranger(place, None)
    wires = [stranger.wire("acme admin", origin="https://evil.example") for _ in range(20)]
    opening = {"type": "session.open", "id": "1", "session": "from-elsewhere"}
    seen = await asyncio.gather(*(stranger.socket(wire, HELLO, opening) for wire in wires))
    assert set(seen) == {(4403, "origin_refused", "origin_refused")}
    assert account.is_idle
    async with asyncio.timeout(5):
        while sockets.outboxes:
            await asyncio.sleep(0.02)
    async with place.http("acme admin") as http:
        assert (await http.get("/v1/sessions/from-elsewhere")).status_code == 404
        metrics = (await http.get("/metrics")).text
    assert "qraf_ws_connections 0.0" in metrics
    assert 'qraf_ws_closes_total{code="4403"}' in metrics


async def test_a_page_from_elsewhere_that_does_not_close_is_cut_off(place, model) -> None:
    """By hand, because every client library answers a close."""
    host, port = place.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = (
        "GET /v1/ws HTTP/1.1",
        f"host: {host}:{port}",
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version: 13",
        "sec-websocket-protocol: qraf.v1",
        "origin: https://evil.example",
    )
    writer.write("\r\n".join((*lines, "", "")).encode())
    async with asyncio.timeout(15):
        told = await reader.read()  # to its end
    writer.close()
    assert told.startswith(b"HTTP/1.1 101 ")
    assert b'"code":"origin_refused"' in told
