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
from qraf.states.dense import through
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
    assert made is not None
    want, _ = evolve(state, channel, on)
    assert float((made - want.rho()).abs().max()) < 1e-15
