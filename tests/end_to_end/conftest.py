from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.openai_server import OpenAIServer, Script


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer(Script(words=("Nuts", ",", " Ana", "."), num_tokens=4)) as server:
        yield server
