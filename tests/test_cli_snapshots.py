"""`qraf snapshots` beside whatever server there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from qraf.cli.app import app
from qraf.settings import SealSettings
from qraf.storage.journal import Draft, Journal
from qraf.storage.seal import MasterKeys
from qraf.storage.snapshot_files import SnapshotStore, body_of, sealed
from qraf.storage.snapshots import Snapshot
from tests.client.served import served
from tests.openai_server import OpenAIServer


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
    assert (whole.exit_code, whole.output.split()[0], "whole" in whole.output) == (0, "state", True)
    [path] = (tmp_path / "snapshots").rglob(f"{made}.snapshot")
    path.write_bytes(path.read_bytes()[:-1])
    torn = call("verify", tmp_path, "--json")
    assert torn.exit_code == 1
    assert "match its checksum" in json.loads(torn.stdout)["fault"]
    told = call("verify", tmp_path).output
    assert ("broken" in told, f"{made}: `snapshot` must match its checksum" in told) == (True, True)
    journal.close()


@pytest.mark.slow
def test_snapshots_are_made_by_order_and_an_order_again_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QRAF_SNAPSHOTS__MIN_ITEMS", "2")
    for name in ("nuts", "milk", "bread"):
        (tmp_path / f"{name}.txt").write_text(f"There is {name}.")

    def run(*args: str) -> Result:
        return CliRunner().invoke(app, [*args, "--url", url])

    def write(session: str, *names: str) -> None:
        for name in names:
            assert run("write", session, str(tmp_path / f"{name}.txt")).exit_code == 0

    def make_(*args: str) -> tuple[int, dict[str, object]]:
        done = run("snapshots", "make", "--json", *args)
        return done.exit_code, json.loads(done.stdout)

    data = tmp_path / "data"
    with OpenAIServer() as model, served(model, data) as url:
        write("ann", "nuts")
        assert make_() == (0, {"made": 0, "unchanged": 0, "failed": 0, "reason": ""})  # it is small
        assert make_("--session", "ann") == (0, {"made": 1, "unchanged": 0, "failed": 0, "reason": ""})
        assert make_("--session", "ann") == (0, {"made": 0, "unchanged": 1, "failed": 0, "reason": ""})
        for name in ("ben", "cy"):
            write(name, "nuts", "milk")
        told = run("snapshots", "make")
        assert (told.exit_code, told.stdout) == (0, "2 made, 0 unchanged, 0 failed\n")
        listed = [json.loads(line)["memory"] for line in call("list", data, "--json").stdout.splitlines()]
        assert listed == ["s/ann", "s/ben", "s/cy"]
        assert call("verify", data).exit_code == 0
        code, fault = make_("--session", "nobody")
        assert (code, fault["error"]["code"]) == (1, "session_not_found")  # type: ignore[index]
        (data / "snapshots").rename(data / "elsewhere")
        (data / "snapshots").write_text("no directory")
        write("ben", "bread")
        code, done = make_()
        assert (code, done["made"], done["failed"], "snapshot" in str(done["reason"])) == (1, 0, 1, True)
    assert run("snapshots", "make").exit_code == 3  # nobody is there any more


def test_without_a_journal_it_says_so(tmp_path: Path) -> None:
    done = call("list", tmp_path)
    assert done.exit_code == 1
    assert "nojournalin" in "".join(done.output.split())
