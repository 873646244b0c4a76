"""Evolution of states: channels, unitaries, Kraus sets and circuits, step after step, many states in one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qraf.errors import InvalidRequest, InvalidState
from qraf.operations.arrays import escaped, tensor_of
from qraf.operations.budget import Budget
from qraf.operations.state import Made, check_loss, rounding
from qraf.state_orders import StateEvolveBody, Step
from qraf.states import channels
from qraf.states.circuit import run_circuit
from qraf.states.evolve import evolve_dense, evolve_many
from qraf.states.state import State
from qraf.states.subsystems import check_on, join, split

__all__ = ["evolve"]

_NEEDS: dict[str, tuple[str, ...]] = {
    "depolarizing": ("p",),
    "dephasing": ("p",),
    "amplitude_damping": ("gamma",),
    "phase_damping": ("lam",),
    "thermal_relaxation": ("t_s", "t1_s", "t2_s"),
    "pauli": ("probabilities",),
}
_PARAMETERS = tuple(dict.fromkeys(name for names in _NEEDS.values() for name in names))
_AT_ONCE = 2**28  # bytes of factors
_KINDS = ("channel", "unitary", "kraus", "circuit")


def evolve(
    states: Sequence[Made], order: StateEvolveBody, max_steps: int = 1024, budget: Budget | None = None
) -> list[Made]:
    """Send every state through the steps.

    Raises:
        InvalidRequest: a step that is no one thing, lacks or has too many parameters, does not fit the subsystems, is
            not unitary, or does not preserve the trace; with the pointer of its field.
        LimitExceeded: it takes more time or room than `budget` has.
    """
    budget = budget or Budget()
    check_loss(order.loss)
    if not 1 <= len(order.steps) <= max_steps:
        raise InvalidRequest(f"must be 1 to {max_steps} steps, but are {len(order.steps)}", "/steps")
    made = list(states)
    for place, step in enumerate(order.steps):
        pointer = f"/steps/{place}"
        kind = _kind(step, pointer)
        if kind == "circuit":
            with _at_field(pointer, kind):
                made = [_run(one, step, budget) for one in made]
            continue
        with _at_field(pointer, kind):
            channel = _channel(step, pointer)
        targets = _targets(step, kind, made, pointer)
        with _at_field(pointer, kind):
            made = _through_all(made, channel, targets, order.loss, budget)
    return made


def _through_all(
    made: Sequence[Made],
    channel: channels.Channel,
    targets: Sequence[tuple[int, ...] | None],
    loss: float,
    budget: Budget,
) -> list[Made]:
    """Send states through a channel on one target after the other; dense where the rank comes near the dimension."""
    done: dict[int, Made] = {}
    for place, one in enumerate(made if not loss else ()):
        state = evolve_dense(one.state, channel, targets)
        if state is not None:
            later = replace(one, error=one.error + (len(targets) - 1) * rounding(state))
            done[place] = budget.take(later.then(state))
    rest = [place for place in range(len(made)) if place not in done]
    some = [made[place] for place in rest]
    for on in targets if rest else ():
        some = _through(some, channel, on, loss, budget)
    done |= zip(rest, some, strict=True)
    return [done[place] for place in range(len(made))]


def _through(
    made: Sequence[Made], channel: channels.Channel, on: tuple[int, ...] | None, loss: float, budget: Budget
) -> list[Made]:
    """Send states through a channel, as many at once as there is room for if each came to its full rank."""
    done: list[Made] = []
    largest = max(16 * one.state.d**2 for one in made)
    at_once = max(1, _AT_ONCE // largest)
    taken = budget.taken
    for start in range(0, len(made), at_once):
        some = made[start : start + at_once]
        for one, (state, lost) in zip(some, evolve_many([one.state for one in some], channel, on, loss), strict=True):
            done.append(budget.take(one.then(state, lost)))
    budget.taken = taken  # what a step made is let go by the next one
    return done


def _kind(step: Step, pointer: str) -> str:
    named = [name for name in _KINDS if getattr(step, name) is not None]
    if len(named) != 1:
        raise InvalidRequest(f"must have exactly one of {', '.join(_KINDS)}, but has {len(named)}", pointer)
    needs = _NEEDS[step.channel] if step.channel else ()
    for name in _PARAMETERS:
        given = getattr(step, name) is not None
        if name in needs and not given:
            raise InvalidRequest(f"channel '{step.channel}' needs `{name}`", f"{pointer}/{name}")
        if given and name not in needs:
            what = f"channel '{step.channel}'" if step.channel else f"`{named[0]}`"
            raise InvalidRequest(f"{what} takes no `{name}`", f"{pointer}/{name}")
    if step.together and step.channel is None:
        raise InvalidRequest(f"`{named[0]}` acts on its subsystems together anyway", f"{pointer}/together")
    return named[0]


def _channel(step: Step, pointer: str) -> channels.Channel:
    if step.unitary is not None:
        return channels.Unitary(tensor_of(step.unitary, f"{pointer}/unitary", 2, "(m, m)"))
    if step.kraus is not None:
        return channels.Kraus(tensor_of(step.kraus, f"{pointer}/kraus", 3, "(k, m, m)"))
    values = {name: getattr(step, name) for name in _PARAMETERS}
    match step.channel:
        case "depolarizing":
            return channels.Depolarizing(values["p"])
        case "dephasing":
            return channels.Dephasing(values["p"])
        case "amplitude_damping":
            return channels.AmplitudeDamping(values["gamma"])
        case "phase_damping":
            return channels.PhaseDamping(values["lam"])
        case "thermal_relaxation":
            return channels.Relaxation(values["t_s"], values["t1_s"], values["t2_s"])
        case _:
            return channels.PauliNoise(values["probabilities"])


def _targets(step: Step, kind: str, made: Sequence[Made], pointer: str) -> list[tuple[int, ...] | None]:
    """What the step acts on, one after the other; None: the whole of each state."""
    if kind != "channel" or step.together:
        return [step.subsystems]
    if step.subsystems is not None:
        if not step.subsystems or len(set(step.subsystems)) != len(step.subsystems):
            raise InvalidRequest("must name subsystems, each once", f"{pointer}/subsystems")
        return [(index,) for index in step.subsystems]
    counts = {len(one.state.dims) for one in made}
    if len(counts) > 1:
        raise InvalidRequest("is needed where states have different numbers of subsystems", f"{pointer}/subsystems")
    return [(index,) for index in range(counts.pop())]


def _run(one: Made, step: Step, budget: Budget) -> Made:
    """The state after a circuit on its qubits; those that it does not act on are declared behind its own."""
    budget.check()
    state, source = one.state, step.circuit or ""
    on = check_on(range(len(state.dims)) if step.subsystems is None else step.subsystems, state.dims)
    if any(size != 2 for size in state.dims):
        raise InvalidState("circuit", "act on qubits", f"the state has subsystems of dimensions {state.dims}")
    rest = len(state.dims) - len(on)
    front = State(split(state.factor, state.dims, on).flatten(-2), state.dims)
    try:
        run = run_circuit(f"{source}\nqubit[{rest}] qraf_others;" if rest else source, front, budget.check)
    except InvalidState as fault:
        if fault.need.startswith("declare qubits as"):
            need = f"declare {len(on)} qubits, one for each subsystem that it acts on"
            raise InvalidState("circuit", need) from None
        raise
    parts = run.state.factor.reshape(-1, 2 ** len(on), 2**rest)
    after = State(join(parts, state.dims, on), state.dims)
    return replace(one, state=after, error=one.error + rounding(after, run.operations), bits=run.bits or None)


@contextlib.contextmanager
def _at_field(pointer: str, kind: str) -> Iterator[None]:
    """Faults of a step point at the parameter that they name, else at the step's kind or its subsystems."""
    try:
        yield
    except InvalidState as fault:
        name, _, inner = fault.name.partition(".")
        if name == "on":
            name, fault = "subsystems", InvalidState("subsystems", fault.need, fault.got)
        elif name not in (*_PARAMETERS, *_KINDS):
            name = kind
        raise InvalidRequest(str(fault), f"{pointer}/{name}" + (f"/{escaped(inner)}" if inner else "")) from None
