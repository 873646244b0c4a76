from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pytest

from qraf.network.graph import dot, mermaid, svg
from qraf.network.layout import Layout, layered
from qraf.network.loader import load, loads
from tests.network.yaml_files import GOOD, replaced

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
BOX = (100.0, 40.0)
SVG = "{http://www.w3.org/2000/svg}"


def laid(edges: list[tuple[str, str]]) -> Layout:
    return layered(nx.DiGraph(edges), column=200, row=60, box=BOX, margin=20)


def test_layers_follow_the_links_and_boxes_do_not_overlap():
    for seed in range(20):
        graph = nx.gn_graph(14, seed=seed).reverse()
        names = {node: f"n{node}" for node in graph}
        graph = nx.relabel_nodes(nx.DiGraph(graph.edges), names)
        layout = layered(graph, column=200, row=60, box=BOX, margin=20)
        assert all(layout.layer[source] < layout.layer[target] for source, target in graph.edges)
        for (ax, ay), (bx, by) in itertools.combinations(layout.place.values(), 2):
            assert abs(ax - bx) >= BOX[0] or abs(ay - by) >= BOX[1]
        for x, y in layout.place.values():
            assert BOX[0] / 2 <= x <= layout.width - BOX[0] / 2
            assert BOX[1] / 2 <= y <= layout.height - BOX[1] / 2


def test_a_long_link_bends_beside_the_boxes_between():
    layout = laid([("a", "b"), ("b", "c"), ("a", "c")])
    assert layout.bends["a", "b"] == ()
    ((x, y),) = layout.bends["a", "c"]
    assert x == layout.place["b"][0]
    assert abs(y - layout.place["b"][1]) > BOX[1] / 2


def test_layers_are_ordered_so_that_links_cross_less():
    # given in the order that crosses most: a feeds z, b feeds y, c feeds x
    layout = laid([("r", "a"), ("r", "b"), ("r", "c"), ("c", "x"), ("b", "y"), ("a", "z")])
    place = layout.place
    ends = [(place[source][1], place[target][1]) for source, target in [("a", "z"), ("b", "y"), ("c", "x")]]
    assert all((a - c) * (b - d) > 0 for (a, b), (c, d) in itertools.combinations(ends, 2))


def test_cycles_are_drawn_too():
    text = replaced(("  - {source: manuals, target: writer}", "  - {source: manuals, target: [tickets, writer]}"))
    looped = loads(text + "tests: []\n", env={})
    again = replaced(("  - {source: manuals, target: writer}", "  - {source: manuals, target: [inbox, writer]}"))
    for topology in (looped, loads(again, env={})):
        drawn = ET.fromstring(svg(topology))
        lines = [path for path in drawn.iter(f"{SVG}path") if path.get("marker-end")]
        assert len(lines) == len(topology.links) + 1


@pytest.mark.parametrize("file", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_picture_shows_every_node_host_and_link(file: Path):
    topology = load(file, env={})
    drawn = ET.fromstring(svg(topology))
    words = [text.text or "" for text in drawn.iter(f"{SVG}text")]
    for name, node in topology.nodes.items():
        assert name in words
        for collection in node.collections:
            assert any(collection in word for word in words)
    for host in topology.hosts:
        assert any(word.startswith(f"{host}: ") for word in words)
    assert sum("bit" in word for word in words) == len(topology.links)
    fills = {rect.get("fill") for rect in drawn.iter(f"{SVG}rect")} - {"#FFFFFF"}
    assert len(fills) == len(topology.hosts)


def test_names_cannot_break_the_pictures():
    odd = loads(replaced(("name: desk", 'name: desk\ndescription: "<b>&\\"]] -- |x|</b>"')), env={})
    assert "<b>&" in "".join(text.text or "" for text in ET.fromstring(svg(odd)).iter(f"{SVG}text"))
    model = loads(replaced(("model: smollm2-135m", "model: 'a\"|]<x>', url: http://h/v1")), env={})
    assert "a#34;#124;#93;#60;x#62; by URL" in mermaid(model)
    assert 'a\\"|]<x> by URL' in dot(model)


def test_dot_and_mermaid_hold_the_same_links():
    desk = loads(GOOD, env={})
    assert '"inbox" -> "manuals" [label="2 ms, 8 bit"];' in dot(desk)
    assert 'subgraph cluster_1 { label="vault"' in dot(desk)
    assert dot(desk).count("->") == mermaid(desk).count("-->|") == len(desk.links)
    assert mermaid(desk).startswith("flowchart LR\n")
    assert 'n0 -->|"2 ms, 8 bit"| n1' in mermaid(desk)


def test_every_picture_tells_the_replicas_of_the_services():
    services = "services: {optimization: {scaling: {min: 1, max: 5}}}\ningress: inbox"
    topology = loads(replaced(("ingress: inbox", services)), env={})
    for draw in (svg, dot, mermaid):
        assert "service optimization 1-5" in draw(topology)
        assert "service" not in draw(loads(GOOD, env={}))
