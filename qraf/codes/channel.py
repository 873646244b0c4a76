"""The logical channel of a protected link: what happens to a logical qubit in some rounds of error correction.

Two memory experiments are run and decoded: `memory_z` gives qx = P(X_L or Y_L), `memory_x` gives qz = P(Z_L or Y_L).
Two separate runs cannot see how often both happen at once, so **pY is modelled**, by independence of X and Z:

    pI = (1 - qx)(1 - qz),   pX = qx (1 - qz),   pZ = (1 - qx) qz,   pY = qx qz

Over k rounds, 1 - 2 q(k) = (1 - 2 q(R))^{k/R}. The entanglement fidelity of a Pauli channel is F_e = pI; its average
fidelity (Horodecki 1999) is F = (2 F_e + 1) / 3, and the Werner parameter of a pair of which one half crossed is
w = (4 F_e - 1) / 3, so that -ln w adds up along a path (F_e measured on Bell pairs: Briegel et al. 1998).

The repetition code guards against X alone. Its logical Z is a Z on any data qubit: qz is then no matter of decoding
and comes exactly from the noisy circuit, with no error bar.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qraf.codes.decoder import Decoder
from qraf.codes.experiment import MAX_SAMPLE_BYTES, Experiment, Noise, b8_bytes, circuit, sample
from qraf.codes.rates import error_rate, over_rounds, wilson
from qraf.errors import InvalidState

__all__ = ["LogicalChannel", "bare_channel", "depolarizing_of_stim", "logical_channel", "stim_of_depolarizing"]

MAX_SHOTS = 10_000_000
_PIECE = 20_000  # shots sampled and decoded at a time


@dataclass(frozen=True, slots=True)
class LogicalChannel:
    """A Pauli channel on one (logical) qubit, as sampled, with one standard error beside each figure.

    Attributes:
        pI: probability that nothing happens.
        pX: probability of X.
        pY: probability of Y; modelled as independent X and Z, see the module.
        pZ: probability of Z.
        se_pI: standard error of pI.
        se_pX: standard error of pX.
        se_pY: standard error of pY.
        se_pZ: standard error of pZ.
        qx: probability of X or Y.
        qz: probability of Z or Y.
        se_qx: standard error of qx (half the Wilson interval: not 0 where no error was seen).
        se_qz: standard error of qz.
        rounds: that the channel stands for.
        shots: sampled in each basis; 0 where the figures are exact.
    """

    pI: float
    pX: float
    pY: float
    pZ: float
    se_pI: float
    se_pX: float
    se_pY: float
    se_pZ: float
    qx: float
    qz: float
    se_qx: float
    se_qz: float
    rounds: float
    shots: int

    @classmethod
    def of_flips(
        cls, qx: float, qz: float, se_qx: float = 0.0, se_qz: float = 0.0, *, rounds: float = 1, shots: int = 0
    ) -> LogicalChannel:
        """Give the channel of independent X and Z flips; standard errors to first order."""
        keep_x, keep_z = 1 - qx, 1 - qz
        return cls(
            pI=keep_x * keep_z,
            pX=qx * keep_z,
            pY=qx * qz,
            pZ=keep_x * qz,
            se_pI=math.hypot(keep_z * se_qx, keep_x * se_qz),
            se_pX=math.hypot(keep_z * se_qx, qx * se_qz),
            se_pY=math.hypot(qz * se_qx, qx * se_qz),
            se_pZ=math.hypot(qz * se_qx, keep_x * se_qz),
            qx=qx,
            qz=qz,
            se_qx=se_qx,
            se_qz=se_qz,
            rounds=rounds,
            shots=shots,
        )

    @property
    def probabilities(self) -> tuple[float, float, float, float]:
        """(pI, pX, pY, pZ), as `qraf.codes.pauli` takes them."""
        return self.pI, self.pX, self.pY, self.pZ

    @property
    def F_e(self) -> float:
        """Entanglement fidelity, with standard error `se_pI`."""
        return self.pI

    @property
    def F_avg(self) -> float:
        """Fidelity averaged over all pure states, (2 F_e + 1) / 3."""
        return (2 * self.pI + 1) / 3

    @property
    def w(self) -> float:
        """Werner parameter, (4 F_e - 1) / 3; 0 or less means that no entanglement is left to carry."""
        return (4 * self.pI - 1) / 3

    @property
    def se_w(self) -> float:
        """Standard error of `w`."""
        return 4 * self.se_pI / 3

    def over(self, rounds: float) -> LogicalChannel:
        """Give the channel of another number of rounds, flips taken as independent from round to round.

        A sampled channel keeps the independence of X and Z; an exact one (`shots` 0) is powered as the Pauli channel
        that it is, pY included.
        """
        if rounds <= 0:
            raise InvalidState("rounds", "be above 0", f"is {rounds}")
        power = rounds / self.rounds
        if not self.shots:
            return _powered(self, power, rounds)
        qx, qz = over_rounds(self.qx, power), over_rounds(self.qz, power)
        # dq(k)/dq(R) = (k/R) (1 - 2 q(R))^(k/R - 1); at q = 1/2 nothing is left to vary
        slope_x, slope_z = (power * (1 - 2 * q) ** (power - 1) if q < 0.5 else 0.0 for q in (self.qx, self.qz))
        return LogicalChannel.of_flips(
            qx, qz, slope_x * self.se_qx, slope_z * self.se_qz, rounds=rounds, shots=self.shots
        )


@functools.lru_cache(maxsize=256)
def logical_channel(
    code: str,
    distance: int,
    rounds: int,
    p: float | Noise,
    shots: int = 20_000,
    seed: int = 0,
    *,
    sampled_rounds: int | None = None,
) -> LogicalChannel:
    """Sample the logical channel of a link protected by a code; the same arguments are sampled once per process.

    Args:
        code: "rotated_surface" or "repetition".
        distance: of the code.
        rounds: of error correction while the state crosses.
        p: circuit noise: one probability for stim's four places, or a `Noise`.
        shots: in each basis.
        seed: of the samples, at least 0.
        sampled_rounds: length of the experiments, where not `rounds`; the result is converted. Experiments begin and
            end without measurement noise on some stabilisers, so short ones flatter a code slightly.

    Raises:
        InvalidState: an argument is outside its limits.
    """
    if not 1 <= shots <= MAX_SHOTS:
        raise InvalidState("shots", f"be 1 to {MAX_SHOTS:,}", f"is {shots}")
    if seed < 0:
        raise InvalidState("seed", "be at least 0", f"is {seed}")
    noise = p if isinstance(p, Noise) else Noise.uniform(p)
    length = rounds if sampled_rounds is None else sampled_rounds
    flips_x = Experiment(code, distance, length, noise, "z")
    qx, se_qx = _flip_rate(flips_x, shots, seed)
    if code == "repetition":
        qz, se_qz = _unguarded_phase_flip(flips_x), 0.0
    else:
        qz, se_qz = _flip_rate(Experiment(code, distance, length, noise, "x"), shots, seed)
    channel = LogicalChannel.of_flips(qx, qz, se_qx, se_qz, rounds=length, shots=shots)
    return channel if length == rounds else channel.over(rounds)


def bare_channel(p: float, rounds: float = 1) -> LogicalChannel:
    """Give the channel of an unprotected qubit: DEPOLARIZE1(p) in every round, exact, pY = pX = pZ.

    Raises:
        InvalidState: `p` is outside [0, 3/4], or `rounds` is not above 0.
    """
    if not 0 <= p <= 0.75:
        raise InvalidState("p", "be in [0, 0.75]", f"is {p}")
    q = 2 * p / 3
    one = LogicalChannel(1 - p, p / 3, p / 3, p / 3, 0.0, 0.0, 0.0, 0.0, q, q, 0.0, 0.0, 1, 0)
    return one.over(rounds)


def depolarizing_of_stim(q: float, num_qubits: int = 1) -> float:
    """Turn stim's DEPOLARIZE1(q) or DEPOLARIZE2(q) into p of (1-p) rho + p I/d: p = q 4^n / (4^n - 1).

    >>> round(depolarizing_of_stim(0.3), 12), round(depolarizing_of_stim(0.3, 2), 12)
    (0.4, 0.32)
    """
    paulis = 4.0**num_qubits
    return q * paulis / (paulis - 1)


def stim_of_depolarizing(p: float, num_qubits: int = 1) -> float:
    """Turn p of (1-p) rho + p I/d into stim's DEPOLARIZE1 or DEPOLARIZE2: the probability of a Pauli other than I."""
    paulis = 4.0**num_qubits
    return p * (paulis - 1) / paulis


def _flip_rate(experiment: Experiment, shots: int, seed: int) -> tuple[float, float]:
    """Sample, decode and count in pieces: the rate of flips and its standard error."""
    decoder, errors = Decoder.of(experiment), 0
    piece = min(_PIECE, MAX_SAMPLE_BYTES // b8_bytes(experiment.num_detectors))
    for done in range(0, shots, piece):
        key = np.random.SeedSequence([seed, experiment.basis == "x", done]).generate_state(1, np.uint64)
        drawn = sample(experiment, min(piece, shots - done), int(key[0] >> np.uint64(1)))
        errors += error_rate(decoder.decode(drawn.detectors).observables, drawn.observables).errors
    low, high = wilson(errors, shots)
    return errors / shots, (high - low) / 2


def _unguarded_phase_flip(experiment: Experiment) -> float:
    """Give P(odd number of phase flips on the data of a repetition code), exactly, from the circuit's own errors.

    Z on one data qubit is a logical Z of this code, and X on all of them the operator that it flips. So keep the
    circuit, prepare and measure the data in the X basis, and let X on all data be the observable: each mechanism
    flips it or not, independently.
    """
    import stim

    last, told = 2 * experiment.distance - 2, stim.Circuit()
    data, helpers = range(0, last + 1, 2), range(1, last, 2)
    flip = experiment.noise.after_reset_flip_probability
    before = experiment.noise.before_measure_flip_probability
    told.append("RX", data)
    told.append("Z_ERROR", data, flip)
    told.append("R", helpers)
    told.append("X_ERROR", helpers, flip)
    told += _without_ends(circuit(experiment))
    told.append("Z_ERROR", data, before)
    told.append("MX", data)
    told.append("OBSERVABLE_INCLUDE", [stim.target_rec(-1 - k) for k in range(len(data))], 0)
    kept = 1.0
    for error in told.detector_error_model().flattened():
        if error.type == "error" and error.targets_copy():
            kept *= 1 - 2 * error.args_copy()[0]
    return (1 - kept) / 2


def _without_ends(whole: Any) -> Any:
    """Give the rounds of a repetition memory: without its first reset, its last measurement and all detectors."""
    import stim

    flat, out = whole.flattened(), stim.Circuit()
    names = [op.name for op in flat]
    first = names.index("TICK")
    end = len(names) - 1 - names[::-1].index("M")
    if names[end - 1] == "X_ERROR":
        end -= 1  # the flip before the last measurement; the round's own flip after its reset ends with detectors
    for op in flat[first:end]:
        if op.name not in ("DETECTOR", "OBSERVABLE_INCLUDE", "SHIFT_COORDS"):
            out.append(op)
    return out


def _powered(channel: LogicalChannel, power: float, rounds: float) -> LogicalChannel:
    """Raise a Pauli channel to a power: its three eigenvalues, 1 - 2 (what anticommutes), are raised to it."""
    p_x, p_y, p_z = channel.pX, channel.pY, channel.pZ
    x, y, z = (max(0.0, 1 - 2 * flip) ** power for flip in (p_y + p_z, p_x + p_z, p_x + p_y))
    return LogicalChannel(
        (1 + x + y + z) / 4, (1 + x - y - z) / 4, (1 - x + y - z) / 4, (1 - x - y + z) / 4,
        0.0, 0.0, 0.0, 0.0, (1 - z) / 2, (1 - x) / 2, 0.0, 0.0, rounds, 0,
    )  # fmt: skip
