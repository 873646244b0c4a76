from __future__ import annotations

from qraf.frames import NodeView
from qraf.sessions.meters import Meters


def corrections(meters: Meters) -> float | None:
    return meters.registry.get_sample_value("qraf_corrections_total", {"kind": "codes"})


def test_corrections_of_nodes_add_up_over_looks_and_restarts() -> None:
    meters = Meters()
    for epoch, counts, want in ((1, (0, 2), 2), (1, (3, 2), 5), (2, (0, 0), 5), (2, (4, 0), 9), (2, (4, 0), 9)):
        views = (NodeView(node=f"n{i}", role="memory", epoch=epoch, corrected=n) for i, n in enumerate(counts))
        meters.see(tuple(views))
        assert corrections(meters) == want
