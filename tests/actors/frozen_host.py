"""A host in a process of its own that never stops writing: `python -m tests.actors.frozen_host FOLDER STATE`."""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path

import msgspec

from qraf.actors.encoding import EncodeQueue
from qraf.actors.host import Host
from qraf.actors.messages import Absorb, Spell
from qraf.errors import QrafError
from qraf.settings import SealSettings, SnapshotSettings
from qraf.state_orders import StateEvolve, Step
from qraf.storage.journal import Journal
from qraf.storage.seal import MasterKeys
from tests.actors.samples import encoder, topology

FLIP = Step(channel="pauli", probabilities={"Z": 0.01})
RUN = "run"


def opened(folder: Path) -> Journal:
    """The journal of a test, sealed: whatever is written twice has other bytes the second time."""
    return Journal.open(f"sqlite:///{folder / 'journal.db'}", None, MasterKeys(SealSettings(), folder / "master.key"))


def adopted(journal: Journal, folder: Path, epoch: int) -> Host:
    """A life of the host `front`."""
    host = Host(EncodeQueue(encoder), journal)
    snapshots = SnapshotSettings(url=str(folder / "snapshots"), min_items=1, every_items=1)
    host.adopt(Spell("front", epoch, topology(), run=RUN, snapshots=snapshots))
    return host


def main() -> None:
    """Absorb items one by one and change a state all the time; a line for each, with what became of it."""
    folder, state = Path(sys.argv[1]), sys.argv[2]
    journal = opened(folder)
    host = adopted(journal, folder, 1)
    last = 0
    for n in itertools.count():
        item = journal.items("s/ann", last, 1)[0]  # from the first one on, also of those that come meanwhile
        last = item.seq if journal.items("s/ann", item.seq, 1) else item.seq - 1
        item = msgspec.structs.replace(item, codes=None, code=None)  # as a gateway sends what it has committed
        [figures] = host.absorb(1, [Absorb("desk", "s/ann", (item,))])
        [answer] = host.states(1, [StateEvolve(ids=(state,), steps=(FLIP,))])
        told = [str(one) if isinstance(one, QrafError) else "done" for one in (figures, answer)]
        codes, is_keeping = host._codes.failed, host._keeper is not None and host._keeper._thread.is_alive()
        print(n, *told, codes, is_keeping, sep="|", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    main()
