"""A state with its certificate: what every operation on stored states takes and gives, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qraf.errors import InvalidRequest
from qraf.state_orders import Certificate, StateFigures, StateView
from qraf.states.state import State

__all__ = ["Made", "certificate", "check_label", "check_loss", "rounding", "view_of"]

MAX_LABEL = 128


@dataclass(frozen=True, slots=True)
class Made:
    """A state that was prepared, changed or loaded.

    `error` bounds the trace distance to the exact result of all that was done: a channel never lets it grow, a mixture
    takes the mean of its parts', a product their sum, and what recompression cut off and rounding are added. `moved`
    is how far a preparation had to move what was given. `bits` are the probabilities of a circuit's classical bits.
    """

    state: State
    error: float = 0.0
    moved: float = 0.0
    label: str = ""
    bits: dict[str, float] | None = None

    def then(self, state: State, lost: float = 0.0) -> Made:
        """This one after an operation that gave `state` and cut off `lost`."""
        return Made(state, self.error + lost + rounding(state), self.moved, self.label)


def rounding(state: State, operations: int = 0) -> float:
    """What one operation in float64 may be off by, as a trace distance.

    16 d eps, 8 eps for each gate in it, and the eigenvalues that its result left out as rounding.
    """
    return (16 * state.d + 8 * operations) * torch.finfo(torch.float64).eps + state.cut


def certificate(made: Made, figures: dict[str, float]) -> Certificate:
    """What the error allows the figures to be.

    |S(rho) - S(sigma)| <= T log2(d - 1) + h(T)      Audenaert, J. Phys. A 40, 8127 (2007), for T <= 1 - 1/d
    |Tr rho^2 - Tr sigma^2| <= 2 T;  F >= (1 - T)^2  Fuchs & van de Graaf, IEEE Trans. Inf. Theory 45, 1216 (1999)
    """
    d, t = made.state.d, min(1.0, made.error)
    entropy, purity, most = figures["entropy_bits"], figures["purity"], math.log2(d)
    apart = most if t >= 1 - 1 / d else t * math.log2(d - 1) + _binary_entropy(t)
    return Certificate(
        trace_distance=t,
        fidelity=(1 - t) ** 2,
        entropy_bits=(max(0.0, entropy - apart), min(most, entropy + apart)),
        purity=(max(1 / d, purity - 2 * t), min(1.0, purity + 2 * t)),
    )


def view_of(made: Made, state: str, version: int, size: int) -> StateView:
    """The state as it is shown; `size` are the bytes of its packet. Times are filled in by who stores it."""
    figures = made.state.figures()
    return StateView(
        id=state,
        version=version,
        dims=made.state.dims,
        d=made.state.d,
        rank=made.state.rank,
        bytes=size,
        figures=StateFigures(
            purity=figures["purity"],
            entropy_bits=figures["entropy_bits"],
            effective_rank=figures["effective_rank"],
            coherence_bits=figures["coherence_bits"],
            l1_coherence=figures.get("l1_coherence"),
        ),
        certificate=certificate(made, figures),
        moved=made.moved,
        label=made.label,
        bits=made.bits,
    )


def check_loss(loss: float) -> None:
    """Refuse a loss that leaves nothing."""
    if not 0 <= loss < 1:
        raise InvalidRequest(f"must be at least 0 and below 1, but is {loss}", "/loss")


def _binary_entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def check_label(label: str, pointer: str) -> None:
    """Refuse a label that is too long or cannot be shown."""
    if len(label) > MAX_LABEL or not (label.isprintable() or not label):
        raise InvalidRequest(f"must be at most {MAX_LABEL} printable characters, but is {label!r:.80}", pointer)
