"""Chaos in a short form: `make chaos` does thirty rounds and prints a table.

A Ray of its own outlives the gateway, so that host, supervisor, gateway and PostgreSQL's connections each die alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import postgres
from tests.chaos.lab import Lab, journal, ray_head
from tests.chaos.rounds import KINDS, run
from tests.openai_server import OpenAIServer

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]


async def test_nothing_acknowledged_is_lost_and_every_response_ends_once(tmp_path: Path, model: OpenAIServer) -> None:
    on_postgres = postgres.is_there()
    (tmp_path / "data").mkdir()
    with journal(tmp_path, on_postgres=on_postgres) as url, ray_head(tmp_path) as cluster:
        lab = Lab(tmp_path, model.url, journal_url=url, cluster=cluster, encoder="wordllama")
        try:
            lab.start()
            kinds = [kind for kind in KINDS if on_postgres or kind != "postgres"]
            report = await run(lab, model, kinds, rest_s=0.5, recalls=10, say=print)
        finally:
            code = lab.stop()
    print(report.text())
    assert (report.is_good, code) == (True, 0), report.text()
    assert [one.kind for one in report.rounds] == kinds
    assert report.load.acknowledged > 100
    assert sum(report.load.ended().values()) == len(report.load.ends) > 20
    assert report.load.reconnects >= len(report.load.clients)  # all of them went on over a new socket
