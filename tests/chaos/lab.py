"""What is killed: `qraf serve` under a service manager, with or without a Ray of its own, over a journal of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from sqlalchemy.engine import make_url

from tests import postgres
from tests.end_to_end.serving import TOPOLOGY
from tests.ray_fixture import ENVIRONMENT

START_S = 120.0


class Lab:
    """A server on a fixed port that is started again whenever it ends. `kill` returns the pid that it killed."""

    def __init__(self, folder: Path, model_url: str, *, journal_url: str, cluster: str, encoder: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self.process: subprocess.Popen[str] | None = None
        self._folder, self._journal_url, self._bearer = folder, journal_url, ""
        topology = folder / "topology.yaml"
        topology.write_text(TOPOLOGY.format(url=model_url) + f"defaults: {{encoder: {encoder}, rank: 16, bits: 4}}\n")
        self._command = [
            *(sys.executable, "-m", "qraf.cli", "serve", "--json", "--port", str(self.port)),
            *("--topology", str(topology), "--data", str(folder / "data"), "--runtime", "ray"),
        ]
        self._environment = os.environ | ENVIRONMENT | {"QRAF_ENCODER__NAME": encoder, "QRAF_JOURNAL_URL": journal_url}
        if cluster:
            self._environment["QRAF_RUNTIME__ADDRESS"] = cluster
        self._is_stopping = False
        self._ready = threading.Event()
        self._manager = threading.Thread(target=self._manage, name="service manager")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._manager.start()
        if not self._ready.wait(START_S):
            raise RuntimeError(f"the server did not start; see {self._folder / 'gateway.log'}")

    def stop(self) -> int | None:
        """SIGTERM; its exit code."""
        self._is_stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._manager.join(60)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        return None if self.process is None else self.process.wait(10)

    def processes(self) -> dict[str, int]:
        """The pids of its parts."""
        told = httpx.get(f"{self.url}/health", headers={"Authorization": self._bearer}, trust_env=False, timeout=10)
        return {one["what"]: one["pid"] for one in told.json()["processes"]}

    def kill(self, what: str) -> str:
        """kill -9 of `host`, `supervisor` or `gateway`; of `postgres`, every connection that the server has."""
        if what == "postgres":
            return f"{_terminate(self._journal_url)} connections"
        if what == "gateway":
            assert self.process is not None
            pid = self.process.pid
        else:
            names = self.processes()
            pid = names.get(what) or next(pid for name, pid in names.items() if name.startswith(f"{what} "))
        os.kill(pid, signal.SIGKILL)
        return str(pid)

    def _manage(self) -> None:
        with (self._folder / "gateway.log").open("a") as log:
            while not self._is_stopping:
                self.starts += 1
                self.process = subprocess.Popen(
                    self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
                )
                assert self.process.stdout is not None
                for line in self.process.stdout:
                    log.write(f"stdout: {line}")
                    told: dict[str, Any] = json.loads(line)  # nothing else may stand there, whatever dies
                    if "url" in told:
                        self._bearer = f"Bearer {Path(told['key_file']).read_text().strip()}"
                        self._ready.set()
                log.write(f"-- ended with {self.process.wait()}\n")
                log.flush()
                time.sleep(0.2)


@contextlib.contextmanager
def ray_head(folder: Path) -> Iterator[str]:
    """A Ray of its own for the block; its address. It and all that runs in it ends with the block."""
    port = free_port()
    short = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)  # its sockets' paths are bounded
    ports = ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=8", "--include-dashboard=false"),
        *(f"--object-store-memory={96 * 2**20}", f"--temp-dir={short.name}"),
        *(f"--{name}={free_port()}" for name in ports),
    ]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
    try:
        until = time.monotonic() + START_S
        while "Ray runtime started" not in (folder / "ray.log").read_text():
            if head.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Ray did not start: {(folder / 'ray.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            _, alive = psutil.wait_procs(family, timeout=10)
            for one in alive:
                with contextlib.suppress(psutil.Error):
                    one.kill()
        head.kill()
        head.wait()
        short.cleanup()


@contextlib.contextmanager
def journal(folder: Path, *, on_postgres: bool) -> Iterator[str]:
    """The URL of an empty journal; on PostgreSQL its connections can be told from those of others."""
    if not on_postgres:
        yield f"sqlite:///{folder / 'data' / 'journal.db'}"
        return
    with postgres.schema() as url:
        name = f"qraf-chaos-{os.getpid()}"
        yield make_url(url).update_query_dict({"application_name": name}).render_as_string(hide_password=False)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _terminate(url: str) -> int:
    name = make_url(url).query["application_name"]
    with psycopg.connect(postgres.SERVER, autocommit=True) as connection:
        query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s"
        row = connection.execute(query, (name,)).fetchone()
    assert row is not None
    return int(row[0])
