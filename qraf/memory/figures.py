"""The figures of a memory, from its items and its fold."""

from __future__ import annotations

import msgspec
import numpy as np

from qraf.memory.items import Items
from qraf.memory.state import Fold
from qraf.records import Figures
from qraf.states.figures import exact_figures, memory_figures

__all__ = ["figures_of"]


def figures_of(items: Items, fold: Fold, version: int, max_bytes: int | None, evicted: int) -> Figures:
    """What the state measures; exact while nothing is folded, afterwards the sketch's figures with its certificate.

    The fidelity is the mean over the items held of what was measured when each was coded: it travels behind the codes,
    2 bytes an item, so a rebuilt memory knows it too; steps down since then are multiplied in (`tiers`). float16
    values add up exactly in float64, in any order.
    """
    coded = items.coded
    tiers = {str(bits): count for bits, count in zip(coded.ladder, coded.counts(), strict=True)}
    known = Figures(version=version, bits=coded.ladder[0], tiers={**tiers, "evicted": evicted}, budget_bytes=max_bytes)
    if not len(items):
        return known
    rows = fold.open_rows(items)
    state = memory_figures(fold.sketch(items)) if rows is None else exact_figures(*rows)
    held = items.nbytes + fold.nbytes
    return msgspec.structs.replace(
        known,
        items=len(items),
        bytes=held,
        rank=state.rank,
        entropy_bits=state.entropy_bits,
        entropy_interval=state.entropy_interval,
        coherence_bits=state.coherence_bits,
        purity=state.purity,
        effective_rank=state.effective_rank,
        compression_ratio=4 * coded.dim * len(items) / held,
        fidelity=1.0 - float(items.infidelity.sum(dtype=np.float64)) / len(items),
        fidelity_bound=1.0 - float(items.guaranteed.sum(dtype=np.float64)) / len(items),
    )
