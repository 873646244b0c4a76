from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qraf.demo.corpus import SHELVES, Passage, Shelf, collect
from qraf.demo.story import QUESTIONS, TOPOLOGY
from qraf.network.loader import load

pytestmark = pytest.mark.slow  # a whole service, or processes

# the passage that answers each question of the demonstration
ANSWERS = {"networkx": "networkx.dijkstra_path", "ray": "max_restarts", "numpy": "numpy.linalg.svd"}


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.name)
def test_shelf_is_full_and_the_same_every_time(shelf: Shelf) -> None:
    passages = collect(shelf)
    assert 100 <= len(passages) <= 140
    assert passages == collect(shelf)
    sources = [passage.source for passage in passages]
    assert len(set(sources)) == len(sources)
    assert all(5 < len(passage.text.split()) < 90 for passage in passages)
    if shelf.name in ANSWERS:
        assert any(ANSWERS[shelf.name] in source for source in sources)


def test_questions_and_shelves_fit_the_topology() -> None:
    topology = load(Path(__file__).parent.parent / TOPOLOGY)
    assert {shelf.name for shelf in SHELVES} == {name for node in topology.nodes.values() for name in node.collections}
    assert {question.node for question in QUESTIONS} == set(ANSWERS)


def test_collecting_imports_no_package() -> None:
    code = (
        "import sys; from qraf.demo.corpus import SHELVES, collect; [collect(s) for s in SHELVES];"
        "print([m for m in ('torch', 'ray', 'numpy.fft', 'networkx', 'fastapi') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_parameters_sections_and_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code.py").write_text(
        '''
__all__ = ["shout"]

def shout(text, *, times=1):
    """shout(text) -> str

    Return the :class:`text <str>` in **capital** letters, see [the docs](https://x.y).

    Args:
        text: What is to be said, any ``str`` that is not empty at all.
        times: How often
            it is said, one after the other, at least once.

    Raises:
        ValueError: nothing about this belongs to the parameters, so it is left out.
    """

def hidden():
    """This function is not in the list of public names."""
'''
    )
    monkeypatch.setattr("qraf.demo.corpus._root", lambda shelf: tmp_path)
    assert collect(Shelf("x", "x", (("code.py", "loud", 9),), parameters=True)) == [
        Passage("loud.shout", "loud.shout: Return the text in capital letters, see the docs."),
        Passage(
            "loud.shout(text)",
            "loud.shout, parameter text: What is to be said, any str that is not empty at all.",
        ),
        Passage(
            "loud.shout(times)",
            "loud.shout, parameter times: How often it is said, one after the other, at least once.",
        ),
    ]


@pytest.mark.ray
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(300)  # Ray, two hosts and a language model on a machine that does other things too
def test_demo_tells_the_whole_story() -> None:
    command = [sys.executable, "-m", "qraf.cli", "demo", "--json", "--max-tokens", "12"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=290)
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["network"] == "library"
    assert told["written"]["items"] > 600
    assert [asked["is_right"] for asked in told["questions"]] == [True, True, True]
    for asked in told["questions"]:
        assert asked["answer"]
        assert asked["usage"]["completion_tokens"] > 0
        assert asked["status"] in ("completed", "incomplete")
        measured = {hop["node"] for hop in asked["route"] if hop["measured"]}
        assert asked["expected"] in measured
        assert measured == {state["node"] for state in asked["states"]}
        assert all(hop["why"] for hop in asked["route"])
        probabilities = [item["probability"] for item in asked["evidence"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(item["source"] for item in asked["evidence"])
    moved = {sample["node"] for sample in told["moving"]}
    assert moved
    assert len({sample["coherence_bits"] for sample in told["moving"]}) > 1
    assert {"ready", "written", "first_token", "total"} <= set(told["seconds"])
