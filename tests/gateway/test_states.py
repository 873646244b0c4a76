"""`/v1/state` and the `state` frame: what an outsider does in the first hour, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
import qutip

from tests.gateway.test_rest import problem
from tests.gateway.wire import Wire

pytestmark = pytest.mark.slow  # a whole service

BELL = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nh q[0];\ncx q[0], q[1];'
DAMP = {"channel": "amplitude_damping", "gamma": 0.3, "subsystems": [0]}


async def made(http: httpx.AsyncClient, **body: Any) -> str:
    response = await http.post("/v1/state", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def test_a_bell_pair_is_prepared_damped_read_and_carried_away(http) -> None:
    response = await http.post("/v1/state", json={"circuit": BELL, "label": "pair"})
    assert response.status_code == 201
    view = response.json()
    assert response.headers["location"] == f"/v1/state/{view['id']}"
    assert response.headers["etag"] == '"1"'
    path = f"/v1/state/{view['id']}"

    response = await http.post(f"{path}/evolve", json={"steps": [DAMP]}, headers={"If-Match": '"1"'})
    assert (response.status_code, response.headers["etag"]) == (200, '"2"')

    bell = qutip.bell_state("00").proj()
    kraus = [qutip.Qobj([[1, 0], [0, np.sqrt(0.7)]]), qutip.Qobj([[0, np.sqrt(0.3)], [0, 0]])]
    want = sum(qutip.tensor(k, qutip.qeye(2)) * bell * qutip.tensor(k, qutip.qeye(2)).dag() for k in kraus)
    figures = response.json()["figures"]
    assert figures["purity"] == pytest.approx(want.purity(), abs=1e-14)
    assert figures["entropy_bits"] == pytest.approx(qutip.entropy_vn(want, 2), abs=1e-10)

    response = await http.post("/v1/state/compare", json={"pairs": [[view["id"], {"named": "bell"}]]})
    assert response.json()["results"][0]["fidelity"] == pytest.approx(qutip.fidelity(want, bell) ** 2, abs=1e-8)

    response = await http.get(f"{path}/export", params={"format": "npz"})
    assert response.headers["content-type"] == "application/x-npz"
    data = np.load(io.BytesIO(response.content))
    carried = qutip.Qobj(data["rho"], dims=[data["dims"].tolist()] * 2)
    assert np.abs((carried - want).full()).max() < 1e-15
    packet = (await http.get(f"{path}/export")).content
    again = await http.post("/v1/state", json={"packet": base64.b64encode(packet).decode()})
    assert again.json()["figures"] == figures
    document = (await http.get(f"{path}/export", params={"format": "json"})).json()
    assert np.allclose(np.array(document["rho"]["real"]) + 1j * np.array(document["rho"]["imag"]), want.full())


async def test_versions_guard_what_is_changed(http) -> None:
    state = await made(http, named="bell")
    path = f"/v1/state/{state}"
    assert (await http.get(path, headers={"If-None-Match": '"1"'})).status_code == 304
    assert (await http.get(path, headers={"If-None-Match": '"7", "8"'})).status_code == 200
    for route, body in (
        ("evolve", {"steps": [DAMP]}),
        ("merge", {"others": [state]}),
        ("partial_trace", {"keep": [0]}),
    ):
        response = await http.post(f"{path}/{route}", json=body, headers={"If-Match": '"9"'})
        problem(response, 412, "version_conflict")
    problem(await http.delete(path, headers={"If-Match": '"9"'}), 412, "version_conflict")
    response = await http.post(f"{path}/evolve", json={"steps": [DAMP]}, headers={"If-Match": "yesterday"})
    problem(response, 422, "invalid_request", "/headers/if-match")
    assert (await http.get(path)).json()["version"] == 1
    assert (await http.post(f"{path}/evolve", json={"steps": [DAMP]}, headers={"If-Match": "*"})).status_code == 200
    assert (await http.delete(path, headers={"If-Match": '"2"'})).json()["ids"] == [state]
    problem(await http.get(path), 404, "not_found")


async def test_many_states_in_one_call(http) -> None:
    body = {"states": [{"amplitudes": [np.cos(t), np.sin(t)]} for t in np.linspace(0, 1, 32)]}
    found = (await http.post("/v1/state", json=body)).json()
    assert found["kind"] == "states"
    ids = [view["id"] for view in found["states"]]
    response = await http.post("/v1/state/measure", json={"ids": ids, "vectors": [[1, 0]]})
    probabilities = [result["probabilities"][0] for result in response.json()["results"]]
    assert probabilities == pytest.approx(np.cos(np.linspace(0, 1, 32)) ** 2, abs=1e-14)
    response = await http.post("/v1/state/evolve", json={"ids": ids, "steps": [{"channel": "depolarizing", "p": 1}]})
    assert {view["version"] for view in response.json()["states"]} == {2}
    response = await http.post("/v1/state/compare", json={"pairs": [[one, {"named": "mixed:1"}] for one in ids]})
    assert [result["fidelity"] for result in response.json()["results"]] == pytest.approx([1] * 32)


async def test_states_are_listed_page_by_page(http) -> None:
    ids = {await made(http, named="bell", label=f"page {number}") for number in range(5)}
    seen, cursor = set(), None
    while True:
        params: dict[str, Any] = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = (await http.get("/v1/state", params=params)).json()
        seen |= {view["id"] for view in page["data"]}
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert ids <= seen
    problem(await http.get("/v1/state", params={"limit": 201}), 422, "invalid_request", "/query/limit")


BAD: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("/measure", {"ids": ["{state}", "st_none"], "basis": "ZZ"}, "/ids/1"),
    ("/evolve", {"ids": ["{state}", "st_none"], "steps": [DAMP]}, "/ids/1"),
    ("", {"density": [[1, 0, 0], [0, 0, 0]]}, "/density"),
    ("", {"density": [[0.5, 0.1], [0.2, 0.5]]}, "/density"),
    ("", {"density": [[0, 0], [0, 0]]}, "/density"),
    ("", {"density": [[0, 0], [0, 0]], "normalize": True}, "/density"),
    ("", b'{"amplitudes": [1, NaN]}', "/amplitudes/1"),
    ("", b'{"states": [{"amplitudes": {"real": [1, 0], "imag": [0, -Infinity]}}]}', "/states/0/amplitudes/imag/1"),
    ("", {"amplitudes": [1, None]}, "/amplitudes/1"),
    ("", {"amplitudes": [1, "0"]}, "/amplitudes/1"),
    ("", {"amplitudes": [1, 0, 0], "dims": [2, 2]}, "/dims"),
    ("", {"circuit": "OPENQASM 3.0;\nqubit[13] q;"}, "/circuit"),
    ("", {"named": "bell", "colour": "red"}, "/colour"),
    ("", {"packet": "not base64!"}, "/packet"),
    ("", {}, "/amplitudes"),
    ("", {"states": [{"named": "bell"}, {}]}, "/states/1"),
    ("/{state}/evolve", {"steps": [{"kraus": [[[0.5, 0], [0, 0.5]]], "subsystems": [0]}]}, "/steps/0/kraus"),
    ("/{state}/evolve", {"steps": [{"channel": "warming", "p": 1}]}, "/steps/0/channel"),
    ("/{state}/evolve", {"steps": [DAMP, {"channel": "dephasing", "p": 2}]}, "/steps/1/p"),
    ("/{state}/evolve", {"steps": [{"channel": "pauli", "probabilities": {"X": "a"}}]}, "/steps/0/probabilities"),
    ("/{state}/evolve", {"steps": [DAMP], "into": "elsewhere"}, "/into"),
    ("/{state}/evolve", {}, "/steps"),
    ("/{state}/measure", {"vectors": [[1, 0]]}, "/vectors"),
    ("/{state}/measure", {"basis": "ZZ", "shots": 0}, "/shots"),
    ("/{state}/merge", {"others": ["st_none"]}, "/others/0/state"),
    ("/{state}/partial_trace", {"keep": [4]}, "/keep"),
    ("/measure", {"ids": [], "basis": "Z"}, "/ids"),
    ("/evolve", {"ids": ["{state}", "{state}"], "steps": [DAMP]}, "/ids"),
    ("/compare", {"pairs": [["{state}", {"named": "plus:3"}]]}, "/pairs/0"),
    ("/compare", {"pairs": [["{state}"]]}, "/pairs/0"),
]


async def test_bad_input_is_named_and_changes_nothing(http) -> None:
    state = await made(http, named="bell")
    before = [
        (await http.get(f"/v1/state/{state}")).json(),
        len((await http.get("/v1/state?limit=200")).json()["data"]),
    ]
    for route, body, pointer in BAD:
        data = body if isinstance(body, bytes) else json.dumps(body).replace("{state}", state).encode()
        response = await http.post(
            f"/v1/state{route.replace('{state}', state)}", content=data, headers={"content-type": "application/json"}
        )
        document = problem(response, 422, "invalid_request")
        assert [fault["pointer"] for fault in document["errors"]] == [pointer], (route, body, response.text)
        assert len(document["detail"]) > 5
    after = [(await http.get(f"/v1/state/{state}")).json(), len((await http.get("/v1/state?limit=200")).json()["data"])]
    assert after == before
    warming = await http.post(f"/v1/state/{state}/evolve", json={"steps": [{"channel": "warming"}]})
    assert "amplitude_damping" in warming.json()["detail"]
    problem(await http.post("/v1/state/st_none/evolve", json={"steps": [DAMP]}), 404, "not_found")
    problem(await http.get(f"/v1/state/{state}/export?format=pickle"), 422, "invalid_request", "/query/format")


async def test_a_long_body_is_taken_and_one_that_is_too_long_is_refused(http) -> None:
    d = 256  # 1 MiB of numbers, over the longest frame
    rho = np.eye(d, dtype=complex) / d
    array = {"data": base64.b64encode(rho.tobytes()).decode(), "shape": [d, d], "dtype": "complex128"}
    response = await http.post("/v1/state", json={"density": array})
    assert response.status_code == 201, response.text
    assert response.json()["figures"]["entropy_bits"] == pytest.approx(8)
    response = await http.post("/v1/state", content=b"x" * 40_000_000, headers={"content-type": "application/json"})
    problem(response, 413, "too_large")


@pytest.mark.parametrize("subprotocol", ["qraf.v1", "qraf.v1+msgpack"])
async def test_states_over_the_socket(server, subprotocol) -> None:
    async with Wire(server.url, subprotocol=subprotocol) as wire:
        await talk(wire, is_binary="msgpack" in subprotocol)


async def talk(wire: Wire, is_binary: bool) -> None:
    done = await wire.ask({"type": "state", "id": "1", "order": {"op": "prepare", "named": "bell"}})
    assert done["type"] == "state.done"
    [view] = done["answer"]["states"]
    order: dict[str, Any] = {"op": "evolve", "ids": [view["id"]], "steps": [DAMP], "versions": [1]}
    done = await wire.ask({"type": "state", "id": "2", "order": order})
    assert done["answer"]["states"][0]["version"] == 2
    refused = await wire.ask({"type": "state", "id": "3", "order": order})
    assert refused["error"]["code"] == "version_conflict"
    order = {"op": "measure", "ids": [view["id"]], "basis": "Z"}
    refused = await wire.ask({"type": "state", "id": "4", "order": order})
    assert (refused["error"]["code"], refused["error"]["pointer"]) == ("invalid_request", "/order/basis")
    refused = await wire.ask({"type": "state", "id": "5", "order": {"op": "read", "id": "x"}})
    assert refused["error"]["pointer"] == "/order/id"
    done = await wire.ask({"type": "state", "id": "6", "order": {"op": "export", "id": view["id"]}})
    data = done["answer"]["data"]
    packet = data if is_binary else base64.b64decode(data)
    assert packet[:4] == b"QRAF"
    done = await wire.ask({"type": "state", "id": "7", "order": {"op": "prepare", "packet": data}})
    assert done["answer"]["states"][0]["figures"]["purity"] < 1
    done = await wire.ask({"type": "state", "id": "8", "order": {"op": "read", "ids": [view["id"]]}})
    assert done["answer"]["states"][0]["version"] == 2


async def test_a_long_order_is_an_operation(http) -> None:
    prefer = {"prefer": "respond-async"}
    made = await http.post("/v1/state", json={"named": "bell", "id": "st_long"}, headers=prefer)
    assert (made.status_code, made.headers["preference-applied"]) == (202, "respond-async")
    done = await ended(http, made)
    assert (done["op"], done["progress"], done["result"]["kind"]) == ("prepare", 1.0, "states")
    assert (done["result"]["states"][0]["id"], done["result"]["states"][0]["version"]) == ("st_long", 1)
    body = {"steps": [{"channel": "dephasing", "p": 0.5, "subsystems": [0]}]}
    changed = await ended(http, await http.post("/v1/state/st_long/evolve", json=body, headers=prefer))
    assert changed["result"]["states"][0]["version"] == 2
    asked = await http.post("/v1/state/st_long/measure", json={"basis": "ZZ"}, headers=prefer)
    assert (await ended(http, asked))["result"]["results"][0]["probabilities"] == pytest.approx([0.5, 0, 0, 0.5])
    late = await http.post("/v1/state/st_long/evolve", json=body, headers={**prefer, "if-match": '"1"'})
    failed = await ended(http, late)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "version_conflict")
    assert (await http.get("/v1/state/st_long")).json()["version"] == 2
    await http.delete("/v1/state/st_long")


async def ended(http, accepted) -> dict:
    assert accepted.status_code == 202, accepted.text
    while not (view := (await http.get(accepted.headers["location"])).json())["ended_at"]:
        await asyncio.sleep(0.01)
    return view


async def test_a_state_of_another_tenant_among_many_is_a_fault_of_the_body(http) -> None:
    for path, body in (("measure", {"basis": "computational"}), ("evolve", {"steps": []})):
        refused = await http.post(f"/v1/state/{path}", json={"ids": ["acme/st_x"], **body})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/ids/0")
