from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidTopology
from qraf.network.edit import ANY_GPUS, with_recall
from qraf.network.loader import loads
from qraf.records import RecallSettings
from tests.examples import examples
from tests.network.yaml_files import GOOD, replaced

BLOCK = """\
# what this is
version: 1
name: desk   # a name
nodes:
  # the first
  inbox:
    role: memory  # holds
    holds: sessions
    recall:
      # why
      k1: 1.2  # measured in May
      previous:
        - 0.5
        - 0.25

      b: "0.75"
  notes:
    description: >-
      several
      lines
    role: memory
    holds: [notes]

  last: {"role": 'memory', holds: [papers], recall: {}}
  writer: {role: generator}
links: [{source: inbox, target: [notes, last, writer]}, {source: [notes, last], target: writer}]
ingress: inbox
""".replace('"0.75"', "0.75")


def lines_that_differ(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def test_a_value_is_replaced_where_it_stands() -> None:
    after = with_recall(BLOCK, {"inbox": {"k1": 0.4}})
    assert lines_that_differ(BLOCK, after) == [
        "-       k1: 1.2  # measured in May",
        "+       k1: 0.4  # measured in May",
    ]
    after = with_recall(BLOCK, {"inbox": {"previous": (0.1, 0.0)}})
    assert loads(after).nodes["inbox"].recall.previous == (0.1, 0.0)
    assert "      b: 0.75" in after.splitlines()
    after = with_recall(GOOD, {"manuals": {"b": 0.5, "previous": (0.4, 0.2)}})
    assert "recall: {k1: 1.2, b: 0.5, previous: [0.4, 0.2]}}" in after


def test_what_is_not_there_is_added() -> None:
    after = with_recall(BLOCK, {"inbox": {"alpha": 0.25}, "notes": {"alpha": 0.3, "k1": 2.0}, "last": {"b": 1.0}})
    assert lines_that_differ(BLOCK, after) == [
        "+       alpha: 0.25",
        "+     recall: {alpha: 0.3, k1: 2}",
        "-   last: {\"role\": 'memory', holds: [papers], recall: {}}",
        "+   last: {\"role\": 'memory', holds: [papers], recall: {b: 1}}",
    ]
    after = with_recall(GOOD, {"inbox": {"alpha": 0.25}})
    assert "  inbox: {role: memory, host: front, holds: sessions, capacity: 512MiB, recall: {alpha: 0.25}}" in after


@pytest.mark.parametrize("text", [GOOD, BLOCK, BLOCK.replace("\n", "\r\n"), BLOCK.replace("a name", "名前 🦜")])
def test_nothing_else_changes(text: str) -> None:
    assert with_recall(text, {"inbox": {}}) == text
    after = with_recall(text, {"inbox": {"date_gain": 7.5}})
    before = loads(text)
    node = before.nodes["inbox"]
    wanted = {**before.nodes, "inbox": replace(node, recall=replace(node.recall, date_gain=7.5))}
    assert loads(after) == replace(before, nodes=wanted)
    kept = [line for line in text.splitlines() if "inbox: {" not in line]
    assert [line for line in after.splitlines() if line in kept] == kept


CONSTANT = st.one_of(
    st.tuples(st.sampled_from(["alpha", "b", "question_loss"]), st.floats(0, 1)),
    st.tuples(st.sampled_from(["k1", "speaker_gain", "date_gain"]), st.floats(0, 1e4)),
    st.tuples(st.sampled_from(["previous", "following"]), st.lists(st.floats(0, 1), max_size=4).map(tuple)),
)


@settings(max_examples=examples(50), deadline=None)
@given(
    text=st.sampled_from([GOOD, BLOCK]),
    chosen=st.dictionaries(st.integers(0, 2), st.lists(CONSTANT, max_size=4).map(dict)),
)
def test_any_constants_of_any_nodes(text: str, chosen: dict[int, dict[str, Any]]) -> None:
    before = loads(text)
    names = [name for name, node in before.nodes.items() if node.role == "memory"]
    changes = {names[index]: constants for index, constants in chosen.items()}
    after = loads(with_recall(text, changes))
    for name in names:
        assert after.nodes[name].recall == replace(before.nodes[name].recall, **changes.get(name, {}))


def test_interpolated_values_stay_where_they_are_not_changed() -> None:
    text = replaced(("k1: 1.2", 'k1: "${NO_SUCH_K1:-1.5}"'))
    after = with_recall(text, {"manuals": {"b": 0.5}})
    assert 'k1: "${NO_SUCH_K1:-1.5}", b: 0.5' in after
    assert loads(after).nodes["manuals"].recall == RecallSettings(k1=1.5, b=0.5, previous=(0.5,))


def test_shared_anchors_are_refused() -> None:
    shared = BLOCK.replace("recall: {}", "recall: &r {k1: 1}").replace(
        "holds: [notes]", "holds: [notes]\n    recall: *r"
    )
    with pytest.raises(InvalidTopology):  # an alias before its anchor
        with_recall(shared, {"notes": {"k1": 2.0}})
    anchored = BLOCK.replace("recall:\n", "recall: &r\n", 1).replace("recall: {}", "recall: *r")
    with pytest.raises(InvalidTopology, match="`recall` of node 'last' is an alias"):
        with_recall(anchored, {"last": {"k1": 2.0}})
    with pytest.raises(InvalidTopology, match="cannot be changed by themselves"):
        with_recall(anchored, {"inbox": {"k1": 2.0}})


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(InvalidTopology, match="unknown node 'attic'"):
        with_recall(GOOD, {"attic": {"k1": 1.0}})
    with pytest.raises(InvalidTopology, match="alpha"):
        with_recall(GOOD, {"inbox": {"alpha": 3.0}})


@pytest.mark.parametrize("path", sorted(Path("topologies").glob("*.yaml")), ids=lambda path: path.name)
def test_the_topologies_that_come_along(path: Path) -> None:
    text = path.read_text()
    names = [name for name, node in loads(text, gpus=ANY_GPUS).nodes.items() if node.role == "memory"]
    after = with_recall(text, {name: {"alpha": 0.375} for name in names})
    assert {loads(after, gpus=ANY_GPUS).nodes[name].recall.alpha for name in names} == {0.375}
