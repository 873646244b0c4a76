"""A server as a user starts it, `qraf serve`, in a process group of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

TOPOLOGY = """
version: 1
name: end-to-end
hosts: {{front: {{cpus: 1}}}}
nodes:
  desk:   {{role: memory, host: front, holds: sessions}}
  shelf:  {{role: memory, host: front, holds: [manuals, notes]}}
  writer: {{role: generator, url: "{url}", model: scripted}}
links: [{{source: desk, target: [shelf, writer]}}, {{source: shelf, target: writer}}]
ingress: desk
routing: {{max_visits: 8, deadline_ms: 10000}}
"""


class Served:
    """A running `qraf serve`: where it answers, and its processes."""

    def __init__(self, url: str, process: subprocess.Popen[str], key_file: str = "") -> None:
        self.url, self.process = url, process
        self.is_killed = False
        self.bearer = f"Bearer {Path(key_file).read_text().strip()}" if key_file else ""

    def kill(self) -> None:
        """End it as a machine would: without a word."""
        self.is_killed = True
        self.process.kill()
        self.process.wait()

    def host_pid(self) -> int:
        """The process of the host that serves: the oldest of its kind; a younger one is the spare that stands by."""
        hosts: dict[float, int] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError):
                if child.cmdline()[0].startswith("ray::") and "HostActor" in child.cmdline()[0]:
                    hosts[child.create_time()] = child.pid
        return hosts[min(hosts)]


@contextlib.contextmanager
def served(
    tmp_path: Path,
    model_url: str,
    *,
    runtime: str,
    encoder: str = "wordllama",
    port: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """`qraf serve` on a free port; SIGTERM at the end, and it must end well."""
    topology = tmp_path / "topology.yaml"
    topology.write_text(TOPOLOGY.format(url=model_url) + f"defaults: {{encoder: {encoder}, rank: 16, bits: 4}}\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "qraf.cli", "serve", "--json", "--port", str(port)),
            *("--topology", str(topology), "--data", str(tmp_path / "data"), "--runtime", runtime),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "QRAF_ENCODER__NAME": encoder, **(settings or {})},
    )
    alarm = threading.Timer(90, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        ready = next((told for line in process.stdout if "url" in (told := json.loads(line))), None)
        alarm.cancel()
        assert ready is not None, f"the server ended with exit code {process.wait(10)}"
        # keep reading, so that the server never waits for a full pipe
        threading.Thread(target=process.stdout.read, daemon=True).start()
        server = Served(ready["url"], process, ready.get("key_file", ""))
        yield server
    finally:
        alarm.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0 or server.is_killed, f"the server ended with exit code {code}"
