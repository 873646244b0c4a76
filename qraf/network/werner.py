"""Werner algebra: what fidelity is left after several links, and why prices add up.

A Werner state of fidelity F has w = (4F - 1) / 3: with probability w the Bell pair, else the maximally mixed state.
Joining two by entanglement swapping multiplies: w = w1 w2, F = F1 F2 + (1 - F1)(1 - F2) / 3. So -ln w adds up along
a path, -ln F does not. A qubit teleported over a pair of Werner parameter w crosses a depolarising channel with
1 - p = w, so F_avg = (2F + 1) / 3 = (1 + w) / 2 (Horodecki 1999; Briegel et al., PRL 81, 5932 (1998)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["LEAST", "average_fidelity", "fidelity", "parameter", "path_fidelity", "price", "swapped"]

LEAST = 1e-9
"""A w below this, or negative, costs as this: such a link is taken when nothing else leads there."""


def parameter(fidelity: float) -> float:
    """Give w = (4F - 1) / 3 for a fidelity of entanglement.

    >>> round(parameter(0.9), 12)
    0.866666666667
    """
    return (4 * fidelity - 1) / 3


def fidelity(w: float) -> float:
    """Give F = (1 + 3w) / 4."""
    return (1 + 3 * w) / 4


def average_fidelity(w: float) -> float:
    """Give the fidelity of a teleported pure state, averaged over all of them: (1 + w) / 2."""
    return (1 + w) / 2


def swapped(first: float, second: float) -> float:
    """Give the fidelity after a swap of two pairs.

    >>> round(swapped(0.9, 0.9), 6)
    0.813333
    """
    return first * second + (1 - first) * (1 - second) / 3


def path_fidelity(fidelities: Iterable[float]) -> float:
    """Give the fidelity after swaps of all pairs of a path; 1 for none."""
    return fidelity(math.prod(parameter(each) for each in fidelities))


def price(w: float) -> float:
    """Give -ln w, which adds up along a path."""
    return -math.log(max(w, LEAST))
