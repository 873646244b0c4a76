from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qraf.clock import FakeClock
from qraf.codes.channel import logical_channel
from qraf.network import graph, links, werner
from qraf.network.links import LinkChannel, cross, link_channel, link_channels
from qraf.network.router import Router
from qraf.network.topology import (
    HostSpec,
    LinkSpec,
    NodeSpec,
    NoiseSpec,
    ProtectSpec,
    RouteWeights,
    RoutingSpec,
    Topology,
)
from qraf.records import Prompt
from qraf.states.measures import partial_trace
from tests import closed_forms as exact

PROTECTED = LinkSpec("a", "b", noise=NoiseSpec(0.004), protect=ProtectSpec("rotated_surface", 3, 3))
FIDELITIES = st.floats(0.3, 1)


def bare(fidelity: float, source: str = "a", target: str = "b") -> LinkSpec:
    """A link with that entanglement fidelity: F = 1 - 3p/4."""
    return LinkSpec(source, target, latency_ms=0.0, noise=NoiseSpec(depolarizing=4 * (1 - fidelity) / 3))


def line(*chain: LinkSpec) -> Topology:
    names = [chain[0].source, *(link.target for link in chain)]
    nodes = {name: NodeSpec(name, "memory", "main", sessions=name == names[0], collections=(name,)) for name in names}
    weights = RouteWeights(latency=0.0, load=0.0, infidelity=1.0)
    return Topology("line", {"main": HostSpec("main")}, nodes, chain, names[0], routing=RoutingSpec(8, 200, weights))


def unit(d: int, seed: int = 0) -> np.ndarray:
    row = np.random.default_rng(seed).standard_normal(d).astype(np.float32)
    return row / np.linalg.norm(row)


# ------------------------------------------------------------------------------------------------------ the algebra
@pytest.mark.parametrize(
    ("fidelities", "want"),
    [((0.9, 0.9), 0.813333), ((0.95, 0.8), 0.763333), ((0.95,) * 2, 0.903333), ((0.95,) * 4, 0.819126)],
)
def test_path_fidelities(fidelities: tuple[float, ...], want: float) -> None:
    assert werner.path_fidelity(fidelities) == pytest.approx(want, abs=5e-7)
    price = sum(werner.price(werner.parameter(each)) for each in fidelities)
    assert werner.fidelity(math.exp(-price)) == pytest.approx(want, abs=5e-7)


@given(FIDELITIES, FIDELITIES)
def test_swaps_multiply_and_teleportation_keeps_the_average_fidelity(first: float, second: float) -> None:
    assert werner.swapped(first, second) == pytest.approx(werner.path_fidelity((first, second)), abs=1e-12)
    assert werner.average_fidelity(werner.parameter(first)) == pytest.approx((2 * first + 1) / 3, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.9), (0.95, 0.8), (0.4, 1.0)])
def test_a_swap_is_what_four_qubits_do(first: float, second: float) -> None:
    pairs = torch.kron(exact.werner(werner.parameter(first)), exact.werner(werner.parameter(second)))
    bell = exact.bell()
    middle = torch.kron(torch.kron(torch.eye(2), torch.outer(bell, bell.conj())), torch.eye(2)).to(pairs.dtype)
    after = middle @ pairs @ middle  # a Bell measurement of the inner two finds the first outcome
    chance = float(after.diagonal().sum().real)
    outer = partial_trace(after / chance, (2, 2, 2, 2), (0, 3))
    assert chance == pytest.approx(0.25)
    assert float((bell.conj() @ outer @ bell).real) == pytest.approx(werner.swapped(first, second), abs=1e-12)


def test_a_long_chain() -> None:
    assert werner.path_fidelity([0.95] * 8) == pytest.approx(0.681872, abs=5e-7)
    assert werner.path_fidelity([]) == 1
    assert math.isfinite(werner.price(-0.3))


# ------------------------------------------------------------------------------------------------------- the router
def priced(topology: Topology, to: str, **channels: LinkChannel) -> float:
    router = Router(topology, FakeClock())
    prompt = Prompt(np.zeros(384, np.float32), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    route = router.route(prompt, {to: (f"c/{to}",)}, explain=True)
    return route.hops[0].terms["path_infidelity"]


@pytest.mark.parametrize(("first", "second", "want"), [(0.9, 0.9, 0.813333), (0.95, 0.8, 0.763333)])
def test_the_price_of_a_path_is_that_of_the_swapped_fidelity(first: float, second: float, want: float) -> None:
    price = priced(line(bare(first), bare(second, "b", "c")), "c")
    assert werner.fidelity(math.exp(-price)) == pytest.approx(want, abs=5e-7)


def test_the_router_goes_around_a_noisy_link() -> None:
    ways = (bare(0.9, "a", "c"), bare(0.99, "a", "b"), bare(0.99, "b", "c"))
    topology = line(*ways[1:])
    topology = Topology("two ways", topology.hosts, topology.nodes, ways, "a", routing=topology.routing)
    router = Router(topology, FakeClock())
    prompt = Prompt(np.zeros(384, np.float32), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    assert router.route(prompt, {"c": ("c/c",)}).hops[0].path == ("a", "b", "c")
    router.channels = {("a", "c"): LinkChannel((1.0, 0.0, 0.0, 0.0)), ("a", "b"): LinkChannel((0.9, 0.1, 0.0, 0.0))}
    assert router.route(prompt, {"c": ("c/c",)}).hops[0].path == ("a", "c")


# ------------------------------------------------------------------------------------------------------- the channel
def test_a_bare_link_is_exact_and_an_exact_link_has_no_channel() -> None:
    channel = link_channel(bare(0.9))
    assert channel is not None
    assert channel.fidelity == pytest.approx(0.9)
    assert (channel.se_w, channel.shots, channel.corrections) == (0.0, 0, 0.0)
    assert link_channel(LinkSpec("a", "b", bits=4)) is None


def test_a_protected_link_has_the_codes_logical_channel() -> None:
    channel = link_channel(PROTECTED)
    assert channel is not None
    # depolarizing 0.004 is a Pauli error with probability 0.003
    want = logical_channel("rotated_surface", 3, 3, 0.003, links.SHOTS, 0, sampled_rounds=9)
    assert channel.probabilities == want.probabilities
    assert (channel.w, channel.se_w, channel.shots) == (want.w, want.se_w, links.SHOTS)
    assert 0.2 < channel.corrections < 1.5


def test_a_channel_is_sampled_once_and_read_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = link_channel(PROTECTED, tmp_path / "links")
    [kept] = (tmp_path / "links").iterdir()

    def no_sampling(facts: dict[str, object]) -> LinkChannel:
        raise AssertionError(f"sampled again: {facts}")

    with monkeypatch.context() as patch:
        patch.setattr(links, "_sampled", no_sampling)
        assert link_channel(PROTECTED, tmp_path / "links") == first
        other = LinkSpec("c", "d", noise=PROTECTED.noise, protect=PROTECTED.protect)
        assert link_channel(other, tmp_path / "links") == first  # of the parameters, not of the ends
        with pytest.raises(AssertionError, match="sampled again"):
            link_channel(LinkSpec("a", "b", noise=NoiseSpec(0.005), protect=PROTECTED.protect), tmp_path / "links")
    for damage in ("", "{}", kept.read_text().replace('"shots": 20000', '"shots": 1'), "[1]"):
        kept.write_text(damage)
        assert link_channel(PROTECTED, tmp_path / "links") == first
        assert json.loads(kept.read_text())["facts"]["shots"] == links.SHOTS


def test_a_kept_channel_that_is_none_is_sampled_again(tmp_path: Path) -> None:
    first = link_channel(PROTECTED, tmp_path)
    [kept] = tmp_path.iterdir()
    for values in ([0.5, 0.5, 0.5, 0.5], [1.5, -0.5, 0.0, 0.0], [1.0], [math.nan, 1.0, 0.0, 0.0]):
        told = json.loads(kept.read_text())
        told["channel"]["probabilities"] = values
        kept.write_text(json.dumps(told))
        assert link_channel(PROTECTED, tmp_path) == first


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert link_channel(PROTECTED, tmp_path / "file") == link_channel(PROTECTED)


# -------------------------------------------------------------------------------------------------- what it does
def test_the_same_key_prompt_and_link_meet_the_same_errors() -> None:
    channels = link_channels(line(bare(0.6), bare(0.6, "b", "c")))
    psi, path = unit(384), (("a", "b"), ("b", "c"))
    arrived, crossings = cross(psi, path, channels, "response 1")
    again, same = cross(psi.copy(), path, channels, "response 1")
    assert np.array_equal(arrived, again)
    assert crossings == same
    assert [(one.source, one.target) for one in crossings] == list(path)
    half, [first] = cross(psi, path[:1], channels, "response 1")  # a shared way is the same way
    assert first == crossings[0]
    assert crossings[0].errors != crossings[1].errors
    others = {cross(psi, path, channels, f"response {n}")[1][0].errors for n in range(20)}
    assert len(others) > 10
    assert cross(unit(384, 1), path, channels, "response 1")[1][0].errors != crossings[0].errors
    assert half.dtype == np.float32


def test_nothing_happens_on_exact_links() -> None:
    psi = unit(384)
    arrived, crossings = cross(psi, (("a", "b"),), {}, "x")
    assert arrived is psi
    assert crossings == ()
    arrived, [one] = cross(psi, (("a", "b"),), {("a", "b"): LinkChannel((1.0, 0.0, 0.0, 0.0))}, "x")
    assert np.array_equal(arrived, psi)
    assert (one.errors, one.fidelity, one.lost) == ("IIIIIIIII", pytest.approx(1.0), 0.0)


@pytest.mark.parametrize(("channel", "letter"), [((0, 1, 0, 0), "X"), ((0, 0, 1, 0), "Y"), ((0, 0, 0, 1), "Z")])
def test_certain_errors_are_the_paulis(channel: tuple[float, ...], letter: str) -> None:
    psi = unit(4)
    arrived, [one] = cross(psi, (("a", "b"),), {("a", "b"): LinkChannel(channel)}, "x")  # type: ignore[arg-type]
    sign = np.array([1, -1, -1, 1], np.float32)
    want = {"X": psi[::-1], "Z": sign * psi, "Y": sign * psi[::-1]}[letter]
    assert np.array_equal(arrived, want)
    assert one.errors == letter * 2
    assert one.fidelity == pytest.approx(float(psi @ want) ** 2, abs=1e-6)


def test_what_leaks_out_is_lost_and_told() -> None:
    psi = np.zeros(384, np.float32)
    psi[128:256] = math.sqrt(0.25 / 128)  # X on the first of nine qubits sends these behind the 384th
    psi[:128] = math.sqrt(0.75 / 128)
    seen = {}
    for n in range(300):
        arrived, [one] = cross(psi, (("a", "b"),), {("a", "b"): LinkChannel((0.8, 0.2, 0.0, 0.0))}, str(n))
        assert one.lost == pytest.approx(1 - float(arrived @ arrived), abs=1e-6)
        seen[one.errors] = one.lost
    assert seen["IIIIIIIII"] == 0
    assert seen["XIIIIIIII"] == pytest.approx(0.25, abs=1e-6)
    assert float(np.linalg.norm(arrived)) <= 1 + 1e-6


def test_mean_fidelity_of_many_crossings_is_that_of_the_channel() -> None:
    # on average over trajectories <psi|E(psi)|psi>; for depolarising noise on every qubit and a basis state (1 - p/2)^n
    channels, d, p = {("a", "b"): LinkChannel((1 - 0.15, 0.05, 0.05, 0.05))}, 256, 0.2
    psi = np.eye(d, dtype=np.float32)[37]
    found = [cross(psi, (("a", "b"),), channels, str(n))[1][0].fidelity for n in range(2000)]
    want = (1 - p / 2) ** 8
    assert np.mean(found) == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / 2000))


# ------------------------------------------------------------------------------------------------------- the picture
def test_pictures_show_noise_and_protection() -> None:
    topology = line(PROTECTED, bare(0.9, "b", "c"), LinkSpec("c", "d"))
    channels = link_channels(topology)
    w = f"{channels['a', 'b'].w:.3f}"
    for draw in (graph.svg, graph.dot, graph.mermaid):
        text = draw(topology, channels)
        plain = text.replace("#61;", "=").replace("#43;", "+")
        assert "rotated_surface d=3" in plain.replace("#95;", "_")
        assert f"w {w}" in plain
        assert "error 0.1, w 0.867" in plain
        assert "error" not in draw(topology)
        assert draw(topology).count("noisy") == 2
    assert graph.svg(topology).count("stroke-dasharray") == 2
