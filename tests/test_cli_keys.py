"""`qraf keys` and `qraf tenants`, by a server and on the journal; and how a client finds the key of its server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qraf.cli import access
from qraf.cli.app import app
from qraf.cli.serve import make_settings
from qraf.client.credentials import announce, find_key, withdraw
from qraf.errors import NotAllowed
from qraf.storage.journal import Journal
from tests.client.served import served
from tests.openai_server import OpenAIServer

pytestmark = pytest.mark.slow  # all of them together

URL = "ws://127.0.0.1:8642"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OpenAIServer() as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


@pytest.fixture(params=["server", "journal"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return ["--data", str(tmp_path)] if request.param == "journal" else ["--url", request.getfixturevalue("url")]


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_keys_are_made_listed_and_revoked(where: list[str]) -> None:
    options = ["--role", "viewer", "--tenant", "acme", "--name", "a page", "--ttl-s", "60", "--scope", "memory:read"]
    made = lines(call("keys", "create", *options, *where, "--json"))[0]
    text = str(made["api_key"])
    assert text.startswith(f"qraf_{made['key']}_")
    assert (made["tenant"], made["role"], made["scopes"]) == ("acme", "viewer", ["memory:read"])
    listed = lines(call("keys", "list", *where, "--json"))
    assert [one["status"] for one in listed if one["key"] == made["key"]] == ["active"]
    assert not any("api_key" in one for one in listed)
    assert text not in call("keys", "list", *where).stdout
    assert lines(call("keys", "revoke", text, *where, "--json"))[0]["status"] == "revoked"  # the whole key does too
    assert "is revoked" in call("keys", "revoke", str(made["key"]), *where).stdout
    tenants = {one["tenant"]: one for one in lines(call("tenants", *where, "--json"))}
    assert tenants["acme"]["active_keys"] == 0
    assert "acme" in call("tenants", *where).stdout


def test_a_new_key_is_printed_whole_and_alone_on_its_line(tmp_path: Path) -> None:
    told = call("keys", "create", "--data", str(tmp_path))
    first = told.stdout.splitlines()[0]
    assert first.startswith("qraf_")
    assert len(first) == 5 + 12 + 1 + 43


def test_faults_are_told(where: list[str]) -> None:
    told = json.loads(call("keys", "create", "--role", "root", *where, "--json").stdout)
    assert told["error"]["pointer"] == "/role"
    told = json.loads(call("keys", "revoke", "none", *where, "--json").stdout)
    assert told["error"]["code"] == "not_found"


def test_every_command_brings_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = lines(call("keys", "create", "--role", "admin", "--data", str(tmp_path), "--json"))[0]
    commands = ["sessions list", "recall nuts", "topology route nuts", "usage", "audit list", "keys list", "tenants"]
    commands += ["state list", "operations list"]
    with OpenAIServer() as model, served(model, tmp_path, "on") as url:
        monkeypatch.setenv("QRAF_API_KEY", "")
        for command in commands:
            told = call(*command.split(), "--url", url, "--json")
            assert (command, told.exit_code, "not_authenticated" in told.stdout) == (command, 1, True)
        monkeypatch.setenv("QRAF_API_KEY", str(made["api_key"]))
        for command in commands:
            told = call(*command.split(), "--url", url, "--json")
            assert (command, told.exit_code) == (command, 0), told.output


# ------------------------------------------------------------------------------------------------------ serve
async def test_the_key_of_this_machine_is_kept_and_made_anew_when_it_opens_nothing(tmp_path: Path) -> None:
    settings = make_settings(data=tmp_path)
    journal = Journal.open(settings.journal())
    try:
        first = await access.local_key(settings, journal)
        assert first is not None
        assert stat.S_IMODE(first.file.stat().st_mode) == 0o600
        assert first.file.read_text().strip() == first.text
        first.file.chmod(0o644)
        kept = await access.local_key(settings, journal)
        assert kept is not None
        assert kept.text == ""
        assert stat.S_IMODE(first.file.stat().st_mode) == 0o600
        journal.keys.revoke(first.text.split("_")[1], None, 1.0)
        again = await access.local_key(settings, journal)
        assert again is not None
        assert again.text not in ("", first.text)
        assert await access.local_key(make_settings(data=tmp_path, auth="off"), journal) is None
    finally:
        journal.close()


def test_nobody_serves_the_network_without_keys(tmp_path: Path) -> None:
    settings = make_settings(data=tmp_path, host="0.0.0.0", behind_proxy=True)
    journal = Journal.open(settings.journal())
    try:
        access.check_listening(settings)
        with pytest.raises(NotAllowed, match="qraf keys create"):
            access.check_somebody_can_enter(settings, journal, 0.0)
        assert call("keys", "create", "--role", "admin", "--data", str(tmp_path)).exit_code == 0
        access.check_somebody_can_enter(settings, journal, 0.0)
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--behind-proxy"),
        (["--host", "0.0.0.0", "--no-auth"], "without authentication"),
        (["--host", "0.0.0.0", "--no-auth", "--behind-proxy"], "without authentication"),
        (["--tls-cert", "x.pem"], "go together"),
        (["--tls-cert", "x.pem", "--tls-key", "x.pem"], "there is no file 'x.pem'"),
        (["--tls-cert", __file__, "--tls-key", __file__], "must be PEM files"),
    ],
)
def test_serve_refuses_before_anything_starts(tmp_path: Path, options: list[str], said: str) -> None:
    told = call("serve", *options, "--data", str(tmp_path / "none"), "--json")
    assert told.exit_code == 1
    assert said in json.loads(told.stdout)["error"]["detail"]
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------- found unasked
@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("QRAF_API_KEY", raising=False)
    key = tmp_path / "api-key"
    key.write_text("qraf_of_this_machine\n")
    key.chmod(0o600)
    return key


def test_a_client_finds_the_key_of_a_server_that_runs_here(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key(URL) is None
    announce("http://127.0.0.1:8642", private)
    assert find_key(URL) == find_key("localhost:8642") == "qraf_of_this_machine"
    assert find_key("ws://127.0.0.1:9999") is None
    assert find_key("wss://memory.example:8642") is None
    assert find_key(URL, "given") == "given"
    monkeypatch.setenv("QRAF_API_KEY", "from the environment")
    assert find_key(URL) == "from the environment"
    monkeypatch.setenv("QRAF_API_KEY", "")
    assert find_key(URL) is None
    monkeypatch.delenv("QRAF_API_KEY")
    withdraw("http://127.0.0.1:8642")
    withdraw("http://127.0.0.1:8642")
    assert find_key(URL) is None


def test_a_key_that_others_could_read_or_of_a_server_that_died_is_not_shown(private: Path) -> None:
    announce("http://127.0.0.1:8642", private)
    private.chmod(0o644)
    assert find_key(URL) is None
    private.chmod(0o600)
    assert find_key(URL) is not None
    notice = next((private.parent / "qraf" / "servers").iterdir())
    assert stat.S_IMODE(notice.stat().st_mode) == 0o600
    assert "qraf_of" not in notice.read_text()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    notice.write_text(json.dumps({"pid": child.pid, "key_file": str(private)}))
    assert find_key(URL) is None
    withdraw("http://127.0.0.1:8642")  # another process announced it
    assert notice.exists()
