"""`qraf state`: a whole story through a real server, and what wrong usage says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.client.served import served
from tests.openai_server import OpenAIServer
from tests.test_cli import NOBODY, call

pytestmark = pytest.mark.slow  # a whole service, or processes


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OpenAIServer() as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


def test_a_state_from_its_circuit_to_its_file_and_back(url: str, tmp_path: Path) -> None:
    circuit = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nh q[0];\ncx q[0], q[1];'
    made = json.loads(
        call("state", "prepare", "--circuit", "-", "--label", "[red]pair", "--json", url=url, input=circuit).output
    )
    state = made["id"]
    shown = call("state", "evolve", state, "--channel", "amplitude_damping", "--gamma", "0.3", "--on", "0", url=url)
    assert "0.7450000000" in shown.output
    assert "[red]pair" in shown.output
    refused = call("state", "evolve", state, "--channel", "dephasing", "--p", "2", "--json", url=url)
    assert refused.exit_code == 1
    assert json.loads(refused.output)["error"]["pointer"] == "/steps/0/p"
    assert (
        call("state", "evolve", state, "--channel", "dephasing", "--p", "1", "--version", "1", url=url).exit_code == 1
    )
    measured = call("state", "measure", state, "--basis", "ZZ", "--shots", "100", "--seed", "1", url=url)
    assert "0.3500000000" in measured.output
    assert "seed 1" in measured.output
    assert "mean 0.7" in call("state", "measure", state, "--pauli", "ZZ=1", url=url).output
    assert "0.843330013267" in call("state", "compare", state, "bell", url=url).output
    file = tmp_path / "pair.npz"
    assert call("state", "export", state, "--format", "npz", "--out", str(file), url=url).exit_code == 0
    assert np.load(file)["rho"].shape == (4, 4)
    again = json.loads(call("state", "prepare", "--file", str(file), "--json", url=url).output)
    assert again["figures"]["purity"] == pytest.approx(0.745)
    listed = [json.loads(line)["id"] for line in call("state", "list", "--json", url=url).output.splitlines()]
    assert {state, again["id"]} <= set(listed)
    shown = call("state", "list", url=url).output
    assert state in shown  # whole, in a terminal of 80 columns
    assert again["id"] in shown
    assert call("state", "delete", state, again["id"], url=url).exit_code == 0
    assert call("state", "show", state, url=url).exit_code == 1


def test_states_from_numbers_and_files(url: str, tmp_path: Path) -> None:
    def made(*args: str) -> dict[str, object]:
        result = call("state", "prepare", *args, "--json", url=url)
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.output.splitlines()[-1]))

    assert made("--amplitudes", "0.6, 0.8i")["d"] == 2
    assert made("--amplitudes", "1,0,0,1", "--dims", "2x2", "--normalize")["dims"] == [2, 2]
    assert made("--named", "ghz:3")["d"] == 8
    assert made("--text", "hello")["rank"] == 1
    np.save(tmp_path / "rho.npy", np.eye(3) / 3)
    assert made("--file", str(tmp_path / "rho.npy"))["rank"] == 3
    np.save(tmp_path / "psi.npy", np.array([0.6, 0.8j]))
    assert made("--file", str(tmp_path / "psi.npy"))["rank"] == 1
    (tmp_path / "many.json").write_text('[{"named": "bell"}, {"ensemble": {"kets": [[1, 0], [0, 1]]}}]')
    assert made("--file", str(tmp_path / "many.json"))["rank"] == 2
    (tmp_path / "counts.json").write_text(json.dumps({letter: {"0": 50, "1": 50} for letter in "XYZ"}))
    assert made("--counts", str(tmp_path / "counts.json"))["d"] == 2


@pytest.mark.parametrize(
    "args",
    [
        ("prepare",),
        ("prepare", "--named", "bell", "--text", "x"),
        ("prepare", "--amplitudes", "one,two"),
        ("prepare", "--named", "bell", "--dims", "two"),
        ("prepare", "--circuit", "/no/such/file"),
        ("evolve", "st_1"),
        ("measure", "st_1", "--basis", "Z", "--pauli", "Z=1"),
        ("measure", "st_1", "--pauli", "Z=much"),
        ("delete", "st_1", "st_2", "--version", "1"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    assert call("state", *args, url=NOBODY).exit_code == 2


def test_no_server_is_exit_code_3() -> None:
    assert call("state", "list", url=NOBODY).exit_code == 3
