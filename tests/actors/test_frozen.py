"""A host that was only frozen writes nothing once its successor has started."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from qraf.errors import NodeDown
from qraf.state_orders import Preparation, StateEvolve, StatePrepare, StateViews
from qraf.storage.journal import Journal
from tests.actors.frozen_host import FLIP, adopted, opened
from tests.actors.samples import commit, visit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]  # processes that load torch


def everything(journal: Journal, folder: Path) -> dict[str, object]:
    """All that a host can write: every row of its tables, and every file."""
    tables = ("items", "codes", "states", "snapshots", "fences", "runs")
    with journal._read("look") as connection:
        held: dict[str, object] = {name: connection.execute(text(f"SELECT * FROM {name}")).all() for name in tables}
    for path in (folder / "snapshots").rglob("*"):
        if path.is_file():
            held[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return held


def test_a_frozen_host_that_goes_on_writes_nothing_after_its_successor_started(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    commit(journal, "s/ann", [f"fact {n}" for n in range(40)])
    first = adopted(journal, tmp_path, 1)
    [made] = first.states(1, [StatePrepare(states=(Preparation(named="plus:1"),))])
    assert isinstance(made, StateViews)
    state = made.states[0].id
    first.close()
    command = [sys.executable, "-m", "tests.actors.frozen_host", str(tmp_path), state]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("w"), text=True, cwd=Path.cwd()
    )
    told: queue.Queue[list[str]] = queue.Queue()
    assert child.stdout is not None
    lines = child.stdout
    reader = threading.Thread(target=lambda: [told.put(line.strip().split("|")) for line in lines], daemon=True)
    reader.start()
    try:
        for n in range(20):
            assert told.get(timeout=60)[:3] == [str(n), "done", "done"]
        with journal._write("hold the pen"):  # so it is not in the middle of a write, but waits to begin one
            os.kill(child.pid, signal.SIGSTOP)
        while not told.empty():
            assert told.get()[2] == "done"
        commit(journal, "s/ann", [f"fact {n}" for n in range(40, 60)], "later-")

        successor = adopted(journal, tmp_path, 2)
        with pytest.raises(NodeDown, match="stale epoch 1"):
            successor.figures(1, "desk", "s/ann")
        [answer] = successor.recall(2, [visit("desk", "s/ann", "fact", k=100)], frozenset())
        assert (answer.items_scanned, len({one.seq for one in answer.evidence})) == (60, 60)  # none lost, none twice
        [changed] = successor.states(2, [StateEvolve(ids=(state,), steps=(FLIP,))])
        assert isinstance(changed, StateViews)
        successor.close()
        before = everything(journal, tmp_path)
        assert len(before["codes"]) == 60  # type: ignore[arg-type]
        assert before["snapshots"]

        os.kill(child.pid, signal.SIGCONT)
        late = [told.get(timeout=30)]
        while len(late) < 60 or late[-1][4] == "True":  # the last one says whether it still makes snapshots
            late.append(told.get(timeout=30))
        assert "stale epoch 1: a successor writes in epoch 2" in late[0][2]  # what waited to be written when it froze
        assert all("stale epoch 1" in one[2] for one in late)
        assert int(late[-1][3]) == 20  # codes that it has made of what was written while it stood still
        assert everything(journal, tmp_path) == before
        assert journal.states.versions([state]) == {state: changed.states[0].version}
    finally:
        child.kill()
        child.wait(10)
        journal.close()
    assert "no more snapshots from here: node 'front' is down: stale epoch 1" in (tmp_path / "log").read_text()
