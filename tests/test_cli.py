from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import qraf
from qraf.cli.app import app
from qraf.cli.write import read_items
from qraf.errors import InvalidRequest
from tests.client.served import LAB, served
from tests.openai_server import OpenAIServer, Script

pytestmark = pytest.mark.slow  # a whole service, or processes

NOBODY = "ws://127.0.0.1:9"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    script = Script(words=("It", " is", " Pixel", "."), num_tokens=4)
    with OpenAIServer(script) as model, served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url


def call(*args: str, input: str | None = None, url: str | None = None) -> Result:
    return CliRunner().invoke(app, [*args, *(["--url", url] if url else [])], input=input)


def test_version() -> None:
    assert call("version").output.strip() == call("--version").output.strip() == qraf.__version__
    assert json.loads(call("version", "--json").output) == {"version": qraf.__version__}


def test_help_imports_no_server() -> None:
    heavy = ("torch", "ray", "fastapi", "sqlalchemy", "networkx", "numpy", "httpx", "websockets", "pydantic")
    code = f"import sys, qraf.cli.app; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        ("recall", "x", "-c", "notes"),
        ("write", "kitchen", "-"),
        ("sessions", "list"),
        ("sessions", "delete", "x", "--yes"),
        ("chat", "--session", "x"),
    ],
)
def test_no_server_is_exit_code_3_and_says_what_to_do(args: tuple[str, ...]) -> None:
    result = call(*args, url=NOBODY)
    assert result.exit_code == 3, result.output
    assert "no server at" in result.stderr
    assert "qraf serve" in result.stderr
    told = json.loads(call(*args, "--json", url=NOBODY).stdout)
    assert told["error"]["code"] == "cannot_connect"


@pytest.mark.parametrize(
    "args",
    [
        ("write",),
        ("write", "kitchen", "no-such-file.txt"),
        ("write", "kitchen", "--format", "xml"),
        ("recall",),
        ("nothing",),
        ("recall", "x", "-k", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    assert call(*args).exit_code == 2


def test_write_then_recall(url: str, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "The parrot is called Pixel.", "speaker": "Ann"}\n\n"The cat is called Byte."\n')
    result = call("write", "pets", str(file), "--json", url=url)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["accepted"] == 2
    table = call("recall", "What is the parrot called?", "--session", "pets", url=url)
    assert table.exit_code == 0
    assert table.output.index("Pixel") < table.output.index("Byte")
    (found, *_) = json.loads(call("recall", "parrot", "-s", "pets", "-k", "1", "--json", url=url).output)["evidence"]
    assert (found["text"], found["speaker"]) == ("The parrot is called Pixel.", "Ann")


def test_lines_of_standard_input_go_into_a_collection(url: str) -> None:
    result = call("write", "--collection", "papers", input="Ducks quack.\n\nDogs bark.\n", url=url)
    assert result.exit_code == 0, result.output
    assert "2 written" in result.stdout
    found = call("recall", "What do ducks do?", "--json", url=url)  # every collection
    assert json.loads(found.output)["evidence"][0]["text"] == "Ducks quack."
    explained = call("recall", "What do ducks do?", "--explain", url=url).output
    assert "route" in explained
    assert "dense" in explained


def test_refused_request_is_exit_code_1(url: str) -> None:
    result = call("recall", "x", "-c", "nowhere", url=url)
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert json.loads(call("recall", "x", "-c", "nowhere", "--json", url=url).stdout)["error"]["detail"]


def test_sessions_are_listed_shown_and_deleted(url: str) -> None:
    assert call("write", "short-lived", "-", input="hello\n", url=url).exit_code == 0
    assert "short-lived" in call("sessions", "list", url=url).output
    lines = call("sessions", "list", "--json", url=url).output.splitlines()
    assert "short-lived" in {json.loads(line)["session"] for line in lines}
    assert json.loads(call("sessions", "show", "short-lived", "--json", url=url).output)["state"]["items"] == 1
    assert "short-lived" in call("sessions", "show", "short-lived", url=url).output
    assert call("sessions", "delete", "short-lived", input="n\n", url=url).exit_code == 1
    assert call("sessions", "delete", "short-lived", "--yes", url=url).exit_code == 0
    assert call("sessions", "show", "short-lived", url=url).exit_code == 1


def test_chat_streams_and_answers_commands(url: str) -> None:
    assert call("write", "talk", "-", input="The parrot is called Pixel.\n", url=url).exit_code == 0
    said = "What is the parrot called?\n/evidence\n/route\n/states\n/recall parrot\n/session\n/help\n/quit\nignored\n"
    result = call("chat", "--session", "talk", input=said, url=url)
    assert result.exit_code == 0, result.output
    assert "It is Pixel." in result.output
    assert "route:" in result.output
    assert "relevance" in result.output
    assert "purity" in result.output
    assert "/recall TEXT" in result.output
    assert "ignored" not in result.output


def test_chat_for_machines_is_json_lines(url: str) -> None:
    result = call("chat", "--session", "machines", "--json", input="Who?\n\nAnd?\n", url=url)
    frames = [json.loads(line) for line in result.output.splitlines()]
    assert frames[0]["type"] == "session.opened"
    assert [frame["type"] for frame in frames].count("response.done") == 2


def test_bad_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(InvalidRequest, match=r"items\.jsonl:2: .*txt"):
        list(read_items(str(file), None, None, 1000))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidRequest, match="no UTF-8"):
        list(read_items(str(tmp_path / "latin.txt"), None, None, 1000))


@pytest.mark.parametrize(
    "arguments", [("write", "latin"), ("recall", os.fsdecode(b"caf\xe9"), "--collection", "papers")]
)
def test_bytes_that_are_no_text_are_told(arguments, url: str) -> None:
    command = [sys.executable, "-m", "qraf.cli", *arguments, "--url", url]
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr.count(b"Traceback")) == (1, 0)
    assert b"what was given is no UTF-8 text" in done.stderr


def test_long_document_is_cut_where_it_may_be(tmp_path: Path) -> None:
    file = tmp_path / "long.md"
    text = "\n\n".join(f"Paragraph {number} with an é." for number in range(200))
    file.write_text(text)
    parts = [item.text for item in read_items(str(file), None, None, 500)]
    assert "".join(part or "" for part in parts) == text
    assert all(len((part or "").encode()) <= 500 for part in parts)
    assert all((part or "").lstrip().startswith("Paragraph") for part in parts)


def serve(*args: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qraf.cli", "serve", "--json", "--port", "0", "--runtime", "local", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})


def test_serve_reports_a_bad_topology(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: 1\nname: bad\nnodes:\n  a: {role: memori}\n")
    process = serve("--topology", str(file), "--data", str(tmp_path))
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "bad.yaml:4" in json.loads(out.splitlines()[-1])["error"]["detail"]


@pytest.mark.parametrize(
    ("option", "value", "said"), [("--runtime", "nowhere", "runtime.kind"), ("--host", "0.0.0.0", "--behind-proxy")]
)
def test_serve_refuses_what_it_cannot_be(tmp_path: Path, option: str, value: str, said: str) -> None:
    result = call("serve", option, value, "--data", str(tmp_path), "--json")
    assert result.exit_code == 1
    assert said in json.loads(result.stdout.splitlines()[-1])["error"]["detail"]


def test_serve_refuses_a_data_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["serve"], ["keys", "create"]):
        result = call(*command, "--data", str(tmp_path / "file"), "--json")
        assert result.exit_code == 1, result.output
        assert "data directory" in json.loads(result.stdout.splitlines()[-1])["error"]["detail"]


@pytest.mark.model
def test_serve_answers_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with OpenAIServer(Script(words=("It", " is", " Pixel", "."), num_tokens=4)) as model:
        process = serve(
            *("--topology", str(LAB), "--data", str(tmp_path)),
            *("--generator-url", model.url, "--generator-model", "scripted"),
            QRAF_ENCODER__THREADS="1",
        )
        try:
            assert process.stdout is not None
            phases = []
            for line in process.stdout:
                told = json.loads(line)
                if "url" in told:
                    break
                phases.append(told["phase"])
            assert phases[-1] == "ready"
            with qraf.connect_sync(told["url"]) as q:
                q.open_session("pets")
                q.write("The parrot is called Pixel.", session="pets")
                answer = q.enhance("What is the parrot called?", session="pets", collections=[])
                assert "".join(answer.texts()) == "It is Pixel."
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            assert json.loads(process.stdout.read().splitlines()[-1])["phase"] == "draining"
        finally:
            process.kill()
            process.communicate()


def test_no_text_commands_the_terminal() -> None:
    from rich.table import Table

    from qraf.cli.output import console

    words = "GET /\x1b[31mred\x1b]0;title\x07\x9b2J\u202ehtap"
    table = Table("what")
    table.add_row(words)
    with console.capture() as told:
        console.print(words, markup=False)
        console.print(table)
    assert "[31mred" in told.get()
    assert not set("\x1b\x07\x9b\u202e") & set(told.get())
