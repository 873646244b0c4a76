from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.network import models
from qraf.network.loader import loads
from qraf.network.noise import pauli_channel
from qraf.network.topology import NoiseSpec, ProtectSpec
from tests.network.yaml_files import faults, replaced

LINK = "  - {source: tickets, target: writer}\n"
SHARES = st.floats(0, 1)
PAULIS = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}


def linked(noise: str) -> str:
    return replaced((LINK, f"  - {{source: tickets, target: writer, {noise}}}\n"))


def test_noise_and_protection_reach_the_topology() -> None:
    text = linked("noise: {depolarizing: 0.003}, protect: {code: rotated_surface, distance: 5, rounds: 7}")
    link = loads(text, env={}).links[-1]
    assert link.noise == NoiseSpec(depolarizing=0.003)
    assert link.protect == ProtectSpec("rotated_surface", 5, 7)
    assert loads(text, env={}).links[0].noise is None
    bare = loads(linked("noise: {dephasing: 0.1, pauli: {x: 0.01, z: 0.02}, rounds: 3}"), env={}).links[-1]
    assert bare.noise == NoiseSpec(0.0, 0.1, (0.01, 0.0, 0.02), 3)
    assert loads(linked("noise: {depolarizing: 0.1}, protect: {code: repetition}"), env={}).links[-1].protect == (
        ProtectSpec("repetition", 3, 3)  # as many rounds as the distance
    )


# ^ stands before what the fault points at
@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("noise: {^pauli: {x: 0.5, y: 0.4, z: 0.2}}", "not trace preserving: its probabilities add up to 1.1"),
        ("noise: {pauli: ^[0.1, 0.1, 0.1]}", "must be a mapping"),
        ("noise: {pauli: {x: ^-0.1}}", "must be greater than or equal to 0, but is -0.1"),
        ("noise: {^depolarising: 0.1}", "did you mean 'depolarizing'?"),
        ("noise: {^amplitude_damping: 0.1}", "unknown key 'amplitude_damping'"),
        ("^noise: {depolarizing: 1}", "no entanglement crosses this channel: its entanglement fidelity is 0.25"),
        ("^noise: {depolarizing: 0.5, rounds: 99}", "no entanglement crosses"),
        ("noise: {depolarizing: 0.1, rounds: ^0}", "greater than or equal to 1"),
        ("^protect: {code: repetition}", "`protect` needs `noise`"),
        ("noise: {depolarizing: 0.1}, protect: {code: ^steane}", "repetition"),
        ("noise: {depolarizing: 0.1}, protect: {code: repetition, distance: ^4}", "must be odd, but is 4; use 5"),
        ("noise: {depolarizing: 0.1}, protect: {code: repetition, distance: ^2}", "greater than or equal to 3"),
        ("noise: {^dephasing: 0.1}, protect: {code: repetition}", "`dephasing` cannot be protected"),
        ("noise: {depolarizing: 0.1, ^rounds: 3}, protect: {code: repetition}", "belong to `protect`"),
        (
            "noise: {depolarizing: 0.1}, protect: {code: rotated_surface, distance: 25, rounds: ^9999}",
            "`rounds` must give at most 50,000 detectors",
        ),
    ],
)
def test_a_fault_says_where_and_what(written: str, what: str) -> None:
    text = linked(written)
    column = text.splitlines()[14].index("^") + 1
    found = faults(text.replace("^", ""))
    assert [(fault.line, fault.column) for fault in found] == [(15, column)], found
    assert what in str(found[0])


def mapped(rho: np.ndarray, noise: NoiseSpec) -> np.ndarray:
    """The definitions, one kind of noise after the other, as often as it acts."""
    for _ in range(noise.rounds):
        rho = (1 - noise.depolarizing) * rho + noise.depolarizing * np.trace(rho) * np.eye(2) / 2
        rho = (1 - noise.dephasing) * rho + noise.dephasing * np.diag(np.diag(rho))
        x, y, z = noise.pauli
        rho = sum(
            p * PAULIS[name] @ rho @ PAULIS[name].conj().T
            for name, p in zip("IXYZ", (1 - x - y - z, x, y, z), strict=True)
        )
    return rho


@given(SHARES, SHARES, st.tuples(SHARES, SHARES, SHARES), st.integers(1, 5))
def test_the_pauli_channel_is_what_the_definitions_do(
    p: float, dephasing: float, pauli: tuple[float, float, float], rounds: int
) -> None:
    total = max(1.0, sum(pauli))
    noise = NoiseSpec(p, dephasing, (pauli[0] / total, pauli[1] / total, pauli[2] / total), rounds)
    channel = pauli_channel(noise)
    assert math.fsum(channel) == pytest.approx(1, abs=1e-12)
    for i, j in itertools.product(range(2), repeat=2):
        rho = np.zeros((2, 2), complex)
        rho[i, j] = 1
        got = sum(q * PAULIS[name] @ rho @ PAULIS[name].conj().T for name, q in zip("IXYZ", channel, strict=True))
        assert np.allclose(got, mapped(rho, noise), atol=1e-12)


def test_the_schema_knows_the_keys() -> None:
    made = models.schema()["$defs"]
    assert set(made["Channel"]["properties"]) == {"depolarizing", "dephasing", "pauli", "rounds"}
    assert set(made["Protect"]["properties"]) == {"code", "distance", "rounds"}
