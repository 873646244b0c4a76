from __future__ import annotations

import math

import pytest

from qraf.codes.channel import (
    LogicalChannel,
    bare_channel,
    depolarizing_of_stim,
    logical_channel,
    stim_of_depolarizing,
)
from qraf.codes.experiment import Noise
from qraf.codes.rates import over_rounds
from qraf.errors import InvalidState


@pytest.mark.slow
def test_distance_five_over_five_rounds_comes_out_as_published() -> None:
    channel = logical_channel("rotated_surface", 5, 5, 0.003, 20_000, 7)
    # the values that stim 1.16 and pymatching 2.4 gave elsewhere: qx .0032, qz .0036, F_e .9932
    assert abs(channel.qx - 0.0032) < 3 * channel.se_qx
    assert abs(channel.qz - 0.0036) < 3 * channel.se_qz
    assert abs(channel.F_e - 0.9932) < 3 * channel.se_pI
    assert channel.F_avg == pytest.approx((2 * channel.F_e + 1) / 3)
    assert channel.w == pytest.approx((4 * channel.F_e - 1) / 3)
    assert channel.se_w == pytest.approx(4 * channel.se_pI / 3)
    assert (channel.rounds, channel.shots) == (5, 20_000)


def test_probabilities_are_those_of_independent_flips() -> None:
    channel = LogicalChannel.of_flips(0.1, 0.2, 0.01, 0.02, shots=100)
    assert channel.probabilities == pytest.approx((0.72, 0.08, 0.02, 0.18))
    assert channel.pX + channel.pY == pytest.approx(channel.qx)
    assert channel.pZ + channel.pY == pytest.approx(channel.qz)
    assert channel.se_pI == pytest.approx(math.hypot(0.8 * 0.01, 0.9 * 0.02))
    assert channel.se_pY == pytest.approx(math.hypot(0.2 * 0.01, 0.1 * 0.02))


def test_flips_compose_over_rounds() -> None:
    one = LogicalChannel.of_flips(0.01, 0.02, 0.001, 0.001, rounds=2, shots=10)
    assert one.over(6).qx == pytest.approx(over_rounds(0.01, 3))
    assert one.over(6).over(2).qz == pytest.approx(0.02)
    nudge = 1e-6
    slope = (LogicalChannel.of_flips(0.01 + nudge, 0, rounds=2, shots=1).over(6).qx - one.over(6).qx) / nudge
    assert one.over(6).se_qx == pytest.approx(0.001 * slope, rel=1e-4)
    assert LogicalChannel.of_flips(0.5, 0, 0.1, shots=1).over(4).se_qx == 0


def test_a_bare_qubit_depolarises() -> None:
    # n times (1-p) rho + p I/2 keeps (1-p)^n of the Bloch vector
    q, n = 0.03, 7
    keep = (1 - depolarizing_of_stim(q)) ** n
    channel = bare_channel(q, n)
    assert channel.F_e == pytest.approx((1 + 3 * keep) / 4, abs=1e-14)
    assert channel.pX == pytest.approx(channel.pY)
    assert channel.w == pytest.approx(keep)
    assert channel.se_pI == 0
    assert sum(channel.probabilities) == pytest.approx(1)
    assert bare_channel(q).probabilities == pytest.approx((1 - q, q / 3, q / 3, q / 3))


def test_stims_depolarising_is_turned_both_ways() -> None:
    assert depolarizing_of_stim(0.03) == pytest.approx(0.04)
    assert depolarizing_of_stim(0.15, 2) == pytest.approx(0.16)
    assert stim_of_depolarizing(depolarizing_of_stim(0.2, 2), 2) == pytest.approx(0.2)


def test_stims_factors_are_what_stim_does() -> None:
    import stim

    # DEPOLARIZE1(q) flips a measurement in Z with 2q/3, half of our p
    assert _flip("DEPOLARIZE1(0.3) 0", stim) == pytest.approx(depolarizing_of_stim(0.3) / 2, abs=1e-12)
    assert _flip("DEPOLARIZE2(0.3) 0 1", stim) == pytest.approx(depolarizing_of_stim(0.3, 2) / 2, abs=1e-12)


def _flip(noise: str, stim: object) -> float:
    circuit = stim.Circuit(f"R 0 1\n{noise}\nM 0\nDETECTOR rec[-1]")  # type: ignore[attr-defined]
    kept = 1.0
    for error in circuit.detector_error_model():
        if error.type == "error":
            kept *= 1 - 2 * error.args_copy()[0]
    return (1 - kept) / 2


def test_a_repetition_code_leaves_phases_unguarded() -> None:
    # data alone is depolarised: Z or Y with 2q/3 on each of 3 data qubits in each of 4 rounds
    q = 0.03
    channel = logical_channel("repetition", 3, 4, Noise(before_round_data_depolarization=q), 2000)
    assert channel.qz == pytest.approx((1 - (1 - 4 * q / 3) ** 12) / 2, abs=1e-12)
    assert channel.se_qz == 0
    assert channel.qx < 0.05
    # a flip before the last measurement of the data in the X basis, and after its reset, counts once
    for noise in (Noise(before_measure_flip_probability=0.1), Noise(after_reset_flip_probability=0.1)):
        assert logical_channel("repetition", 3, 4, noise, 10).qz == pytest.approx((1 - 0.8**3) / 2, abs=1e-12)
    larger = logical_channel("repetition", 5, 5, 0.003, 2000)
    assert larger.qz > 20 * larger.qx


def test_the_same_arguments_are_sampled_once_and_another_length_is_converted() -> None:
    first = logical_channel("rotated_surface", 3, 3, 0.01, 2000, 3)
    assert logical_channel("rotated_surface", 3, 3, 0.01, 2000, 3) is first
    assert logical_channel("rotated_surface", 3, 3, 0.01, 2000, 4) != first
    converted = logical_channel("rotated_surface", 3, 3, 0.01, 2000, 3, sampled_rounds=9)
    longer = logical_channel("rotated_surface", 3, 9, 0.01, 2000, 3)
    assert converted.qx == pytest.approx(over_rounds(longer.qx, 1 / 3))
    assert converted.rounds == 3


@pytest.mark.slow
def test_larger_codes_help_below_the_threshold_and_hurt_above() -> None:
    below = [logical_channel("rotated_surface", d, 5, 0.003, 10_000).F_e for d in (3, 5)]
    above = [logical_channel("rotated_surface", d, 5, 0.03, 2000).F_e for d in (3, 5)]
    assert below[1] > below[0]
    assert above[1] < above[0]


def test_no_error_seen_is_no_certainty() -> None:
    channel = logical_channel("rotated_surface", 5, 1, 1e-5, 500)
    assert channel.qx == 0
    assert channel.se_qx == pytest.approx(1 / 1000, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("toric", 3, 3, 0.01), "`code`"),
        (("rotated_surface", 1, 3, 0.01), "`distance`"),
        (("rotated_surface", 3, 0, 0.01), "`rounds`"),
        (("rotated_surface", 3, 3, 0.8), r"be in \[0, 0.75\]"),
        (("rotated_surface", 3, 3, 0.01, 0), "`shots`"),
        (("rotated_surface", 3, 3, 0.01, 10, -1), "`seed`"),
    ],
)
def test_arguments_outside_the_limits_are_named(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(InvalidState, match=says):
        logical_channel(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidState):
        bare_channel(0.8)
    with pytest.raises(InvalidState):
        bare_channel(0.1, 0)
