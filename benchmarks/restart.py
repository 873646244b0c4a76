"""How much sooner is a memory back from a snapshot than from the journal's stored codes?

    OMP_NUM_THREADS=1 python -m benchmarks.restart [--items N ...] [--rounds N] [--json OUT]

A session's memory of N pieces of text (docstrings of the standard library, over and over), int4, in a sealed SQLite
journal. Measured are the CPU seconds of everything from an empty node to the memory's figures. Both
ways alternate; the medians are compared, and a recall of all items gives the same scores bit for bit, or this fails.
Amplitudes are random unit rows, because neither way encodes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import device_line, print_table, write_json
from benchmarks.write import texts
from qraf.actors.node import Node
from qraf.actors.snapshots import Snapshots
from qraf.clock import SystemClock
from qraf.network.topology import HostSpec, NodeSpec, Topology
from qraf.records import RecallQuery
from qraf.settings import SealSettings, SnapshotSettings
from qraf.storage.journal import Journal
from qraf.storage.records import Draft
from qraf.storage.seal import MasterKeys
from qraf.text.prepare import prepare

DIM = 384
NOTES = NodeSpec("notes", "memory", "one", sessions=True)
TOPOLOGY = Topology("bench", {"one": HostSpec("one")}, {"notes": NOTES}, (), "notes")
QUERY = RecallQuery(prepare("which file is read as text", (), np.eye(DIM, dtype=np.float32)[0]), k=1_000_000)


class _Encode:
    name, dim = "random", DIM

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.random.default_rng(len(texts[0])).standard_normal((len(texts), DIM))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def measured(count: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of both ways, of making the snapshot, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(
            f"sqlite:///{folder}/journal.db", None, MasterKeys(SealSettings(), Path(folder) / "master.key")
        )
        drafts = (Draft(item_id=str(n), text=text, at=float(n)) for n, text in enumerate(_texts(count)))
        while chunk := list(itertools.islice(drafts, 500)):
            journal.commit("s/ann", chunk)
        snapshots = Snapshots(journal, SnapshotSettings(url=f"{folder}/snapshots"), None, SystemClock())

        def node(with_snapshots: bool) -> Node:
            return Node(NOTES, TOPOLOGY, _Encode(), journal, snapshots=snapshots if with_snapshots else None)

        first = node(True)
        wanted, best = first.figures("s/ann"), first.recall("s/ann", [QUERY])
        start = time.process_time()
        assert first.snapshot("s/ann")
        making_s = time.process_time() - start
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for way in (False, True):
                start = time.process_time()
                found = node(way)
                figures = found.figures("s/ann")
                took[way].append(time.process_time() - start)
                assert found.recall("s/ann", [QUERY]) == best
                assert abs(figures.entropy_bits - wanted.entropy_bits) < 1e-6
        assert snapshots.stats.restored == rounds
        size = snapshots.stats.bytes
        journal.close()
    journal_s, snapshot_s = (statistics.median(took[way]) for way in (False, True))
    return {
        "items": count,
        "journal_s": journal_s,
        "snapshot_s": snapshot_s,
        "ratio": journal_s / snapshot_s,
        "making_s": making_s,
        "bytes": size,
    }


def _texts(count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(texts(min(count, 2000))), count))


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[500, 5000, 20_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    rows = [measured(count, options.rounds) for count in options.items]
    print(device_line())
    columns = ("items", "journal_s", "snapshot_s", "ratio", "making_s", "bytes")
    print_table("A memory is back", columns, [[row[name] for name in columns] for row in rows])
    if options.json:
        write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
