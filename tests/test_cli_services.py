"""`qraf quantize | optimize | correct | operations` against a real server, with files as a user has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qraf.client.sync import connect_sync
from qraf.service_orders import CODES
from tests.client.served import served
from tests.openai_server import OpenAIServer, Script
from tests.test_cli import call

pytestmark = pytest.mark.slow  # a whole service


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OpenAIServer(Script()) as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


def saved(folder: Path, x: np.ndarray, name: str = "x.npy") -> str:
    np.save(folder / name, x)
    return str(folder / name)


def test_rows_are_quantised_from_every_kind_of_file(url: str, tmp_path: Path) -> None:
    rows = np.eye(2, 64) + 0.1
    files = [saved(tmp_path, rows), str(tmp_path / "x.json"), str(tmp_path / "x.npz")]
    Path(files[1]).write_text(json.dumps(rows.tolist()))
    np.savez(files[2], rows=rows)
    tables = [json.loads(call("quantize", file, "--json", url=url).output) for file in files]
    assert tables[0] == tables[1] == tables[2]
    assert {one["code"] for one in tables[0]["codings"]} == set(CODES)
    shown = call("quantize", files[0], url=url)
    assert all(code in shown.output for code in CODES)
    out = tmp_path / "codes"
    told = json.loads(call("quantize", files[0], "--code", "int4", "-o", str(out), "--json", url=url).output)
    assert out.stat().st_size == told["codings"][0]["bytes"]


def test_help_names_every_code() -> None:
    shown = call("quantize", "--help").output
    assert all(code in shown for code in CODES)


def test_matrices_are_made_states(url: str, tmp_path: Path) -> None:
    file = saved(tmp_path, np.diag([1.25, -0.25]))
    out = tmp_path / "nearest.npy"
    assert "0.25" in call("optimize", "nearest", file, "-o", str(out), url=url).output
    assert np.load(out).tolist() == [[1, 0], [0, 0]]
    repaired = json.loads(call("correct", "repair", file, "--noise", "0.1", "--json", url=url).output)
    assert repaired["results"][0]["syndromes"]["found"] == ["negativity"]
    assert "negativity" in call("correct", "repair", file, url=url).output
    states = saved(tmp_path, np.diag([0.7, 0.3]))
    out = tmp_path / "factors.npz"
    told = json.loads(call("optimize", "truncate", states, "--rank", "1", "-o", str(out), "--json", url=url).output)
    assert told["results"][0]["moved"] == pytest.approx(0.3)
    assert np.load(out)["array_0"].shape == (1, 2)
    assert "0.7" in call("optimize", "truncate", states, "--loss", "0.5", url=url).output


def test_stored_states_are_taken_by_their_ids(url: str) -> None:
    with connect_sync(url) as q:
        state = q.state.prepare(named="bell").id
    told = json.loads(call("quantize", "--state", state, "--code", "int8", "--json", url=url).output)
    assert told["rows_of"] == [1]
    assert call("optimize", "truncate", "--state", state, "--rank", "1", url=url).exit_code == 0


def test_vectors_are_aligned(url: str, tmp_path: Path) -> None:
    vector, reference = saved(tmp_path, np.array([0.6j, 0.8j])), saved(tmp_path, np.array([0.6, 0.8]), "r.npy")
    out = tmp_path / "aligned.npy"
    assert "1.000000000" in call("correct", "align", vector, reference, "-o", str(out), url=url).output
    np.testing.assert_allclose(np.load(out), [0.6, 0.8], atol=1e-12)


def test_shots_are_drawn_to_files_and_decoded(url: str, tmp_path: Path) -> None:
    events, dem = tmp_path / "shots.b8", tmp_path / "model.dem"
    code = ("--code", "repetition", "--distance", "5", "--noise", "0.01")
    assert "bytes a shot" in call("correct", "build", *code, "--dem", str(dem), url=url).output
    drawn = json.loads(
        call("correct", "sample", str(events), "--shots", "50", "--seed", "1", *code, "--json", url=url).output
    )
    real = drawn["observables"]
    told = json.loads(call("correct", "decode", str(events), "--observables", real, *code, "--json", url=url).output)
    assert told["shots"] == 50
    by_model = call("correct", "decode", str(events), "--observables", real, "--dem", str(dem), url=url)
    assert f"{told['errors']['errors']} wrong" in by_model.output


def test_a_session_is_weighed_at_a_smaller_rank(url: str) -> None:
    call("write", "weighed", "-", input="nuts\ntea and cake\na red bicycle\n", url=url)
    told = json.loads(call("optimize", "recompress", "-s", "weighed", "--rank", "1", "--json", url=url).output)
    assert told["results"][0]["rank"] == 1
    assert "3 > 1" in call("optimize", "recompress", "-s", "weighed", "--rank", "1", url=url).output
    assert "3 > 2" in call("optimize", "recompress", "-s", "weighed", "--rank", "2", "--apply", url=url).output
    assert "2 > 1" in call("optimize", "recompress", "-s", "weighed", "--rank", "1", url=url).output


def test_operations_are_followed_and_cancelled(url: str) -> None:
    with connect_sync(url) as q:
        job = q.submit({"op": "nearest", "matrices": np.diag([1.25, -0.25])})
        job.result()
    assert "completed, 100% done" in call("operations", "show", job.id, "--wait", url=url).output
    told = json.loads(call("operations", "show", job.id, "--json", url=url).output)
    assert told["result"]["results"][0]["after"] == [1.0]
    assert job.id in call("operations", "list", url=url).output
    assert json.loads(call("operations", "list", "--json", url=url).output.splitlines()[0])["id"] == job.id
    assert "completed" in call("operations", "cancel", job.id, url=url).output
    assert call("operations", "show", "op_1", url=url).exit_code == 1


def test_a_long_job_is_followed_by_the_command(url: str, tmp_path: Path) -> None:
    file = saved(tmp_path, np.random.default_rng(0).normal(size=(8, 512, 512)) / 512)
    told = json.loads(call("optimize", "nearest", file, "--json", url=url).output)
    assert len(told["results"]) == 8


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("quantize",), 2),
        (("quantize", "x.npy", "--state", "st_1"), 2),
        (("optimize", "truncate", "x.npy"), 2),
        (("optimize", "recompress", "--rank", "2"), 2),
        (("correct", "build", "--code", "steane"), 2),
        (("quantize", "no-such-file.npy"), 1),
        (("quantize", "BROKEN"), 1),
        (("quantize", "ROWS", "--code", "int3"), 1),
        (("optimize", "nearest", "ROWS"), 1),
        (("optimize", "nearest", "--state", "st_none"), 1),
        (("correct", "repair", "ROWS", "--rank", "0"), 1),
    ],
)
def test_wrong_usage_and_wrong_input_have_their_exit_codes(
    url: str, tmp_path: Path, args: tuple[str, ...], status: int
) -> None:
    (tmp_path / "broken.npy").write_bytes(b"no array")
    files = {"BROKEN": str(tmp_path / "broken.npy"), "ROWS": saved(tmp_path, np.ones((2, 3)))}
    result = call(*(files.get(arg, arg) for arg in args), url=url)
    assert result.exit_code == status, result.output
    if status == 1:
        assert result.stderr.startswith("error: ")


def test_without_services_in_the_topology_nothing_of_serve_is_loaded() -> None:
    code = """
import sys
from types import SimpleNamespace
from qraf.cli.serve import _services
from qraf.network.topology import Topology
from qraf.settings import Settings
made = _services(Settings(), Topology("lab", {}, {}, (), "desk"), SimpleNamespace(work=None))
print(type(made).__name__, [name for name in ("ray", "ray.serve", "torch", "grpc") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "InlineServices []"
