"""The figures of a memory, from its items and its fold."""

from __future__ import annotations

import numpy as np

from qraf.memory.items import Items
from qraf.memory.state import Fold
from qraf.records import Figures
from qraf.states import quantize
from qraf.states.figures import exact_figures, memory_figures

__all__ = ["figures_of"]


def figures_of(items: Items, fold: Fold, dim: int, bits: int, version: int) -> Figures:
    """What the state measures; exact while nothing is folded, afterwards the sketch's figures with its certificate.

    The fidelity is the mean of what was measured when each item was coded: it travels behind the codes, 2 bytes an
    item, so a rebuilt memory knows it too. float16 values add up exactly in float64, in any order.
    """
    if not len(items):
        return Figures(version=version, bits=bits)
    rows = fold.open_rows(items)
    state = memory_figures(fold.sketch(items)) if rows is None else exact_figures(*rows)
    held = items.nbytes + fold.nbytes
    bound = np.minimum(quantize.bound(items.rows, dim, bits), 1.0)
    return Figures(
        version=version,
        items=len(items),
        bytes=held,
        rank=state.rank,
        bits=bits,
        entropy_bits=state.entropy_bits,
        entropy_interval=state.entropy_interval,
        coherence_bits=state.coherence_bits,
        purity=state.purity,
        effective_rank=state.effective_rank,
        compression_ratio=4 * dim * len(items) / held,
        fidelity=1.0 - float(items.infidelity.sum(dtype=np.float64)) / len(items),
        fidelity_bound=1.0 - float(bound.mean()),
    )
