"""A server that others than this machine can reach: TLS of its own, or a proxy's; its own pages and those it names."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qraf.errors import InvalidRequest
from qraf.gateway.server import Server
from qraf.settings import AuthSettings, GatewaySettings
from tests.gateway.security.conftest import Place
from tests.gateway.wire import Wire


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=2100)
    )
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(
        made.add_extension(names, False).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(*plain))
    return cert, private


def again(place: Place, **gateway: object) -> Server:
    """A second server of the same service, elsewhere."""
    changes = {"gateway": GatewaySettings(port=0, **gateway)}  # type: ignore[arg-type]
    return Server(place.server.service, place.server.settings.model_copy(update=changes))


async def test_tls_of_its_own(place, certificate) -> None:
    cert, key = certificate
    server = again(place, tls_cert=cert, tls_key=key)
    try:
        assert (await server.start()).startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=cert)
        async with httpx.AsyncClient(base_url=server.url, verify=trusted, trust_env=False) as http:
            assert (await http.get("/v1/whoami")).status_code == 401
            assert (await http.get("/v1/whoami", headers=place.bearer("acme viewer"))).status_code == 200
        async with Wire(server.url, ssl=trusted, additional_headers=place.bearer("acme viewer")) as wire:
            assert wire.welcome["type"] == "welcome"
    finally:
        await server.stop()


async def test_half_of_a_certificate_is_none(place, certificate) -> None:
    with pytest.raises(InvalidRequest, match="go together"):
        await again(place, tls_cert=certificate[0]).start()


async def test_behind_a_proxy_any_host_name_and_its_own_pages(place) -> None:
    server = again(place, behind_proxy=True, origins=("https://app.example",))
    try:
        await server.start()
        headers = place.bearer("acme client") | {"host": "memory.example", "x-forwarded-for": "203.0.113.9"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as http:
            for origin in ("https://memory.example", "https://app.example"):
                made = await http.post("/v1/sessions", json={}, headers={"origin": origin})
                assert made.status_code == 201, origin
            for origin in ("https://evil.example", "http://localhost:3000", "null"):
                made = await http.post("/v1/sessions", json={}, headers={"origin": origin})
                assert made.status_code == 403, origin
            assert (await http.get("/v1/sessions", headers={"authorization": "Bearer x"})).status_code == 401
    finally:
        await server.stop()
    line = await place.audited(action="GET /v1/sessions", address="203.0.113.9")
    assert line["outcome"] == "credential_invalid"


async def test_on_the_network_with_authentication_and_a_proxy(place) -> None:
    server = again(place, host="0.0.0.0", behind_proxy=True)
    try:
        url = (await server.start()).replace("0.0.0.0", "127.0.0.1")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/v1/sessions")).status_code == 401
    finally:
        await server.stop()


def test_the_proxy_is_not_a_way_around_authentication() -> None:
    assert AuthSettings().mode == "on"
    assert GatewaySettings().host == "127.0.0.1"
