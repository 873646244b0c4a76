"""`qraf usage` and `qraf audit`, by a server and on the journal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qraf.cli.app import app
from qraf.storage.journal import Journal
from qraf.storage.keys import AuditRecord
from tests.client.served import served
from tests.openai_server import OpenAIServer

pytestmark = pytest.mark.slow  # all of them together


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OpenAIServer() as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_usage_is_told_by_day_and_key(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Nuts are bad for Ann.")
    assert call("write", "ann", str(tmp_path / "a.txt"), "--url", url).exit_code == 0
    *days, last = lines(call("usage", "--url", url, "--json"))
    assert [day["items"] for day in days] == [1]
    assert last["total"]["items"] == 1  # type: ignore[index]
    assert {one["policy"]: one["used"] for one in last["quotas"]}["key.items"] == 1  # type: ignore[attr-defined]
    table = call("usage", "--url", url).stdout
    assert "key.items: 1 of 50,000,000" in table
    assert lines(call("usage", "--from", "2020-01-01", "--to", "2020-02-01", "--url", url, "--json"))[:-1] == []
    assert call("usage", "--from", "yesterday", "--url", url).exit_code == 1


def test_the_audit_log_is_listed_and_verified(url: str) -> None:
    made = lines(call("keys", "create", "--url", url, "--json"))[0]
    listed = lines(call("audit", "list", "--url", url, "--json"))
    assert [(one["action"], one["target"]) for one in listed] == [("keys.create", made["key"])]
    found = lines(call("audit", "verify", "--url", url, "--json"))[0]
    assert (found["broken"], found["lines"]) == (None, 1)
    told = call("audit", "list", "--url", url).stdout
    assert str(listed[0]["at"])[:10] in told  # whole in a terminal of 80, as is what was done
    assert "keys.create" in told
    assert "1 lines, all as they were written" in call("audit", "verify", "--url", url).stdout


def test_where_there_is_no_journal_nothing_is_verified_or_made(tmp_path: Path) -> None:
    for command in (("audit", "verify"), ("keys", "list"), ("keys", "revoke", "x"), ("tenants",)):
        told = call(*command, "--data", str(tmp_path / "typo"))
        assert (told.exit_code, "no journal in" in told.stderr) == (1, True), command
    assert not (tmp_path / "typo").exists()


def test_a_line_that_was_changed_in_the_file_is_named(tmp_path: Path) -> None:
    journal = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    line = AuditRecord(at=1.0, tenant="acme", subject="key:a", action="keys.create", target="b", outcome="done")
    journal.keys.note([line, line, line])
    journal.close()
    verify = ("audit", "verify", "--data", str(tmp_path))
    head = call(*verify).stdout.split("head: ")[1].strip()
    assert call(*verify, "--head", head).exit_code == 0
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("DELETE FROM audit WHERE seq = 3")
    assert call(*verify).exit_code == 0
    cut = call(*verify, "--head", head)
    assert (cut.exit_code, "line 3 was changed" in cut.stdout) == (1, True)
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("UPDATE audit SET subject = 'key:z' WHERE seq = 2")
    changed = call(*verify)
    assert (changed.exit_code, "line 2 was changed" in changed.stdout) == (1, True)
