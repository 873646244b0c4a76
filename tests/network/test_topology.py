from __future__ import annotations

import pickle
from collections import Counter

import networkx as nx
import pytest

from qraf.errors import NoRoute, NotFound
from qraf.network.loader import loads
from qraf.network.placement import item_node, session_node
from tests.network.yaml_files import GOOD, replaced


def test_networkx_holds_the_graph():
    graph = loads(GOOD, env={}).graph()
    assert isinstance(graph, nx.DiGraph)
    assert set(graph.edges) == {
        ("inbox", "manuals"),
        ("inbox", "tickets"),
        ("manuals", "writer"),
        ("tickets", "writer"),
    }
    assert graph.edges["inbox", "manuals"]["latency_ms"] == 2
    assert graph.nodes["manuals"]["host"] == "vault"
    assert nx.shortest_path(graph, "inbox", "writer") == ["inbox", "manuals", "writer"]


def test_what_a_topology_answers():
    desk = loads(GOOD, env={})
    assert [node.name for node in desk.memory_nodes()] == ["inbox", "manuals", "tickets"]
    assert [node.name for node in desk.generators()] == ["writer"]
    assert desk.session_nodes() == ("inbox",)
    assert desk.collections() == ("manuals", "tickets")
    assert desk.holders("manuals") == ("manuals",)
    assert desk.holders("nothing") == ()
    assert [node.name for node in desk.nodes_on("vault")] == ["manuals", "tickets"]
    with pytest.raises(NotFound, match="no node 'x'"):
        desk.node("x")


def test_a_topology_crosses_a_process_boundary():
    desk = loads(GOOD, env={})
    assert pickle.loads(pickle.dumps(desk)) == desk


def wide(num_nodes: int) -> str:
    nodes = "".join(
        f"  n{at}: {{role: memory, holds: {{sessions: true, collections: [c]}}}}\n" for at in range(num_nodes)
    )
    targets = ", ".join(f"n{at}" for at in range(1, num_nodes))
    links = f"links: [{{source: n0, target: [{targets}]}}]\n" if targets else ""
    return f"version: 1\nname: wide\nnodes:\n{nodes}{links}ingress: n0\n"


def test_sessions_are_spread_evenly_and_stay_where_they_are():
    five = loads(wide(5), env={})
    homes = {f"s{at}": session_node(five, f"s{at}") for at in range(2000)}
    assert all(320 < count < 480 for count in Counter(homes.values()).values())
    assert homes == {session: session_node(five, session) for session in homes}


def test_a_node_that_goes_moves_only_its_own_sessions():
    five = loads(wide(5), env={})
    up = {"n0", "n1", "n2", "n4"}
    for at in range(500):
        before, after = session_node(five, f"s{at}"), session_node(five, f"s{at}", up)
        assert after in up
        assert before == after or before == "n3"


def test_a_node_that_comes_takes_only_what_is_its_own():
    four, five = loads(wide(4), env={}), loads(wide(5), env={})
    moved = [
        item_node(five, "c", f"i{at}")
        for at in range(500)
        if item_node(four, "c", f"i{at}") != item_node(five, "c", f"i{at}")
    ]
    assert set(moved) == {"n4"}


def test_where_nothing_is_held_placement_says_so():
    desk = loads(GOOD, env={})
    with pytest.raises(NotFound, match="no collection 'x'"):
        item_node(desk, "x", "1")
    with pytest.raises(NoRoute, match="nodes down: inbox"):
        session_node(desk, "s", ())
    assert item_node(desk, "manuals", "1") == "manuals"


def test_session_names_of_any_script_are_placed():
    five = loads(wide(5), env={})
    assert session_node(five, "сессия \ud800 \0") in five.session_nodes()


def test_an_encoder_named_for_all_sets_the_dimension():
    small = loads(replaced(("encoder: minilm", "encoder: wordllama")), env={})
    assert (small.encoder, small.dim, small.nodes["inbox"].dim) == ("wordllama", 256, 256)
