"""schemathesis over the whole OpenAPI document, as the server gives it, against the server that gives it.

No 5xx; every status, content type, body and header as the document says; what the document forbids is refused. With
`make fuzz` it tries many more examples, and every boundary of every schema. A failure prints the request as `curl`.
"""

from __future__ import annotations

import collections
import os
import secrets

import httpx
import pytest
import schemathesis
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
    SimpleCheckConfig,
)
from schemathesis.engine import events, from_schema

from tests.fuzz.served import Served, served
from tests.openai_server import OpenAIServer, Script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FULL = bool(os.environ.get("QRAF_FUZZ"))
SEED = int(os.environ.get("QRAF_FUZZ_SEED", "0")) or (secrets.randbelow(2**31) if FULL else 1)
EXAMPLES = 60 if FULL else 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with OpenAIServer() as model:
        model.script = Script(words=("Nuts", " are", " bad."), num_tokens=3)
        with served(model, tmp_path_factory.mktemp("served")) as place:
            yield place


def failures(place: Served, phases: set[str]) -> tuple[list[str], set[str], collections.Counter[str]]:
    """Run these phases; what failed, which operations were called, and how often each status came."""
    document = httpx.get(f"{place.server.url}/v1/openapi.json", trust_env=False).json()
    checks = ChecksConfig(
        # more is asked of a request than a schema can say: that names exist, that one of two fields is given
        positive_data_acceptance=PositiveDataAcceptanceConfig(enabled=False),
        # /v1/memory/forget is an address of `POST` and, by its form, of an item that has this name
        allow_header_conformance=SimpleCheckConfig(enabled=False),
    )
    project = ProjectConfig(
        base_url=place.server.url,
        headers={"Authorization": f"Bearer {place.key}"},
        continue_on_failure=True,
        checks=checks,
        generation=GenerationConfig(max_examples=EXAMPLES, database="none", deterministic=not FULL),
        request_timeout=20,
    )
    for name in ("examples", "coverage", "fuzzing", "stateful"):
        getattr(project.phases, name).enabled = name in phases
    config = SchemathesisConfig(seed=SEED, projects=ProjectsConfig(default=project))
    schema = schemathesis.openapi.from_dict(document, config=config)
    found: list[str] = []
    called: set[str] = set()
    statuses: collections.Counter[str] = collections.Counter()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found.append(f"{getattr(event, 'label', '')}: {getattr(event, 'value', None) or event.exception!r}")
        if not isinstance(event, events.ScenarioFinished):
            continue
        for interaction in event.recorder.interactions.values():
            statuses[str(interaction.response.status_code) if interaction.response else "none"] += 1
        for case in event.recorder.cases.values():
            called.add(case.value.operation.label)
        for results in event.recorder.checks.values():
            for result in results:
                if result.failure_info is not None:
                    fault, sample = result.failure_info.failure, result.failure_info.code_sample
                    found.append(f"{event.label} {result.name}: {getattr(fault, 'message', fault)}\n{sample}"[:3000])
    print(f"seed {SEED}: {sum(statuses.values())} requests to {len(called)} operations; {dict(statuses)}")
    return found, called, statuses


def operations(place: Served) -> set[str]:
    document = httpx.get(f"{place.server.url}/v1/openapi.json", trust_env=False).json()
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


def test_the_routes_that_say_so_and_no_others_heed_the_key(place) -> None:
    document = httpx.get(f"{place.server.url}/v1/openapi.json", trust_env=False).json()
    headers = {"authorization": f"Bearer {place.key}", "idempotency-key": "ä".encode("latin-1"), "prefer": "x"}
    told, heeded = set(), set()
    with httpx.Client(base_url=place.server.url, headers=headers, trust_env=False) as http:
        for path, methods in document["paths"].items():
            if "post" not in methods:
                continue
            content = methods["post"].get("requestBody", {}).get("content", {}).get("application/json", {})
            answer = http.post(path.replace("{", "").replace("}", ""), json=content.get("example"))
            errors = answer.json().get("errors") or [{}] if answer.status_code == 422 else [{}]
            if errors[0].get("pointer") == "/headers/idempotency-key":
                heeded.add(path)
            if any(one["name"] == "Idempotency-Key" for one in methods["post"]["parameters"]):
                told.add(path)
    assert told == heeded - {"/v1/keys", "/v1/ws-tickets"}  # these refuse every key
    assert len(told) > 15


def test_what_comes_is_what_the_document_says(place) -> None:
    found, called, statuses = failures(place, {"examples", "fuzzing", "stateful"})
    assert not found, "\n\n".join(found)
    assert called == operations(place)
    assert not [status for status in statuses if not status[0].isdigit() or status[0] == "5"]
    assert min(statuses["200"], statuses["422"]) > 40  # much was let in, and much refused


@pytest.mark.skipif(not FULL, reason="with `make fuzz`: two minutes, 13,000 requests")
def test_every_boundary_of_every_schema(place) -> None:
    found, called, statuses = failures(place, {"coverage"})
    assert not found, "\n\n".join(found)
    assert called == operations(place)
    assert not [status for status in statuses if not status[0].isdigit() or status[0] == "5"]
