"""Who may come in: this machine, and no page of another one."""

from __future__ import annotations

import asyncio
import socket

import pytest
from websockets.exceptions import InvalidStatus

from qraf.errors import CannotListen, NotAllowed
from qraf.gateway.loopback import is_loopback
from qraf.gateway.server import Server
from qraf.settings import AuthSettings, GatewaySettings, Settings
from tests.gateway.conftest import serving
from tests.gateway.wire import Wire


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.3.2.1", "::1"])
def test_these_are_loopback(host) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_these_are_not(host) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "[::1"])
async def test_a_host_that_is_not_loopback_is_refused(http, host) -> None:
    response = await http.get("/v1/sessions", headers={"host": host})
    assert (response.status_code, response.json()["code"]) == (403, "not_allowed")


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:80"])
async def test_every_name_of_loopback_is_a_host(http, host) -> None:
    assert (await http.get("/v1/sessions", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
async def test_a_page_from_elsewhere_may_not_write(http, origin) -> None:
    response = await http.post("/v1/sessions", json={}, headers={"origin": origin})
    assert (response.status_code, response.json()["code"]) == (403, "origin_refused")


async def test_a_page_of_this_machine_may(http) -> None:
    response = await http.post("/v1/sessions", json={}, headers={"origin": "http://localhost:3000"})
    assert response.status_code == 201


async def test_a_page_from_elsewhere_is_told_so_a_host_gets_no_socket_and_no_error_is_logged(server, caplog) -> None:
    async with Wire(server.url, hello=False, origin="https://evil.example") as page:
        assert (await page.recv())["error"]["code"] == "origin_refused"
        assert (await page.closed(), page.ws.close_reason) == (4403, "origin_refused")
    with pytest.raises(InvalidStatus) as refused:
        async with Wire(server.url, hello=False, additional_headers={"Host": "evil.example"}):
            pass
    assert refused.value.response.status_code == 403
    assert b"not_allowed" in refused.value.response.body
    await asyncio.sleep(0.05)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    async with Wire(server.url, origin="http://localhost") as wire:
        assert wire.welcome["type"] == "welcome"


@pytest.mark.parametrize(("name", "times"), [("authorization", 1), ("x", 200)])
async def test_an_upgrade_with_headers_that_are_too_large_is_told_and_closed(server, name, times) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with Wire(server.url, hello=False, additional_headers=[(name, "x" * (9000 // times))] * times):
            pass
    assert refused.value.response.status_code == 431


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
async def test_elsewhere_than_on_loopback_a_server_needs_authentication_and_tls(server, host) -> None:
    settings = Settings(gateway=GatewaySettings(host=host, port=0))
    with pytest.raises(NotAllowed, match=r"--tls-cert.*--behind-proxy"):
        await Server(server.service, settings).start()
    settings = Settings(gateway=GatewaySettings(host=host, port=0, behind_proxy=True), auth=AuthSettings(mode="off"))
    with pytest.raises(NotAllowed, match="only loopback may be"):
        await Server(server.service, settings).start()


async def test_a_port_that_is_taken_is_told(server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(gateway=GatewaySettings(port=port))
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            await Server(server.service, settings).start()


async def test_stopping_twice_or_unstarted_is_harmless(model) -> None:
    async with serving(model) as server:
        await Server(server.service, Settings()).stop()
        await server.stop()
        await server.stop()
