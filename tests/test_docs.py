"""What the documents show works: doctests of every module, and the programs of README.md and docs/."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.serving import Served, served
from tests.openai_server import OpenAIServer, Script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def with_doctests() -> list[str]:
    sources = sorted((ROOT / "qraf").rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources if ">>> " in path.read_text()]


def programs() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, match in enumerate(re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1):
            found.append((f"{page.relative_to(ROOT)}#{number}", match.group(1)))
    return found


@pytest.mark.parametrize("name", with_doctests())
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        OpenAIServer(Script(words=("Nuts", ", Ana", "."), num_tokens=3)) as model,
        served(tmp_path_factory.mktemp("served"), model.endpoint.url, runtime="local") as server,
    ):
        yield server


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("place", "program"), programs(), ids=[place for place, _ in programs()])
def test_programs_run(place: str, program: str, server: Served) -> None:
    program = program.replace("127.0.0.1:8642", server.url.removeprefix("http://"))
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "QRAF_API_KEY": server.bearer.removeprefix("Bearer ")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
