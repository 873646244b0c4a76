from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import networkx as nx
import pytest

from qraf.clock import FakeClock
from qraf.errors import NoRoute, NotFound
from qraf.frames import RouteOut
from qraf.network.paths import Network, link_ms
from qraf.network.router import Router
from qraf.network.topology import LinkSpec, RouteWeights, Topology
from tests.network.adverts import advertisement, memories, network, prompt

WORDS = [
    "finch owl parrot",
    "sloop ferry anchor",
    "rye dough oven",
    "chain wheel brake",
    "tulip rose fern",
    "quartz slate",
]
SHELVES = [f"n{at}" for at in range(6)]


def star(**options: object) -> Topology:
    links = [LinkSpec("hub", name) for name in SHELVES] + [LinkSpec(name, "writer") for name in [*SHELVES, "hub"]]
    return network(links, **options)  # type: ignore[arg-type]


def ready(topology: Topology) -> Router:
    router = Router(topology, FakeClock())
    router.advertise(advertisement(name, WORDS[at].split()) for at, name in enumerate(SHELVES))
    return router


def measured(route: RouteOut) -> list[str]:
    return [hop.node for hop in route.hops if hop.measured]


def test_a_prompt_goes_to_the_node_that_responds():
    topology = star(max_visits=1)
    for at, words in enumerate(WORDS):
        route = ready(topology).route(prompt(words), memories(topology, but=["hub"]))
        assert measured(route) == [SHELVES[at]]
        assert route.generator == "writer"
        assert route.hops[0].path == ("hub", SHELVES[at])
        assert route.hops[0].host == "main"
        assert len(route.hops) == 6
        assert route.not_visited == {}


def test_max_visits_is_kept_and_the_best_come_first():
    topology = star(max_visits=3)
    router, held = ready(topology), memories(topology, but=["hub"])
    asked = prompt("finch owl sloop quartz")
    assert set(measured(router.route(asked, held))) == {"n0", "n1", "n5"}
    assert measured(router.route(asked, held, max_visits=1)) == ["n0"]
    hops = router.route(asked, held).hops
    assert [hop.relevance for hop in hops] == sorted((hop.relevance for hop in hops), reverse=True)


def test_required_nodes_are_always_visited():
    topology = star(max_visits=2)
    held = {**memories(topology), "hub": ("s/session",)}
    route = ready(topology).route(prompt("finch owl"), held, required=["hub", "n4"])
    assert set(measured(route)) == {"hub", "n4"}
    route = ready(topology).route(prompt("finch owl"), held, required=["hub"])
    assert set(measured(route)) == {"hub", "n0"}
    assert next(hop for hop in route.hops if hop.node == "hub").why.startswith("home of the session")


def test_only_what_is_addressed_is_considered():
    topology = star()
    route = ready(topology).route(prompt("finch"), {"n1": ("c/n1",), "n2": ("c/n2",)})
    assert {hop.node for hop in route.hops} == {"n1", "n2"}
    with pytest.raises(NotFound, match="no node 'elsewhere'"):
        ready(topology).route(prompt("finch"), {"elsewhere": ("c/x",)})
    with pytest.raises(NoRoute):
        ready(topology).route(prompt("finch"), {})


def test_a_node_counts_by_its_best_memory():
    topology = star(max_visits=1)
    router = ready(topology)
    router.advertise([advertisement("n5", ["finch owl parrot finches"], memory="c/second")])
    held = {**memories(topology, but=["hub", "n0"]), "n5": ("c/n5", "c/second")}
    assert measured(router.route(prompt("finch owl parrot"), held)) == ["n5"]


def test_fewer_than_three_nodes_are_all_visited():
    dear = star(weights=RouteWeights(latency=1e6))
    assert set(measured(ready(dear).route(prompt("finch"), {"n0": ("c/n0",), "n1": ("c/n1",)}))) == {"n0", "n1"}
    assert measured(ready(dear).route(prompt("sloop"), {"n0": ("c/n0",), "n1": ("c/n1",)}, max_visits=1)) == ["n1"]


def test_nodes_that_are_down_are_routed_around_and_named():
    topology = star(max_visits=2)
    router, held = ready(topology), memories(topology, but=["hub"])
    router.observe("n0", up=False)
    route = router.route(prompt("finch owl"), held)
    assert "n0" not in measured(route)
    assert route.not_visited == {"n0": "down"}
    assert next(hop for hop in route.hops if hop.node == "n0").why == "down"
    router.observe("n0", up=True)
    assert "n0" in measured(router.route(prompt("finch owl"), held))


def test_a_path_around_a_node_that_is_down_is_taken():
    links = [
        LinkSpec("hub", "near"),
        LinkSpec("near", "goal"),
        LinkSpec("hub", "far", latency_ms=9),
        LinkSpec("far", "goal"),
    ]
    topology = network([*links, LinkSpec("goal", "writer")])
    router, held = Router(topology, FakeClock()), memories(topology, but=["hub"])

    def path() -> tuple[str, ...]:
        return next(hop.path for hop in router.route(prompt("x"), held).hops if hop.node == "goal")

    assert path() == ("hub", "near", "goal")
    router.observe("near", up=False)
    assert path() == ("hub", "far", "goal")
    router.observe("far", up=False)
    route = router.route(prompt("x"), held | {"hub": ("c/hub",)})
    assert route.not_visited["goal"] == "no path from the ingress 'hub' around near, far"
    assert measured(route) == ["hub"]


def test_when_nothing_can_be_reached_there_is_no_route():
    topology = star()
    router = ready(topology)
    for name in SHELVES:
        router.observe(name, up=False)
    with pytest.raises(NoRoute, match="nodes down: n0, n1") as caught:
        router.route(prompt("x"), memories(topology, but=["hub"]))
    assert caught.value.down == tuple(SHELVES)


def test_prompts_enter_though_the_ingress_is_down():
    topology = star()
    router = ready(topology)
    router.observe("hub", up=False)
    route = router.route(prompt("finch"), memories(topology), required=["hub"])
    assert "n0" in measured(route)
    assert route.not_visited == {"hub": "down"}


def test_late_nodes_are_left_out_unless_required():
    topology = star(max_visits=2)
    router, held = ready(topology), memories(topology, but=["hub"])
    router.observe("n0", latency_ms=150)
    route = router.route(prompt("finch owl"), held)
    assert route.not_visited == {"n0": "late: its answer would take 152 ms of 100 ms"}
    assert route.predicted_ms < 100
    assert "n0" in measured(router.route(prompt("finch owl"), held, deadline_ms=200))
    assert "n0" in measured(router.route(prompt("finch owl"), held, required=["n0"]))


def test_load_and_latency_make_a_node_dear():
    topology = star(max_visits=1, weights=RouteWeights(latency=4, load=4))
    held = memories(topology, but=["hub"])
    for loaded in ({"load": 50.0}, {"latency_ms": 90.0}):
        router = ready(topology)
        router.advertise([advertisement("n1", ["finch", "sloop"])])
        router.observe("n0", **loaded)
        assert measured(router.route(prompt("finch"), held)) == ["n1"]


def test_a_node_that_holds_nothing_is_not_visited():
    topology = star()
    router = ready(topology)
    router.advertise([advertisement("n3", [])])
    route = router.route(prompt("chain"), memories(topology, but=["hub"]))
    assert "n3" not in measured(route)
    assert next(hop for hop in route.hops if hop.node == "n3").why == "holds nothing that was asked for"


def test_the_generator_wanted_or_the_cheapest():
    links = [LinkSpec("hub", "a"), LinkSpec("hub", "far", latency_ms=5), LinkSpec("a", "near")]
    topology = network(links, generators=["far", "near"])
    router, held = Router(topology, FakeClock()), memories(topology)
    assert router.route(prompt("x"), held).generator == "near"
    assert router.route(prompt("x"), held, model="far").generator == "far"
    assert router.route(prompt("x"), held, model="model-far").generator == "far"
    assert router.route(prompt("x"), held, model="other").generator == ""
    router.observe("near", up=False)
    assert router.route(prompt("x"), held).generator == "far"
    router.observe("far", up=False)
    assert router.route(prompt("x"), held).generator == ""


def test_predicted_time_is_that_of_the_slowest_answer():
    links = [
        LinkSpec("hub", "a", 3, 16),
        LinkSpec("hub", "b", 1, 1e9),
        LinkSpec("a", "writer", 2, 1e9),
        LinkSpec("b", "writer", 1, 1e9),
    ]
    topology = network(links)
    router = Router(topology, FakeClock())
    router.observe("a", latency_ms=10)
    route = router.route(prompt("x"), memories(topology, but=["hub"]))
    assert measured(route) == ["a", "b"]
    assert route.predicted_ms == pytest.approx(3 + 1 + 10 + 2)  # 16 kbit over 16 Mbit/s take 1 ms


def test_explain_gives_every_term_and_they_add_up():
    topology = network(
        [LinkSpec("hub", name, latency_ms=5, bits=8) for name in SHELVES]
        + [LinkSpec(name, "writer") for name in SHELVES],
        weights=RouteWeights(1.0, 2.0, 3.0, 4.0),
    )
    router, held = ready(topology), memories(topology, but=["hub"])
    router.observe("n0", latency_ms=7, load=1)
    for hop in router.route(prompt("finch"), held, explain=True).hops:
        terms = hop.terms
        assert hop.relevance == pytest.approx(math.log1p(math.exp(terms["relevance_z"])))
        parts = ("path_latency", "path_load", "path_infidelity", "node_latency", "to_generator")
        assert hop.price == pytest.approx(sum(terms[part] for part in parts))
        assert terms["path_infidelity"] == pytest.approx(-4 * math.log(0.999965))
        assert terms["path_load"] == pytest.approx(3 * math.log(2) if hop.node == "n0" else 0)
        assert terms["path_latency"] == pytest.approx(2 * 5.016 / 100)
    assert router.route(prompt("finch"), held).hops[0].terms == {}


def test_few_bits_make_a_path_dear():
    two_ways = [
        LinkSpec("hub", "coarse", bits=4),
        LinkSpec("coarse", "goal"),
        LinkSpec("hub", "fine", 2),
        LinkSpec("fine", "goal"),
    ]
    for weight, way in ((0.0, "coarse"), (10.0, "fine")):
        topology = network(two_ways, generators=[], weights=RouteWeights(infidelity=weight))
        route = Router(topology, FakeClock()).route(prompt("x"), memories(topology))
        assert next(hop.path for hop in route.hops if hop.node == "goal") == ("hub", way, "goal")


def test_routes_do_not_flap_on_small_moves():
    live = Network(star())
    live.observe("n0", load=10)
    first = live.snapshot()
    for load in (10.5, 9.6, 11.0, 9.0):
        live.observe("n0", load=load)
        assert live.snapshot() is first
    for _ in range(20):
        live.observe("n0", load=20)
    assert live.snapshot() is not first
    assert live.live["n0"].load == pytest.approx(20, rel=0.2)
    for _ in range(60):
        live.observe("n0", load=0)
    assert live.live["n0"].load == pytest.approx(0, abs=0.3)


def test_observations_that_make_no_sense_change_nothing():
    live = Network(star())
    for latency in (-1.0, math.nan, math.inf):
        live.observe("n0", latency_ms=latency, load=latency)
    live.observe("elsewhere", up=False)
    assert (live.live["n0"].latency_ms, live.live["n0"].load, live.down()) == (0, 0, ())


# ----------------------------------------------------------------------------------------------- brute force
def random_topology(rng: random.Random) -> Topology:
    names = ["hub", *(f"n{at}" for at in range(rng.randint(2, 6)))]
    pairs = [(rng.choice(names[:at]), name) for at, name in enumerate(names) if at]  # reachable
    pairs += [pair for pair in itertools.permutations(names, 2) if rng.random() < 0.3 and pair not in pairs]
    links = [LinkSpec(a, b, rng.uniform(0, 60), rng.uniform(10, 1000), rng.choice([4, 8, 32])) for a, b in pairs]
    links += [LinkSpec(name, "writer", rng.uniform(0, 60)) for name in names if rng.random() < 0.6 or name == "hub"]
    weights = RouteWeights(1.0, rng.uniform(0, 3), rng.uniform(0, 1), rng.uniform(0, 10))
    return network(links, max_visits=rng.randint(1, 5), weights=weights)


def link_price(topology: Topology, link: LinkSpec, load: float) -> float:
    weights, deadline = topology.routing.weights, topology.routing.deadline_ms
    price = weights.latency * (link.latency_ms + 16 / link.bandwidth_mbps) / deadline
    return price + weights.load * math.log(1 + load) - weights.infidelity * math.log(link.fidelity)


@pytest.mark.parametrize("seed", range(60))
def test_a_route_is_as_good_as_brute_force_over_all_simple_paths_and_subsets(seed: int):
    rng = random.Random(seed)
    topology = random_topology(rng)
    router = Router(topology, FakeClock())
    load = dict.fromkeys(topology.nodes, 0.0)
    latency = dict.fromkeys(topology.nodes, 0.0)
    for node in topology.memory_nodes():
        router.advertise([advertisement(node.name, rng.sample(" ".join(WORDS).split(), 4))])
        load[node.name], latency[node.name] = rng.choice([0.0, 2.0, 8.0]), rng.choice([0.0, 5.0, 30.0])
        router.observe(node.name, latency_ms=latency[node.name], load=load[node.name])
    held = memories(topology)
    route = router.route(prompt("finch sloop rye quartz"), held, deadline_ms=1e6)

    graph = topology.graph()
    price = {(link.source, link.target): link_price(topology, link, load[link.target]) for link in topology.links}

    def cheapest(source: str, target: str) -> tuple[float, tuple[tuple[str, str], ...]]:
        paths = [tuple(itertools.pairwise(path)) for path in nx.all_simple_paths(graph, source, target)]
        if source == target:
            paths.append(())
        return min(((sum(price[edge] for edge in path), path) for path in paths), default=(math.inf, ()))

    gain, ways = {}, {}
    for name in held:
        cost, ways[name] = cheapest("hub", name)
        onward = min(cheapest(name, "writer")[0], cost + cheapest("hub", "writer")[0])
        own = topology.routing.weights.latency * latency[name] / topology.routing.deadline_ms + onward
        gain[name] = next(hop.relevance for hop in route.hops if hop.node == name) - own
        hop = next(hop for hop in route.hops if hop.node == name)
        assert tuple(itertools.pairwise(hop.path)) == ways[name]
    best = max(
        sum(gain[name] for name in chosen)
        - sum(price[edge] for edge in {edge for name in chosen for edge in ways[name]})
        for size in range(topology.routing.max_visits + 1)
        for chosen in itertools.combinations(held, min(size, len(held)))
    )
    reached = sum(hop.relevance - hop.price for hop in route.hops if hop.measured)
    assert len(measured(route)) <= topology.routing.max_visits
    if len(held) >= 3:
        assert reached == pytest.approx(best, abs=1e-9)


def test_link_time_counts_bandwidth():
    assert link_ms(LinkSpec("a", "b", latency_ms=2, bandwidth_mbps=8)) == pytest.approx(4)


@pytest.mark.slow
def test_the_router_needs_no_torch():
    code = "import sys, qraf.network.router, qraf.network.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_when_all_are_late_the_late_are_asked():
    topology = star(max_visits=2)
    router, held = ready(topology), memories(topology, but=["hub"])
    for node in held:
        router.observe(node, latency_ms=150)
    route = router.route(prompt("finch owl"), held)
    assert "n0" in measured(route)
    assert route.not_visited == {}
