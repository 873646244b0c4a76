"""Noisy links: the channel of each, sampled once, and what it does to the amplitudes that cross.

A state of d real amplitudes is a ket of n = ceil(log2 d) qubits, zeros behind the d-th. On a noisy link every qubit
meets the link's channel, (pI, pX, pY, pZ): the noise itself where the link is bare, else the logical channel of the
code that it is protected by (`qraf.codes.channel`: sampled, with its error bar). One crossing is one trajectory, a
Pauli string drawn from the channel: exact, X permutes amplitudes, Z flips signs, the global phase of a Y is dropped, so
the ket stays real. What lands behind the d-th amplitude is lost, and the rest keeps its norm: a state that leaked
overlaps less with everything. The words, speakers and dates of a prompt are classical and cross exactly.

A trajectory is decided by a key (the response), the prompt and the link: the same three give the same errors.

For routing, w = (4F - 1) / 3 with F = pI, the entanglement fidelity of one qubit, and the price is -ln w (`werner`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qraf.codes.channel import logical_channel, stim_of_depolarizing
from qraf.codes.experiment import Experiment, Noise, dem, sample
from qraf.codes.strings import apply_string, draw_strings, spelled
from qraf.network import werner
from qraf.network.noise import pauli_channel
from qraf.network.topology import LinkSpec, NoiseSpec, ProtectSpec, Topology

__all__ = ["SHOTS", "Crossing", "LinkChannel", "cross", "link_channel", "link_channels", "num_qubits"]

log = logging.getLogger(__name__)

SHOTS = 20_000
"""Shots in each basis for the logical channel of a protected link, fewer where a shot is large."""
_SEED = 0
_MAX_EVENTS = 40_000_000  # shots times detectors: some ten seconds
_MIXED = 0.48  # rate of flips beyond which no rate per round can be read off
_COUNTED_SHOTS = 500  # for the mean number of corrections
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class LinkChannel:
    """What one qubit meets on a link.

    Attributes:
        probabilities: (pI, pX, pY, pZ).
        se_w: standard error of `w`; 0 where the channel is exact.
        corrections: error mechanisms that the decoder corrects on one qubit's crossing, on average; 0 without a code.
        shots: sampled in each basis; 0 where the channel is exact.
    """

    probabilities: tuple[float, float, float, float]
    se_w: float = 0.0
    corrections: float = 0.0
    shots: int = 0

    @property
    def fidelity(self) -> float:
        """Entanglement fidelity of one qubit, pI."""
        return self.probabilities[0]

    @property
    def error(self) -> float:
        """Probability that a qubit comes out wrong, 1 - pI."""
        return 1 - self.probabilities[0]

    @property
    def w(self) -> float:
        """Werner parameter (4F - 1) / 3; may be negative where hardly anything is left."""
        return werner.parameter(self.fidelity)

    @property
    def price(self) -> float:
        """-ln w, which adds up along a path."""
        return werner.price(self.w)


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one link did to one state.

    Attributes:
        source: end of the link that the state left.
        target: end that it came to.
        errors: the Pauli string, one letter a qubit.
        fidelity: of what arrived to what left, |<before|after>|^2 / <before|before>^2: leaking counts as loss.
        lost: share of the norm squared that leaked out of the d amplitudes.
        corrections: expected number of corrections on the way, all qubits together.
        w: the link's Werner parameter.
    """

    source: str
    target: str
    errors: str
    fidelity: float
    lost: float
    corrections: float
    w: float


def link_channels(topology: Topology, folder: Path | None = None) -> dict[tuple[str, str], LinkChannel]:
    """Give the channel of every noisy link by its ends; protected ones are sampled, which may take seconds.

    Args:
        topology: the network.
        folder: where sampled channels are kept, so that they are sampled once; nowhere when not given.
    """
    found = {(link.source, link.target): link_channel(link, folder) for link in topology.links}
    return {ends: channel for ends, channel in found.items() if channel is not None}


def link_channel(link: LinkSpec, folder: Path | None = None) -> LinkChannel | None:
    """Give the channel of one link; None where it moves states exactly."""
    if link.noise is None:
        return None
    if link.protect is None:
        return LinkChannel(pauli_channel(link.noise))
    return _kept(link.noise, link.protect, folder)


def num_qubits(d: int) -> int:
    """Give how many qubits hold d amplitudes.

    >>> num_qubits(384), num_qubits(256), num_qubits(1)
    (9, 8, 1)
    """
    return max(1, (d - 1).bit_length())


def cross(
    amplitudes: NDArray[np.float32],
    path: Iterable[tuple[str, str]],
    channels: Mapping[tuple[str, str], LinkChannel],
    key: str,
) -> tuple[NDArray[np.float32], tuple[Crossing, ...]]:
    """Send amplitudes over the links of a path, one after another.

    Args:
        amplitudes: (d,) real.
        path: links by their ends; those without a channel change nothing.
        channels: of `link_channels`.
        key: with the amplitudes and the link it decides what happens.

    Returns:
        Amplitudes (d,), not longer than before and the very same array where no link is noisy, and what each noisy
        link did.
    """
    crossings: list[Crossing] = []
    sent = hashlib.blake2b(np.ascontiguousarray(amplitudes, "<f4").tobytes(), digest_size=16).digest()
    for source, target in path:
        channel = channels.get((source, target))
        if channel is None:
            continue
        seed = hashlib.blake2b(
            json.dumps([key, source, target]).encode() + sent, digest_size=16, person=b"qraf link"
        ).digest()
        arrived, errors = _trajectory(amplitudes, channel, int.from_bytes(seed))
        before, after = float(np.vdot(amplitudes, amplitudes)), float(np.vdot(arrived, arrived))
        overlap = float(np.vdot(amplitudes, arrived)) ** 2
        crossings.append(
            Crossing(
                source=source,
                target=target,
                errors=errors,
                fidelity=min(1.0, overlap / before**2) if before > 0 else 0.0,
                lost=max(0.0, 1 - after / before) if before > 0 else 0.0,
                corrections=channel.corrections * len(errors),
                w=channel.w,
            )
        )
        amplitudes = arrived
    return amplitudes, tuple(crossings)


def _trajectory(amplitudes: NDArray[np.float32], channel: LinkChannel, seed: int) -> tuple[NDArray[np.float32], str]:
    d, n = len(amplitudes), num_qubits(len(amplitudes))
    drawn = draw_strings(1, n, channel.probabilities, np.random.default_rng(seed))
    x, z = int(drawn.x[0]), int(drawn.z[0])
    if not x | z:
        return amplitudes, spelled(x, z, n)
    ket = np.zeros(2**n, amplitudes.dtype)
    ket[:d] = amplitudes
    return apply_string(ket, x, z)[:d], spelled(x, z, n)


# ---------------------------------------------------------------------------------------------- sampling and keeping
def _kept(noise: NoiseSpec, protect: ProtectSpec, folder: Path | None) -> LinkChannel:
    """The logical channel of a protected link: from the folder, or sampled and put there."""
    # a state that crosses is in its code before and after; an experiment as short as the crossing has perfect ends and
    # would flatter the code, so one of three times the distance is run, and its rate per round taken
    length = max(protect.rounds, 3 * protect.distance)
    physical = stim_of_depolarizing(noise.depolarizing)
    experiment = Experiment(protect.code, protect.distance, length, Noise.uniform(physical))
    facts = {
        "format": _FORMAT,
        "code": protect.code,
        "distance": protect.distance,
        "rounds": protect.rounds,
        "sampled_rounds": length,
        "physical": physical,
        "shots": max(1, min(SHOTS, _MAX_EVENTS // experiment.num_detectors)),
        "seed": _SEED,
        "stim": metadata.version("stim"),
        "pymatching": metadata.version("pymatching"),
    }
    if folder is None:
        return _sampled(facts)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    file = folder / f"{name}.json"
    known = _read(file, facts)
    if known is not None:
        return known
    log.info("sampling the logical channel of a link: %s", facts)
    made = _sampled(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"facts": facts, "channel": dataclasses.asdict(made)}, indent=2) + "\n")
        part.replace(file)
    except OSError as error:
        log.warning("the channel of a link cannot be kept in %s and is sampled again next time: %s", folder, error)
    return made


def _read(file: Path, facts: dict[str, Any]) -> LinkChannel | None:
    """A channel that was kept; None where there is none, or what is there is no channel of these facts."""
    try:
        kept = json.loads(file.read_text())
        if kept["facts"] != facts:
            return None
        channel = LinkChannel(**{**kept["channel"], "probabilities": tuple(kept["channel"]["probabilities"])})
        values = np.array([*channel.probabilities, channel.se_w, channel.corrections, channel.shots], np.float64)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read, its channel is sampled again: %s", file, error)
        return None
    total = math.fsum(channel.probabilities)
    if len(channel.probabilities) != 4 or not np.isfinite(values).all() or (values < 0).any() or abs(total - 1) > 1e-9:
        log.warning("%s holds no channel, it is sampled again", file)
        return None
    return channel


def _sampled(facts: dict[str, Any]) -> LinkChannel:
    code, distance, rounds, physical = facts["code"], facts["distance"], facts["rounds"], facts["physical"]
    length, shots, seed = facts["sampled_rounds"], facts["shots"], facts["seed"]
    while True:
        made = logical_channel(code, distance, length, physical, shots, seed)
        sampled = (made.qx, made.qz) if code == "rotated_surface" else (made.qx,)
        if max(sampled) <= _MIXED or length == rounds:
            break
        length = max(rounds, length // 2)  # far above the threshold a long experiment ends in a coin toss
    made = made.over(rounds) if length != rounds else made
    experiment = Experiment(code, distance, length, Noise.uniform(physical))
    corrections = _mean_corrections(experiment, seed) * rounds / length
    return LinkChannel(made.probabilities, made.se_w, corrections, made.shots)


def _mean_corrections(experiment: Experiment, seed: int) -> float:
    """Error mechanisms in the decoder's matching of one shot, on average: what it corrects, bit and phase flips."""
    import pymatching

    matching = pymatching.Matching.from_detector_error_model(dem(experiment))
    drawn = sample(experiment, _COUNTED_SHOTS, seed).detectors
    bits = np.unpackbits(drawn, axis=1, count=experiment.num_detectors, bitorder="little")
    return sum(len(matching.decode_to_edges_array(shot)) for shot in bits) / _COUNTED_SHOTS
