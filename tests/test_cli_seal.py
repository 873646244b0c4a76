"""`qraf keys rotate` on a journal that another process has open, and what it says when there is nothing to rotate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qraf.cli.app import app
from qraf.settings import SealSettings
from qraf.storage.journal import Draft, Journal
from qraf.storage.seal import MasterKeys


def rotate(data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["keys", "rotate", "--data", str(data), *options])


def test_the_master_key_is_changed_under_an_open_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    journal = Journal.open(url, None, MasterKeys(SealSettings(), tmp_path / "master.key"))
    journal.commit("s/1", [Draft(item_id="a", text="one")])
    [old] = journal.masters_used()
    done = rotate(tmp_path, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["wrapped"], told["is_new"], told["dropped"]) == (2, True, 0)
    assert list(journal.masters_used()) == [told["first"]] != [old]
    shown = rotate(tmp_path, "--drop-old")
    assert shown.exit_code == 0, shown.output
    assert "2 old keys are gone" in " ".join(shown.output.split())
    assert journal.find("s/1", "a").text == "one"
    key = [line for line in (tmp_path / "master.key").read_text().splitlines() if line]
    assert len(key) == 1
    assert key[0] not in done.output + shown.output
    journal.close()


@pytest.mark.parametrize("have", [(), ("journal.db",)])
def test_without_a_journal_or_a_key_it_says_what_is_missing(tmp_path: Path, have: tuple[str, ...]) -> None:
    for name in have:
        (tmp_path / name).touch()
    done = rotate(tmp_path)
    assert done.exit_code == 1
    # lines break at the terminal's width, wherever a path is long
    assert ("master.keyisnotthere" if have else "nojournalin") in "".join(done.output.split())
