"""`qraf snapshots` beside whatever server there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner, Result

from qraf.cli.app import app
from qraf.settings import SealSettings
from qraf.storage.journal import Draft, Journal
from qraf.storage.seal import MasterKeys
from qraf.storage.snapshot_files import SnapshotStore, body_of, sealed
from qraf.storage.snapshots import Snapshot


def call(verb: str, data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["snapshots", verb, "--data", str(data), *options])


def make(journal: Journal, folder: Path) -> str:
    store = SnapshotStore(str(folder / "snapshots"))
    [one] = journal.commit("s/ann", [Draft(item_id="a", text="x")])
    wanted = Snapshot(
        memory="s/ann", node="desk", store=store.make(), fit="f", through=one.seq, last_seq=one.seq, items=1
    )
    begun = journal.snapshots.begin(wanted, np.array([one.seq]), None)
    assert begun is not None
    made, key = begun
    buffers, size = body_of(({"memory": "s/ann"}, {"seq": np.array([one.seq])}))
    digest, written = store.write(made.id, sealed(buffers, size, key, made.belongs()))
    assert journal.snapshots.finish(made, digest, written, 2, None)
    return made.id


def test_snapshots_are_listed_and_one_that_is_damaged_fails_the_check(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(url, None, MasterKeys(SealSettings(), tmp_path / "master.key"))
    assert "no snapshots" in call("list", tmp_path).output
    made = make(journal, tmp_path)
    [listed] = [json.loads(line) for line in call("list", tmp_path, "--json").stdout.splitlines()]
    assert (listed["id"], listed["memory"], listed["items"], "fault" in listed) == (made, "s/ann", 1, False)
    whole = call("verify", tmp_path)
    assert (whole.exit_code, "whole" in whole.output) == (0, True)
    [path] = (tmp_path / "snapshots").rglob(f"{made}.snapshot")
    path.write_bytes(path.read_bytes()[:-1])
    torn = call("verify", tmp_path, "--json")
    assert torn.exit_code == 1
    assert "match its checksum" in json.loads(torn.stdout)["fault"]
    journal.close()


def test_without_a_journal_it_says_so(tmp_path: Path) -> None:
    done = call("list", tmp_path)
    assert done.exit_code == 1
    assert "nojournalin" in "".join(done.output.split())
