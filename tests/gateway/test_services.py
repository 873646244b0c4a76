"""Quantize, optimize, correct and operations over HTTP: the way of an outsider, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
import qutip

from qraf.gateway.problems import PROBLEM_JSON

pytestmark = pytest.mark.slow  # a whole service

rng = np.random.default_rng(3)


def matrix(x: dict[str, Any]) -> np.ndarray:
    return np.array(x["real"]) + 1j * np.array(x.get("imag") or 0)


async def done(http: httpx.AsyncClient, location: str) -> dict[str, Any]:
    """The operation once it has ended."""
    for _ in range(300):
        view: dict[str, Any] = (await http.get(location)).json()
        if view["ended_at"]:
            return view
        await asyncio.sleep(0.02)
    raise AssertionError(view)


def large(n: int = 40, d: int = 200) -> dict[str, Any]:
    """An order for some seconds of work."""
    mu = rng.normal(size=(n, d, d)) / d
    matrices = {"data": base64.b64encode(mu.tobytes()).decode(), "shape": list(mu.shape), "dtype": "float64"}
    return {"op": "nearest", "matrices": matrices, "form": "none"}


async def test_a_stored_state_is_quantised_spoilt_and_repaired(http) -> None:
    state = (await http.post("/v1/state", json={"named": "bell"})).json()["id"]
    coded = (await http.post("/v1/quantize", json={"states": [state], "code": "int4", "return": True})).json()
    [coding] = coded["codings"]
    assert coding["infidelity_max"] <= coding["bound_max"]
    assert len(base64.b64decode(coding["codes"])) == coding["bytes"]
    layout = {name: coding[name] for name in ("codes", "code", "rotate", "group")}
    back = (await http.post("/v1/quantize/decode", json={"d": coded["d"], **layout})).json()
    assert (back["n"], back["d"]) == (coded["n"], coded["d"])

    bell = qutip.bell_state("00").proj().full()
    spoilt = bell + 0.05 * (rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
    body = {"op": "repair", "matrices": [{"real": spoilt.real.tolist(), "imag": spoilt.imag.tolist()}], "rank": 1}
    repaired = await http.post("/v1/correct", json=body)
    assert repaired.status_code == 200, repaired.text
    [found] = repaired.json()["results"]
    assert set(found["syndromes"]["found"]) == {"trace", "hermiticity", "negativity"}
    rho = qutip.Qobj(matrix(found["density"]))
    before = qutip.tracedist(qutip.Qobj((spoilt + spoilt.conj().T) / 2), qutip.Qobj(bell))
    assert qutip.tracedist(rho, qutip.Qobj(bell)) < before
    assert (await http.get(f"/v1/state/{state}")).json()["version"] == 1


async def test_states_may_be_stored_texts_or_made_for_the_call(http) -> None:
    state = (await http.post("/v1/state", json={"named": "bell"})).json()["id"]
    states = [state, {"text": "Ann is allergic to nuts."}, {"state": state}, {"density": [[0.5, 0.0], [0.0, 0.5]]}]
    answer = await http.post("/v1/optimize", json={"op": "truncate", "states": states, "rank": 1, "form": "none"})
    assert answer.status_code == 200, answer.text
    assert [one["d"] for one in answer.json()["results"]] == [4, 384, 4, 2]
    assert [round(one["moved"], 9) for one in answer.json()["results"]] == [0, 0, 0, 0.5]


async def test_the_sketch_of_a_session_is_weighed_at_a_smaller_rank(http) -> None:
    await http.post("/v1/sessions", json={"session": "small"})
    texts = ("nuts", "tea and cake", "a red bicycle", "the violin of my sister", "parrots", "rain")
    items = [{"text": text, "item_id": text[:4]} for text in texts]
    await http.post("/v1/memory", json={"session": "small", "items": items})
    answer = await http.post("/v1/optimize", json={"op": "recompress", "session": "small", "rank": 2})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["results"]
    assert (found["node"], found["rows"], found["rank"]) == ("desk", 6, 2)
    assert found["rank_before"] == 6
    assert 0 < found["moved"] <= found["loss_after"] + found["loss_before"]
    assert found["bytes_after"] < found["bytes_before"]
    applied = await http.post("/v1/optimize", json={"op": "recompress", "session": "small", "rank": 3, "apply": True})
    assert applied.status_code == 200, applied.text
    [less] = applied.json()["results"]
    assert (less["applied"], less["rank_before"], less["rank"]) == (True, 6, 3)
    assert less["bytes_before"] == found["bytes_before"]
    assert less["bytes_after"] < less["bytes_before"]
    assert less["before"][0] == pytest.approx(found["before"][0])
    assert (len(less["after"]), 0 < less["moved"] <= less["loss_after"] + less["loss_before"]) == (3, True)
    assert (await http.get("/v1/sessions/small")).json()["rank"] == 3
    again = await http.post("/v1/optimize", json={"op": "recompress", "session": "small", "rank": 6, "apply": True})
    assert (again.json()["results"][0]["rank_before"], again.json()["results"][0]["rank"]) == (3, 6)
    assert again.json()["results"][0]["after"] == pytest.approx(found["before"])
    for body, pointer in (
        ({"rank": 2, "collection": "manuals"}, "/apply"),
        ({"rank": 0, "session": "small"}, "/rank"),
        ({"rank": 5000, "session": "small"}, "/rank"),
        ({"rank": 2, "session": "small", "after": []}, "/after"),
    ):
        refused = await http.post("/v1/optimize", json={"op": "recompress", "apply": True, **body})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer), refused.text
    assert (await http.get("/v1/sessions/small")).json()["rank"] == 6
    assert (await http.patch("/v1/sessions/small", json={"rank": None})).json()["rank"] is None
    empty = await http.post("/v1/sessions", json={"session": "empty"})
    assert empty.status_code == 201
    answer = await http.post("/v1/optimize", json={"op": "recompress", "session": "empty", "rank": 2})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/session")
    for session in ("small", "empty"):
        await http.delete(f"/v1/sessions/{session}")


async def test_shots_of_a_surface_code_are_drawn_and_decoded(http) -> None:
    experiment = {"code": "rotated_surface", "distance": 3, "rounds": 3, "noise": 0.01}
    drawn = (
        await http.post("/v1/correct", json={"op": "sample", "experiment": experiment, "shots": 200, "seed": 1})
    ).json()
    shots = {"detectors": drawn["detectors"], "observables": drawn["observables"]}
    decoded = await http.post("/v1/correct", json={"op": "decode", "experiment": experiment, **shots})
    assert decoded.status_code == 200, decoded.text
    assert decoded.json()["shots"] == 200
    assert decoded.json()["errors"]["rate"] < 0.1


# ------------------------------------------------------------------------------------------------ operations
async def test_a_long_order_becomes_an_operation_whose_result_is_that_of_a_short_one(http) -> None:
    body = large(30, 100) | {"form": "lists"}
    accepted = await http.post("/v1/optimize", json=body, headers={"prefer": "handling=lenient, respond-async"})
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    location = accepted.headers["location"]
    assert location == f"/v1/operations/{accepted.json()['id']}"
    view = await done(http, location)
    assert (view["status"], view["progress"], view["op"]) == ("completed", 1.0, "nearest")
    assert len(view["result"]["results"]) == 30
    alone = await http.post("/v1/optimize", json=body)
    assert alone.status_code == 200
    for one, other in zip(view["result"]["results"], alone.json()["results"], strict=True):
        np.testing.assert_allclose(matrix(one["density"]), matrix(other["density"]), atol=1e-12)
    listed = (await http.get("/v1/operations")).json()["data"]
    assert [one["result"] for one in listed if one["id"] == view["id"]] == [None]
    dropped = await http.delete(location)
    assert dropped.json()["status"] == "completed"
    assert (await http.get(location)).status_code == 404


async def test_what_is_beyond_the_stated_size_is_an_operation_unasked_and_can_be_cancelled(http) -> None:
    job = await http.post("/v1/optimize", json=large(8, 512))  # 8 times 0.1 ms + 2 ns d^3, which is above 2 s
    assert job.status_code == 202
    assert "preference-applied" not in job.headers
    location = job.headers["location"]
    cancelled = await http.post(f"{location}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    assert (await http.get(location)).json()["progress"] < 1
    assert (await http.get(location)).json()["result"] is None


async def test_a_failed_operation_says_why_with_its_pointer(http) -> None:
    matrices = [[[1.0, 0.0], [0.0, 0.0]]] * 3 + [[[1.0, 2.0]]]
    body = {"op": "nearest", "matrices": matrices}
    job = await http.post("/v1/optimize", json=body, headers={"prefer": "respond-async"})
    view = await done(http, job.headers["location"])
    assert view["status"] == "failed"
    assert (view["error"]["code"], view["error"]["pointer"]) == ("invalid_request", "/matrices/3")


async def test_unknown_operations_are_named(http) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
        answer = await http.request(method, f"/v1/operations/op_1{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "op_1" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------------ bad input, metrics
@pytest.mark.parametrize(
    ("path", "body", "pointer", "need"),
    [
        ("optimize", {"op": "nearest", "matrices": [[1, 0, 0], [0, 1, 0]]}, "/matrices", "must be square"),
        ("optimize", {"op": "nearest", "matrices": [[1, 0], [0, 0]], "rank": 0}, "/rank", "from 1 to 2"),
        ("optimize", {"op": "nearest", "matrices": [[1, 0], [0, "x"]]}, "/matrices/1/1", "expected"),
        ("optimize", {"op": "nearest", "matrices": [[1]], "ranks": 1}, "/ranks", "unknown field"),
        ("optimize", {"op": "nearst", "matrices": [[1]]}, "/op", "'nearst'; there are nearest, truncate, recompress"),
        ("correct", {"matrices": [[1]]}, "/op", "required; there are repair, align, build, sample, decode"),
        ("optimize", {"op": "truncate", "states": ["st_none"], "rank": 1}, "/states/0", "no state 'st_none'"),
        ("optimize", {"op": "truncate", "states": [{"text": " "}], "rank": 1}, "/states/0/text", "not empty"),
        ("optimize", {"op": "truncate", "states": [{}], "rank": 1}, "/states/0", "exactly one"),
        ("optimize", {"op": "truncate", "matrices": [[0, 0], [0, 0]], "rank": 1}, "/matrices", "trace 1"),
        ("optimize", {"op": "recompress", "rank": 2}, "/session", "exactly one"),
        ("quantize", {"rows": [1, 2], "code": "int3"}, "/code", "'int3'; there are float32, int8, int4"),
        ("quantize", {"rows": [0, 0]}, "/rows/0", "zero"),
        ("quantize/decode", {"codes": "AAAA", "d": 384, "code": "int4"}, "/codes", "204 bytes"),
        ("quantize/decode", {"codes": "?", "d": 384, "code": "int4"}, "/codes", "base64"),
        ("correct", {"op": "align", "vectors": [1, 0], "reference": [1]}, "/reference", "d = 2"),
        ("correct", {"op": "decode", "dem": "error(2) D0", "detectors": "AA=="}, "/dem", ""),
        (
            "correct",
            {
                "op": "decode",
                "experiment": {"code": "repetition", "distance": 5, "rounds": 3, "noise": 0.01},
                "detectors": "AAAA",
            },
            "/detectors",
            "2 bytes",
        ),
        (
            "correct",
            {"op": "sample", "experiment": {"code": "repetition", "distance": 5, "rounds": 3}, "shots": 10**12},
            "/shots",
            "must be 1 to",
        ),
    ],
)
async def test_bad_input_is_a_problem_with_pointer_and_need_and_the_service_stays_up(
    http, path: str, body: dict[str, Any], pointer: str, need: str
) -> None:
    answer = await http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    [fault] = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert need in fault["detail"]
    good = await http.post("/v1/optimize", json={"op": "nearest", "matrices": [[1.25, 0], [0, -0.25]]})
    assert good.json()["results"][0]["after"] == [1.0]


async def test_not_a_number_is_told_by_its_place(http) -> None:
    body = b'{"op": "nearest", "matrices": [[NaN, 0], [0, 1]]}'
    answer = await http.post("/v1/optimize", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/matrices/0/0")
    raw = base64.b64encode(np.array([[np.nan, 0], [0, 1]]).tobytes()).decode()
    matrices = {"data": raw, "shape": [2, 2], "dtype": "float64"}
    answer = await http.post("/v1/optimize", json={"op": "nearest", "matrices": matrices})
    assert "NaN or infinity at 0/0" in answer.json()["detail"]


async def test_what_was_done_is_counted_and_where_it_runs_is_told(http) -> None:
    await http.post("/v1/quantize", json={"rows": [0.6, 0.8], "code": "int4"})
    await http.post("/v1/correct", json={"op": "repair", "matrices": [[1.25, 0], [0, -0.25]]})
    metrics = (await http.get("/metrics")).text
    assert 'qraf_quantize_infidelity_ratio_count{code="int4"}' in metrics
    assert 'qraf_corrections_total{kind="negativity"}' in metrics
    services = (await http.get("/v1/services")).json()["data"]
    assert {one["name"]: one["place"] for one in services} == {"optimization": "inline", "correction": "inline"}
