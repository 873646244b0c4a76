"""Noise on a link as the topology file has it: checked, as a spec, and as a Pauli channel of one qubit.

A Pauli channel (pI, pX, pY, pZ) has three eigenvalues, 1 minus twice the probability of what anticommutes; channels
one after another multiply them (Pauli channels commute).

    depolarizing p   (1-p) rho + p I/2      pX = pY = pZ = p/4     (Nielsen & Chuang, section 8.3.4)
    dephasing l      coherences (1-l)       pZ = l/2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qraf.codes.experiment import Experiment
from qraf.errors import InvalidState
from qraf.network import models
from qraf.network.topology import NoiseSpec, ProtectSpec

__all__ = ["NoiseFault", "noise_faults", "noise_of", "pauli_channel", "protect_of"]

Probabilities = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class NoiseFault:
    """A fault of a link's `noise` or `protect`: where below the link, what, and the way out."""

    path: tuple[str, ...]
    what: str
    hint: str = ""
    is_key: bool = False


def noise_of(link: models.Link) -> NoiseSpec | None:
    """Give a link's noise; None where it has none."""
    noise = link.noise
    if noise is None:
        return None
    pauli = noise.pauli or models.Pauli()
    return NoiseSpec(noise.depolarizing, noise.dephasing, (pauli.x, pauli.y, pauli.z), noise.rounds or 1)


def protect_of(link: models.Link) -> ProtectSpec | None:
    """Give a link's protection; None where it has none."""
    protect = link.protect
    return None if protect is None else ProtectSpec(protect.code, protect.distance, protect.rounds or protect.distance)


def pauli_channel(noise: NoiseSpec) -> Probabilities:
    """Give (pI, pX, pY, pZ) of an unprotected qubit that crosses: every kind of noise, `rounds` times.

    >>> pauli_channel(NoiseSpec(depolarizing=0.4))
    (0.7, 0.1, 0.1, 0.1)
    """
    x, y, z = noise.pauli
    kept = 1 - noise.depolarizing
    # eigenvalues of X, Y, Z: what of each is left after one round
    of_x = kept * (1 - noise.dephasing) * (1 - 2 * (y + z))
    of_y = kept * (1 - noise.dephasing) * (1 - 2 * (x + z))
    of_z = kept * (1 - 2 * (x + y))
    a, b, c = (value**noise.rounds for value in (of_x, of_y, of_z))
    found = ((1 + a + b + c) / 4, (1 + a - b - c) / 4, (1 - a + b - c) / 4, (1 - a - b + c) / 4)
    p_i, p_x, p_y, p_z = (max(0.0, round(value, 15)) for value in found)
    return p_i, p_x, p_y, p_z


def noise_faults(link: models.Link) -> Iterator[NoiseFault]:
    """Find what is wrong with a link's noise and protection beyond single values."""
    noise, protect = link.noise, link.protect
    if noise is not None and noise.pauli is not None:
        total = noise.pauli.x + noise.pauli.y + noise.pauli.z
        if total > 1 + 1e-12:
            what = f"the channel is not trace preserving: its probabilities add up to {total:g}"
            yield NoiseFault(("noise", "pauli"), what, "let them add up to at most 1")
            return
    if protect is None:
        spec = noise_of(link)
        if spec is not None and 4 * pauli_channel(spec)[0] <= 1:
            fidelity = pauli_channel(spec)[0]
            what = f"no entanglement crosses this channel: its entanglement fidelity is {fidelity:g}, not above 1/4"
            yield NoiseFault(("noise",), what, "less noise, or fewer rounds", is_key=True)
        return
    if noise is None:
        yield NoiseFault(("protect",), "`protect` needs `noise`: there is nothing to correct", is_key=True)
        return
    for name in ("dephasing", "pauli"):
        if getattr(noise, name):
            what = f"`{name}` cannot be protected: the code's circuit is simulated with depolarizing noise alone"
            yield NoiseFault(("noise", name), what, "write it as `depolarizing`, or leave `protect` out", is_key=True)
    if noise.rounds is not None:
        what = "`rounds` of a protected link belong to `protect`"
        yield NoiseFault(("noise", "rounds"), what, is_key=True)
    if protect.distance % 2 == 0:
        what = f"`distance` must be odd, but is {protect.distance}"
        yield NoiseFault(("protect", "distance"), what, f"use {protect.distance + 1}")
    try:
        Experiment(protect.code, protect.distance, protect.rounds or protect.distance)
    except InvalidState as error:
        where = "rounds" if protect.rounds is not None else "distance"
        yield NoiseFault(("protect", where), f"`{error.name}` must {error.need}, but {error.got}")
