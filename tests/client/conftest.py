from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.served import served
from tests.openai_server import OpenAIServer, Script


@pytest.fixture(scope="module")
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(autouse=True)
def plain_script(request: pytest.FixtureRequest) -> None:
    """Each test starts with a model that says four words."""
    if "model" in request.fixturenames or "url" in request.fixturenames:
        request.getfixturevalue("model").script = Script(words=("It", " is", " Pixel", "."), num_tokens=4)


@pytest.fixture(scope="module")
def url(model: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(model, tmp_path_factory.mktemp("journal")) as url:
        yield url
