from __future__ import annotations

import pytest
import torch

from qraf.states.channels import (
    AmplitudeDamping,
    Channel,
    Dephasing,
    Depolarizing,
    Kraus,
    PauliNoise,
    PhaseDamping,
    Relaxation,
    Unitary,
)
from qraf.states.dense import growth, through
from qraf.states.evolve import evolve
from qraf.states.state import State
from tests import closed_forms as exact

CHANNELS: list[tuple[Channel, tuple[int, ...]]] = [
    (Depolarizing(0.3), (1,)),
    (Depolarizing(0.3), (2, 0)),
    (Depolarizing(0.3), (0, 1, 2)),
    (Dephasing(0.4), (0, 2)),
    (PhaseDamping(0.4), (2,)),
    (AmplitudeDamping(0.2), (1,)),
    (AmplitudeDamping(0.2), (2, 1)),
    (Relaxation(1.0, 3.0, 4.0), (2, 0)),
    (PauliNoise({"XY": 0.1, "ZI": 0.2}), (0, 2)),
    (Unitary(torch.linalg.qr(exact.random_state(6, 6, 5))[0]), (1, 2)),
    (Kraus(Depolarizing(0.7).kraus((3,))), (1,)),
]


@pytest.mark.parametrize(("channel", "on"), CHANNELS, ids=lambda one: str(one)[:24])
def test_a_density_matrix_goes_the_way_of_its_factor(channel: Channel, on: tuple[int, ...]) -> None:
    dims = (2, 3, 2)
    state = State(exact.random_state(12, 4, 5), dims)
    made = through(state.rho(), channel, dims, on)
    want, _ = evolve(state, channel, on)
    assert float((made - want.rho()).abs().max()) < 1e-15


@pytest.mark.parametrize(("channel", "on"), CHANNELS, ids=lambda one: str(one)[:24])
def test_the_rank_grows_no_more_than_is_foreseen(channel: Channel, on: tuple[int, ...]) -> None:
    dims = (2, 3, 2)
    after, _ = evolve(State(exact.random_state(12, 1, 5), dims), channel, on)
    assert after.rank <= growth(channel, tuple(dims[index] for index in on))


def test_what_does_not_grow_or_cannot_be_taken_so_is_left_to_factors() -> None:
    assert growth(Unitary(torch.eye(2)), (2,)) == growth(Depolarizing(0), (2, 2)) == 1
    assert growth(AmplitudeDamping(0.5), (2,) * 5) == 1  # 32 operators of 32 x 32
