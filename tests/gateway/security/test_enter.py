"""Who is let in, by which credential; who is not, with which code, close code and audit line."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import httpx
import jwt
import pytest

from qraf.gateway.security.tickets import SUBPROTOCOL
from tests.gateway.security.conftest import ORIGIN, SECRET, Place, guarded
from tests.gateway.wire import Wire

pytestmark = pytest.mark.slow  # all of them together


class Ticketed(Wire):
    """A page: a ticket among its subprotocols, and an origin."""

    def __init__(self, url: str, ticket: str, origin: str | None = None, **options: object) -> None:
        super().__init__(url, origin=origin, **options)
        self._subprotocols = ["qraf.v1", ticket]


def wire(place: Place, who: str, **options: object) -> Wire:
    return Wire(place.url, additional_headers=place.bearer(who), **options)


async def refused(wire: Wire) -> tuple[str, int]:
    """The error code and the close code that come instead of a welcome."""
    frame = await wire.recv()
    assert frame["type"] == "error", frame
    return frame["error"]["code"], await wire.closed()


# ------------------------------------------------------------------------------------------------------- let in
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "HS256"])
async def test_a_token_is_its_tenants_and_roles(place, signer, algorithm) -> None:
    async with place.http(signer.token(algorithm, role="viewer")) as http:
        who = (await http.get("/v1/whoami")).json()
    assert (who["tenant"], who["subject"], who["role"]) == ("acme", "sub:ann", "viewer")
    async with Wire(place.url, additional_headers=place.bearer(signer.token(algorithm))) as wire:
        assert wire.welcome["auth_expires_at"] is not None


async def test_a_scope_claim_narrows_the_role(place, signer) -> None:
    async with place.http(signer.token(scope="memory:read keys:write")) as http:
        assert (await http.get("/v1/whoami")).json()["scopes"] == ["memory:read"]
        assert (await http.get("/v1/sessions")).status_code == 403


async def test_a_scope_claim_never_widens_and_one_that_is_none_is_refused(place, signer) -> None:
    for scope, left in ((["memory:read", "audit:read"], ["memory:read"]), ("", []), ([], []), ("audit:read", [])):
        async with place.http(signer.token(scope=scope)) as http:
            assert (await http.get("/v1/whoami")).json()["scopes"] == left, scope
    for scope in (5, [5], {"memory:read": True}, False):
        async with place.http(signer.token(scope=scope)) as http:
            assert (await http.get("/v1/whoami")).status_code == 401, scope


@pytest.mark.parametrize("claims", [{"exp": 1e300}, {"exp": 10**30}, {"sub": "a" * 253}, {"sub": "a\nb"}, {"sub": ""}])
async def test_a_claim_that_nothing_can_hold_is_refused_and_no_internal_error(place, signer, claims) -> None:
    async with place.http(signer.token(**claims)) as http:
        answer = await http.get("/v1/whoami")
    assert (answer.status_code, answer.json()["code"]) == (401, "credential_invalid")


async def test_a_key_comes_in_by_header_by_hello_and_as_a_ticket(place) -> None:
    async with wire(place, "acme client") as first:
        assert first.welcome["type"] == "welcome"
    async with Wire(place.url, hello=False) as second:
        assert (await second.ask({"type": "hello", "auth": place.keys["acme client"]}))["type"] == "welcome"
    async with place.http("acme client") as http:
        ticket = (await http.post("/v1/ws-tickets", headers={"origin": ORIGIN})).json()
    assert ticket["subprotocol"].startswith(SUBPROTOCOL)
    async with Ticketed(place.url, ticket["subprotocol"], ORIGIN) as third:
        assert third.ws.subprotocol == "qraf.v1"
        assert (await third.ask({"type": "session.open", "id": "1"}))["type"] == "session.opened"


async def test_probes_and_documents_need_no_credential_and_say_little(place) -> None:
    async with place.http() as http:
        for path in ("/health", "/health/live", "/health/ready", "/v1/health", "/v1/openapi.json", "/v1/asyncapi.json"):
            assert (await http.get(path)).status_code == 200
        told = (await http.get("/health", headers={"authorization": "Bearer nonsense"})).json()
        assert (told["ready"], told["version"], told["topology"]) == (True, "", "")
        assert (await http.get("/metrics")).status_code == 401
    async with place.http("acme operator") as http:
        assert (await http.get("/health")).json()["topology"] == "lab"
        assert (await http.get("/metrics")).status_code == 200


async def test_what_nodes_hold_of_all_tenants_is_the_operators(place) -> None:
    async with place.http("acme client") as http:
        await http.post("/v1/memory", json={"collection": "manuals", "items": [{"text": "A cable is in the box."}]})
        nodes = (await http.get("/v1/topology")).json()["nodes"]
        assert all((node["items"], node["bytes"], node["memories"]) == (0, 0, 0) for node in nodes)
    async with place.http("acme operator") as http:
        assert any(node["items"] for node in (await http.get("/v1/topology")).json()["nodes"])


# ----------------------------------------------------------------------------------------------------- kept out
def confused(signer) -> str:
    """HS256 with the public RSA key as its secret, which PyJWT itself refuses to make."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = signer.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return by_hand({"alg": "HS256", "kid": "r1"}, signer.claims(), public)


def by_hand(header: dict[str, object], claims: dict[str, object], secret: bytes) -> str:
    import hashlib
    import hmac

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    signature = hmac.new(secret, text.encode(), hashlib.sha256).digest() if secret else b""
    return f"{text}.{part(signature)}"


BAD = {
    "no credential": (lambda s, p: None, "not_authenticated", 4401, "say who you are"),
    "garbage": (lambda s, p: "garbage", "credential_invalid", 4401, "neither an API key nor a token"),
    "unknown key": (lambda s, p: f"qraf_{'a' * 12}_{'b' * 43}", "credential_invalid", 4401, "no such API key"),
    "wrong secret": (lambda s, p: p.keys["acme client"][:-2] + "zz", "credential_invalid", 4401, "no such API key"),
    "alg none": (
        lambda s, p: by_hand({"alg": "none"}, s.claims(), b""),
        "token_algorithm_refused",
        4422,
        "algorithm must be HS256 or RS256 or ES256, but is 'none'",
    ),
    "alg of another type": (
        lambda s, p: by_hand({"alg": ["HS256"]}, s.claims(), SECRET.encode()),
        "token_algorithm_refused",
        4422,
        "algorithm must be",
    ),
    "confused alg": (lambda s, p: confused(s), "credential_invalid", 4401, "by no key of ours"),
    "another alg": (
        lambda s, p: jwt.encode(s.claims(), SECRET * 2, algorithm="HS512"),
        "token_algorithm_refused",
        4422,
        "algorithm must be",
    ),
    "RSA key as EC": (
        lambda s, p: s.token("ES256", kid="r1"),
        "credential_invalid",
        4401,
        "by no key of ours",
    ),
    "another signer": (
        lambda s, p: s.token("HS256", key="another secret of more than thirty-two bytes"),
        "credential_invalid",
        4401,
        "by no key of ours",
    ),
    "wrong audience": (lambda s, p: s.token(aud="elsewhere"), "token_audience_wrong", 4421, "another audience"),
    "wrong issuer": (lambda s, p: s.token(iss="https://evil.example"), "token_issuer_wrong", 4421, "another issuer"),
    "no expiry": (lambda s, p: s.token(exp=None), "credential_invalid", 4401, "no `exp`"),
    "not yet": (lambda s, p: s.token(nbf=time.time() + 60), "token_not_yet_valid", 4425, "not valid yet"),
    "no tenant": (lambda s, p: s.token(tenant=None), "credential_invalid", 4401, "`tenant`"),
    "a tenant that cannot be": (lambda s, p: s.token(tenant="acme/x"), "credential_invalid", 4401, "`tenant`"),
    "no role": (lambda s, p: s.token(role="root"), "credential_invalid", 4401, "one of viewer"),
    "expired": (lambda s, p: s.token(exp=time.time() - 5), "credential_expired", 4010, "has expired"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_credential_is_refused_by_name_everywhere(place, signer, what) -> None:
    make, code, close, said = BAD[what]
    credential = make(signer, place)
    async with place.http(credential) as http:
        response = await http.get("/v1/sessions")
    assert (response.status_code, response.json()["code"]) == (401, code)
    assert said in response.json()["detail"]
    challenge = response.headers["www-authenticate"]
    assert challenge == 'Bearer realm="qraf"' + ("" if credential is None else ', error="invalid_token"')
    async with Wire(place.url, hello=False, **(headers(place, credential))) as by_header:
        await by_header.send({"type": "hello"})
        assert await refused(by_header) == (code, close)
    async with Wire(place.url, hello=False) as by_hello:
        await by_hello.send({"type": "hello"} | ({} if credential is None else {"auth": credential}))
        assert await refused(by_hello) == (code, close)
    line = await place.audited(action="WS hello", outcome=code)
    assert line["address"] == "127.0.0.1"
    await place.audited(action="GET /v1/sessions", outcome=code)


def headers(place: Place, credential: str | None) -> dict[str, object]:
    return {} if credential is None else {"additional_headers": place.bearer(credential)}


async def test_another_scheme_is_refused(place) -> None:
    async with place.http() as http:
        response = await http.get("/v1/sessions", headers={"authorization": "Basic YTpi"})
    assert (response.status_code, response.json()["code"]) == (401, "credential_invalid")


async def test_two_credentials_are_refused(place) -> None:
    both = [("authorization", place.bearer(who)["authorization"]) for who in ("acme viewer", "brook admin")]
    async with place.http() as http:
        response = await http.get("/v1/whoami", headers=both)
    assert (response.status_code, response.json()["code"]) == (401, "credential_invalid")
    async with Wire(place.url, additional_headers=both, hello=False) as wire:
        assert await refused(wire) == ("credential_invalid", 4401)


async def test_a_ticket_is_good_once_for_its_origin_and_not_for_long(place, models, tmp_path, signer) -> None:
    async with place.http("acme viewer") as http:

        async def ticket() -> str:
            return str((await http.post("/v1/ws-tickets", headers={"origin": ORIGIN})).json()["subprotocol"])

        used = await ticket()
        async with Ticketed(place.url, used, ORIGIN):
            pass
        async with Ticketed(place.url, used, ORIGIN, hello=False) as again:
            assert await refused(again) == ("ticket_used", 4412)
        foreign = await ticket()
        async with Ticketed(place.url, foreign, "http://localhost:3000", hello=False) as elsewhere:
            assert await refused(elsewhere) == ("origin_refused", 4403)
        async with Ticketed(place.url, foreign, ORIGIN, hello=False) as gone:
            assert await refused(gone) == ("ticket_used", 4412)
        async with Ticketed(place.url, f"{SUBPROTOCOL}made-up", ORIGIN, hello=False) as none:
            assert await refused(none) == ("ticket_invalid", 4412)
    await place.audited(action="WS hello", outcome="origin_refused")
    async with guarded(models, tmp_path, signer, ticket_s=0.01) as short, short.http("acme viewer") as http:
        late = (await http.post("/v1/ws-tickets")).json()["subprotocol"]
        await asyncio.sleep(0.02)
        async with Ticketed(short.url, late, hello=False) as wire:
            assert await refused(wire) == ("credential_expired", 4010)


async def test_a_page_from_elsewhere_is_refused_whoever_it_brings(place) -> None:
    async with place.http("acme admin") as http:
        response = await http.post("/v1/sessions", json={}, headers={"origin": "https://evil.example"})
        assert (response.status_code, response.json()["code"]) == (403, "origin_refused")
        assert (await http.post("/v1/sessions", json={}, headers={"origin": ORIGIN})).status_code == 201
    async with wire(place, "acme admin", origin="https://evil.example", hello=False) as page:
        assert await refused(page) == ("origin_refused", 4403)
    said = "a request from a page of 'https://evil.example'; only pages of this machine may"
    await place.audited(action="WS hello", outcome="origin_refused", detail=said)


async def test_a_viewer_who_writes_is_told_closed_and_noted(place) -> None:
    async with place.http("acme viewer") as http:
        response = await http.post("/v1/memory", json={"collection": "manuals", "items": [{"text": "x"}]})
        assert (response.status_code, response.json()["code"]) == (403, "not_allowed")
        assert "memory:write" in response.json()["detail"]
    async with wire(place, "acme viewer") as viewer:
        await viewer.send({"type": "write", "id": "w", "collection": "manuals", "items": [{"text": "x"}]})
        error = await viewer.recv()
        assert (error["id"], error["error"]["code"]) == ("w", "not_allowed")
        assert await viewer.closed() == 4403
    line = await place.audited(action="WS write", outcome="not_allowed")
    assert (line["tenant"], line["subject"][:4]) == ("acme", "key:")
    await place.audited(action="POST /v1/memory", outcome="not_allowed")


async def test_what_a_body_asks_for_counts_beside_its_route(place, signer) -> None:
    async with place.http(signer.token(scope="responses:write memory:read")) as http:
        asked = {"prompt": "x", "session": "a", "remember": True}
        response = await http.post("/v1/enhance", json=asked)
        assert (response.status_code, "memory:write" in response.json()["detail"]) == (403, True)


# ---------------------------------------------------------------------------------------------------- later on
async def test_a_token_that_ends_ends_its_connection_unless_it_is_refreshed(place, signer) -> None:
    soon = time.time() + 1.2
    async with wire(place, signer.token(exp=soon)) as kept, wire(place, signer.token(exp=soon)) as let_go:
        assert await kept.ask({"type": "auth.refresh", "id": "1", "token": signer.token()}) == {
            "type": "ack",
            "id": "1",
            "status": "accepted",
        }
        wrong = await kept.ask({"type": "auth.refresh", "id": "2", "token": "x"})
        assert wrong["error"]["code"] == "credential_invalid"
        assert await refused(let_go) == ("credential_expired", 4010)
        assert time.time() - soon < 3  # at once, but for what else the machine does
        await asyncio.sleep(0.5)
        assert (await kept.ask({"type": "ping", "id": "3"}))["type"] == "pong"
        await kept.send({"type": "auth.refresh", "id": "4", "token": signer.token(sub="bob")})
        assert await refused(kept) == ("not_allowed", 4403)


async def test_a_revoked_key_opens_nothing_within_a_second_on_every_gateway(place, models, signer) -> None:
    """A second gateway over the same journal; a socket and a stream on each."""
    data = place.server.settings.data
    async with guarded(models, data, signer) as other, place.http("acme admin") as http:
        made = (await http.post("/v1/keys", json={"role": "client", "name": "short-lived"})).json()
        key = made["api_key"]
        async with wire(place, key) as here, wire(other, key) as there, other.http(key) as far:
            assert (await far.get("/v1/sessions")).status_code == 200
            gone = await http.delete(f"/v1/keys/{made['key']}")
            at = time.monotonic()
            assert gone.json()["status"] == "revoked"
            async with place.http(key) as near:
                response = await near.get("/v1/sessions")
            assert (response.status_code, response.json()["code"]) == (401, "credential_revoked")
            assert await refused(here) == ("credential_revoked", 4411)
            assert await refused(there) == ("credential_revoked", 4411)
            while (response := await far.get("/v1/sessions")).status_code == 200:
                await asyncio.sleep(0.02)
            assert time.monotonic() - at < 3  # a second, but for what else the machine does
            assert response.json()["code"] == "credential_revoked"


async def test_an_answer_that_streams_is_cut_when_its_key_is_revoked(place, model) -> None:
    model.script.tokens_per_s = 20
    async with place.http("acme admin") as admin:
        made = (await admin.post("/v1/keys", json={"role": "client"})).json()
        asked = {"prompt": "x", "collections": ["manuals"], "stream": True, "generate": {"max_tokens": 500}}
        model.script.num_tokens = 500

        async def read(response: httpx.Response) -> None:
            async for line in response.aiter_lines():
                if "response.delta" in line:
                    await admin.delete(f"/v1/keys/{made['key']}")

        async with place.http(made["api_key"]) as http, http.stream("POST", "/v1/enhance", json=asked) as response:
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.wait_for(read(response), 5)
        for one in place.server.service.responses.all_running():
            one.cancel()


async def test_no_secret_is_in_the_journal_or_the_audit_log(place) -> None:
    async with place.http("acme admin") as http:
        made = (await http.post("/v1/keys", json={"role": "viewer"})).json()
        listed = (await http.get("/v1/keys?limit=200")).text
        audit = (await http.get("/v1/audit?limit=200")).text
    secret = made["api_key"].split("_", 2)[2]
    assert made["key"] in listed
    assert secret not in listed + audit
    files = [path.read_bytes() for path in place.server.settings.data.iterdir() if path.name.startswith("journal")]
    assert files
    assert not any(secret.encode() in data for data in files)
