from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from qraf.cli.topology import app
from qraf.network.loader import schema
from tests.network.yaml_files import GOOD, replaced

RUNNER = CliRunner()
ROUTE = {
    "hops": [
        {"node": "birds", "host": "main", "relevance": 2.5, "price": 0.1, "measured": True, "path": ["hub", "birds"],
         "why": "has 90% of the prompt's terms", "terms": {"lexical": 0.9}},
        {"node": "boats", "host": "main", "relevance": 0.2, "price": 0.1, "why": "others are worth more"},
    ],
    "predicted_ms": 2.0,
    "generator": "writer",
    "not_visited": {},
}  # fmt: skip


def test_lint_says_that_a_file_has_no_fault(tmp_path: Path):
    (tmp_path / "good.yaml").write_text(GOOD)
    done = RUNNER.invoke(app, ["lint", str(tmp_path / "good.yaml")])
    assert done.exit_code == 0
    assert "4 nodes, 4 links, 2 hosts, no fault" in done.stdout


def test_lint_tells_all_faults_of_all_files_and_exits_with_one(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(replaced(("role: generator", "role: genrator"), ("version: 1", "version: x")))
    (tmp_path / "b.yaml").write_text(replaced(("host: front", "host: frnt")))
    (tmp_path / "good.yaml").write_text(GOOD)
    files = [str(tmp_path / name) for name in ("a.yaml", "good.yaml", "b.yaml", "missing.yaml")]
    done = RUNNER.invoke(app, ["lint", *files])
    assert done.exit_code == 1
    assert [line.rpartition("/")[2].split(": ")[0] for line in done.stderr.splitlines()] == [
        "a.yaml:1:10",
        "a.yaml:11:18",
        "b.yaml:8:31",
        "missing.yaml:1:1",
    ]
    told = json.loads(RUNNER.invoke(app, ["lint", "--json", *files]).stdout)
    assert [(fault["line"], fault["column"]) for fault in told["faults"]] == [(1, 10), (11, 18), (8, 31), (1, 1)]
    assert told["faults"][2]["hint"] == "did you mean 'front'?"


def test_lint_takes_the_clusters_gpus(tmp_path: Path):
    (tmp_path / "t.yaml").write_text(replaced(("cpus: 2", "gpus: 4")))
    assert RUNNER.invoke(app, ["lint", "--gpus", "4", str(tmp_path / "t.yaml")]).exit_code == 0
    assert RUNNER.invoke(app, ["lint", "--gpus", "3", str(tmp_path / "t.yaml")]).exit_code == 1


def test_schema_and_graph_go_to_the_terminal_or_a_file(tmp_path: Path):
    (tmp_path / "t.yaml").write_text(GOOD)
    assert json.loads(RUNNER.invoke(app, ["schema"]).stdout) == schema()
    assert RUNNER.invoke(app, ["schema", "--out", str(tmp_path / "s.json")]).exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schema()
    assert ET.fromstring(RUNNER.invoke(app, ["graph", str(tmp_path / "t.yaml")]).stdout).tag.endswith("svg")
    assert RUNNER.invoke(app, ["graph", str(tmp_path / "t.yaml"), "--format", "dot"]).stdout.startswith("digraph")
    assert RUNNER.invoke(app, ["graph", str(tmp_path / "t.yaml"), "--format", "mermaid"]).stdout.startswith("flowchart")


def test_graph_of_a_faulty_file_tells_the_faults(tmp_path: Path):
    (tmp_path / "t.yaml").write_text("version: 1\n")
    done = RUNNER.invoke(app, ["graph", str(tmp_path / "t.yaml")])
    assert done.exit_code == 1
    assert "`nodes` is required" in done.stderr


class _Server(HTTPServer):
    status, body = 200, json.dumps(ROUTE).encode()
    asked: dict[str, list[str]]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        parts = urlsplit(self.path)
        server.asked = {"path": [parts.path], **parse_qs(parts.query)}
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_route_asks_the_server_and_shows_why(server: _Server):
    url = f"ws://127.0.0.1:{server.server_port}"
    done = RUNNER.invoke(app, ["route", "Which finches sing?", "--url", url, "--max-visits", "2", "--explain"])
    assert done.exit_code == 0, done.output
    assert server.asked == {
        "path": ["/v1/topology/route"],
        "prompt": ["Which finches sing?"],
        "max_visits": ["2"],
        "explain": ["true"],
    }
    for word in ("birds", "2.5", "90%", "lexical 0.9", "then to writer"):
        assert word in done.stdout
    assert json.loads(RUNNER.invoke(app, ["route", "x", "--url", url, "--json"]).stdout) == ROUTE


def test_route_passes_the_servers_error_on(server: _Server):
    server.status, server.body = 503, json.dumps({"code": "no_route", "detail": "nodes down: a"}).encode()
    url = f"http://127.0.0.1:{server.server_port}"
    done = RUNNER.invoke(app, ["route", "x", "--url", url])
    assert done.exit_code == 1
    assert "no_route" in done.stderr
    assert "nodes down: a" in done.stderr
    server.body = b"<html>"
    assert "HTTP status 503" in RUNNER.invoke(app, ["route", "x", "--url", url]).stderr


def test_route_without_a_server_says_how_to_start_one():
    done = RUNNER.invoke(app, ["route", "x", "--url", "ws://127.0.0.1:9"])
    assert done.exit_code == 3
    assert "qraf serve" in done.stderr
