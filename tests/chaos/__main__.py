"""`python -m tests.chaos`: kill -9 in turn of a host, the supervisor, the gateway and PostgreSQL's connections."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from tests.chaos.lab import Lab, journal, ray_head
from tests.chaos.rounds import KINDS, run
from tests.openai_server import OpenAIServer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is killed in turn")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds of load after a round")
    parser.add_argument("--recalls", type=int, default=200, help="items of each session that are recalled at the end")
    parser.add_argument("--encoder", default="wordllama")
    parser.add_argument("--sqlite", action="store_true", help="a journal in a file; PostgreSQL is not killed then")
    parser.add_argument("--embedded", action="store_true", help="the server starts its Ray, which dies with it")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of the processes")
    asked = parser.parse_args()
    kinds = [kind for kind in asked.kinds.split(",") if not (asked.sqlite and kind == "postgres")]
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = asked.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qraf-chaos-")))
        (folder / "data").mkdir(parents=True, exist_ok=True)
        model = stack.enter_context(OpenAIServer())
        url = stack.enter_context(journal(folder, on_postgres=not asked.sqlite))
        cluster = "" if asked.embedded else stack.enter_context(ray_head(folder))
        lab = Lab(folder, model.url, journal_url=url, cluster=cluster, encoder=asked.encoder)
        stack.callback(lab.stop)
        lab.start()
        chosen = list(islice(cycle(kinds), asked.rounds))
        report = asyncio.run(run(lab, model, chosen, rest_s=asked.rest, recalls=asked.recalls, say=_say))
        code = lab.stop()
    print(f"\n{report.text()}\nthe server ended with {code}; {time.monotonic() - begun:.0f} s")
    return 0 if report.is_good and code == 0 else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
