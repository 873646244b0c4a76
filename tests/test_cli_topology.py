"""`qraf topology test`: the tests of a file in a network of its own, and on a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import qraf
from qraf.cli.serve import find_topology
from qraf.client.sync import connect_sync
from tests.client.served import LAB, served
from tests.openai_server import OpenAIServer, Script
from tests.test_cli import call

pytestmark = [pytest.mark.slow, pytest.mark.model]  # a whole service with its encoder

FILE = """
version: 1
name: tested
nodes:
  desk: {role: memory, holds: {sessions: true, collections: [manuals]}, encoder: wordllama}
ingress: desk
"""
NUTS = """  - write: [I am allergic to nuts.]
    prompt: What can I not eat?
    expect: {evidence_contains: NUTS, visits: [desk]}
"""
TEA = "  - {write: [Tea is hot.], prompt: What is hot?, expect: {evidence_contains: [tea, coffee]}}\n"
MANUAL = "  - {prompt: How is the pump opened?, collections: [manuals], expect: {evidence_contains: valve}}\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OpenAIServer(Script()) as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


def saved(folder: Path, *tests: str) -> str:
    file = folder / "net.yaml"
    file.write_text(FILE + ("tests:\n" + "".join(tests) if tests else ""))
    return str(file)


def test_tests_that_pass_and_fail_are_told_and_decide_the_exit_code(tmp_path: Path) -> None:
    passed = call("topology", "test", saved(tmp_path, NUTS))
    assert ("1 of 1 passed" in passed.output, passed.exit_code) == (True, 0)
    failed = call("topology", "test", saved(tmp_path, NUTS, TEA, MANUAL))
    assert ("1 of 3 passed" in failed.output, failed.exit_code) == (True, 1)
    assert "coffee" in failed.output
    assert "collections are empty here" in failed.output
    told = call("topology", "test", saved(tmp_path, NUTS, TEA), "--json")
    results = json.loads(told.output)["results"]
    assert (told.exit_code, [one["faults"] for one in results]) == (1, [[], ["no evidence has 'coffee'"]])
    assert results[0]["evidence"] == ["I am allergic to nuts."]


def test_the_package_has_the_topologies_for_where_there_is_no_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_topology(Path("topologies/library.yaml"))
    assert found.parent == Path(qraf.__file__).parent / "topologies"
    assert found.read_text() == (LAB.parent / "library.yaml").read_text()


def test_a_file_without_tests_passes_and_one_with_faults_does_not(tmp_path: Path) -> None:
    none = call("topology", "test", saved(tmp_path))
    assert ("no tests" in none.output, none.exit_code) == (True, 0)
    assert call("topology", "test", saved(tmp_path, TEA.replace("prompt", "promt"))).exit_code == 1


def test_on_a_server_its_own_network_is_asked_and_no_session_stays(url: str, tmp_path: Path) -> None:
    file = saved(tmp_path, TEA.replace(", coffee", ""), NUTS)
    told = json.loads(call("topology", "test", file, "--json", url=url).output)
    assert [one["faults"] for one in told["results"]] == [[], ["'desk' was not measured"]]  # that server has no desk
    with connect_sync(url) as q:
        assert q.sessions.list()["data"] == []
