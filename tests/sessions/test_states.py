"""Stored states of a service: those of the topology are made once; views need no host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.errors import InvalidRequest, NotFound
from qraf.network.loader import loads
from qraf.network.topology import Topology
from qraf.sessions.states import States
from qraf.state_orders import Preparation, StateEvolve, StateRead, StateViews, Step
from qraf.storage.journal import Journal
from tests.actors import samples
from tests.network.yaml_files import GOOD, faults

STATES = """\
states:
  pair: {circuit: 'include "stdgates.inc"; qubit[2] q; h q[0]; cx q[0], q[1];'}
  tilted: {amplitudes: [3, 0, 0, 4], dims: [2, 2], normalize: true}
  noise: {named: "mixed:1"}
"""


async def established(topology: Topology, journal: Journal, folder: Path) -> States:
    runtime = LocalRuntime(topology, samples.settings(folder), journal, encoder=samples.encoder)
    await runtime.start()
    try:
        states = States(journal, runtime)
        await states.establish(topology.states)
        damp = Step(channel="amplitude_damping", gamma=0.3)
        await states.order(StateEvolve(ids=("st_pair",), steps=(damp,)))
        return states
    finally:
        await runtime.close()


async def test_the_states_of_a_topology_are_made_once_and_kept(tmp_path: Path) -> None:
    parsed = loads(GOOD + STATES, gpus=0)
    assert [state.id for state in parsed.states] == ["st_pair", "st_tilted", "st_noise"]
    topology = replace(samples.topology(), states=parsed.states)
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    for version in (2, 3):  # a second start finds what became of it
        states = await established(topology, journal, tmp_path)
        assert (await states.view("st_pair")).version == version
    tilted = await states.view("st_tilted")
    assert (tilted.dims, tilted.label, tilted.version) == ((2, 2), "tilted", 1)
    found, cursor = await states.page(None, 2)
    assert [view.id for view in found] == ["st_pair", "st_tilted"]  # oldest first
    rest, cursor = await states.page(cursor, 2)
    assert ([view.id for view in rest], cursor) == (["st_noise"], None)
    read = await states.order(StateRead(ids=("st_noise", "st_pair")))  # the runtime is closed
    assert isinstance(read, StateViews)
    assert [view.version for view in read.states] == [1, 3]
    with pytest.raises(NotFound):
        await states.view("st_none")
    journal.close()


async def test_a_state_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    topology = replace(samples.topology(), states=(Preparation(id="st_x", label="x", named="unknown"),))
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    with pytest.raises(InvalidRequest, match="state 'x' of the topology"):
        await established(topology, journal, tmp_path)
    journal.close()


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("{}", "exactly one of"),
        ("{named: bell, text: hello}", "exactly one of"),
        ("{named: bell, colour: red}", "colour"),
        ("{amplitudes: [one]}", "number"),
        ("{named: bell, dims: [0]}", "1"),
    ],
)
def test_a_wrong_state_is_a_fault_at_its_place(state: str, what: str) -> None:
    [fault] = faults(GOOD + "states:\n  one: {named: bell}\n  two: " + state + "\n")
    assert fault.line == 20
    assert what in str(fault)
