from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qraf.cli.app import app
from qraf.network.loader import load
from tests.memory.test_tune import DIM, noise, puzzle

pytestmark = pytest.mark.slow  # all of them together

TOPOLOGY = """\
# the desk
version: 1
name: desk
nodes:
  inbox: {role: memory, holds: sessions, recall: {alpha: 0.95}}   # talks
  manuals: {role: memory, holds: [manuals], recall: {alpha: 0.95}}
  notes: {role: memory, holds: [notes]}
  writer: {role: generator, model: smollm2-135m}
links:
  - {source: inbox, target: [manuals, notes, writer]}
  - {source: [manuals, notes], target: writer}
ingress: inbox
"""


class NoiseEncoder:
    """Says nothing, so that the words are all there is."""

    name, dim = "noise", DIM

    def encode(self, texts: list[str]) -> Any:
        return noise(texts)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qraf.cli.tune.load_encoder", lambda settings, device="cpu": NoiseEncoder())


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "desk.yaml"
    file.write_text(TOPOLOGY)
    return file


def labels(folder: Path, prompts: int = 60, by_chance: bool = False, **where: str) -> Path:
    given = puzzle(1, by_chance=by_chance)
    line = {
        **where,
        "items": [{"item_id": one.item_id, "text": one.text, "at": one.at} for one in given.items],
        "prompts": [{"prompt": one.prompt, "evidence": one.evidence} for one in given.prompts[:prompts]],
    }
    file = folder / "labels.jsonl"
    file.write_text(json.dumps(line) + "\n")
    return file


def tuned(*args: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, args)])


def test_constants_of_the_nodes_that_hold_the_memory_change_and_nothing_else(topology: Path, tmp_path: Path) -> None:
    result = tuned(topology, "--data", labels(tmp_path, session="kitchen"), "--folds", 2, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["written"] is True
    [node] = told["nodes"]
    assert (node["node"], node["better"], node["labelled"], node["prompts"]) == ("inbox", True, True, 60)
    assert node["held_out"]["after"]["mrr"] > node["held_out"]["before"]["mrr"]
    assert node["held_out"]["gain"] > node["held_out"]["noise"]
    after = load(topology)
    assert after.nodes["inbox"].recall.alpha == node["recall"]["alpha"] < 0.8
    assert after.nodes["manuals"].recall.alpha == 0.95
    changed = [(a, b) for a, b in zip(TOPOLOGY.splitlines(), topology.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1].endswith("}   # talks")


def test_a_gain_by_chance_changes_nothing_and_says_so(topology: Path, tmp_path: Path) -> None:
    data = labels(tmp_path, by_chance=True, collection="notes")
    result = tuned(topology, "-d", data, "--folds", 2)
    assert result.exit_code == 0, result.output
    assert "nothing changed" in result.stdout
    assert "stays as it was" in result.stdout
    assert topology.read_text() == TOPOLOGY


def test_out_leaves_the_file_alone(topology: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.yaml"
    data = labels(tmp_path, prompts=19)
    result = tuned(topology, "-d", data, "--node", "notes", "--out", out)
    assert result.exit_code == 0, result.output
    assert "19 prompts are too few" in result.stdout
    assert out.read_text() == TOPOLOGY == topology.read_text()


def test_nodes_that_read_alike_share_a_fit(topology: Path, tmp_path: Path) -> None:
    result = tuned(topology, "-d", labels(tmp_path, prompts=19), "--json")
    told = json.loads(result.stdout)
    assert [node["node"] for node in told["nodes"]] == ["inbox", "manuals", "notes"]
    table = tuned(topology, "-d", labels(tmp_path, prompts=19))
    assert "inbox, manuals" in table.stdout


def test_own_text_needs_no_prompts(topology: Path, tmp_path: Path) -> None:
    result = tuned(topology, "-d", labels(tmp_path), "-n", "notes", "--own-text", "--folds", 2, "--json")
    assert result.exit_code == 1  # the turns of the puzzle stand hours apart: none has a neighbour
    assert "no prompt" in json.loads(result.stdout)["error"]["detail"]
    turns = tmp_path / "turns.jsonl"
    turns.write_text("".join(json.dumps({"text": f"turn {n} says some more words"}) + "\n" for n in range(10)))
    [node] = json.loads(tuned(topology, "-d", turns, "-n", "notes", "--json").stdout)["nodes"]
    assert (node["labelled"], node["better"], node["prompts"]) == (False, False, 10)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--node", "inbocks"), "no memory node 'inbocks'; did you mean 'inbox'?"),
        (("--node", "writer"), "no memory node 'writer'"),
        (("--node", "notes"), "no memory that one of the nodes would hold"),
    ],
)
def test_what_does_not_fit_is_exit_code_1(topology: Path, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    result = tuned(topology, "-d", labels(tmp_path, session="kitchen"), *args)
    assert result.exit_code == 1
    assert said in result.stderr.replace("\n", " ")
    assert (
        said
        in json.loads(tuned(topology, "-d", labels(tmp_path, session="s"), *args, "--json").stdout)["error"]["detail"]
    )


def test_faults_of_the_files_are_named(topology: Path, tmp_path: Path) -> None:
    data = labels(tmp_path)
    topology.write_text(TOPOLOGY.replace("role: memory", "role: memori", 1))
    result = tuned(topology, "-d", data)
    assert result.exit_code == 1
    assert "desk.yaml:5" in "".join(result.stderr.split())  # lines break at the terminal's width
    assert tuned(tmp_path / "none.yaml", "-d", data).exit_code == 1
    topology.write_text(TOPOLOGY)
    data.write_text("{\n")
    assert "labels.jsonl:1" in tuned(topology, "-d", data).stderr.replace("\n", "")
    assert tuned(topology).exit_code == 2
    assert tuned(topology, "-d", data, "--folds", 1).exit_code == 2
