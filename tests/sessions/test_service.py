"""The service as a transport sees it: real memories and journal, hashed words, a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from qraf.actors.runtime import LocalRuntime
from qraf.clock import FakeClock
from qraf.errors import InvalidRequest, LimitExceeded, NotFound, SessionClosed, SessionNotFound
from qraf.frames import (
    Enhance,
    EvidenceChoice,
    GenerateChoice,
    Recall,
    ResponseCreated,
    ResponseDelta,
    ResponseDone,
    ResponseEvidence,
    ResponseHop,
    ResponseMetrics,
    ResponseRoute,
    RouteChoice,
    ServerFrame,
    SessionOpen,
    WireItem,
    Write,
)
from qraf.records import Evidence, Filter
from qraf.sessions.recall import choose
from qraf.sessions.response import Response
from qraf.sessions.service import Service
from qraf.settings import LimitSettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.openai_server import OpenAIServer, Script
from tests.sessions.samples import topology

pytestmark = pytest.mark.slow  # a whole service, or processes

NUTS = ("I am allergic to nuts.", "The train to Porto leaves at nine.", "Pixel is the name of the parrot.")


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer(Script(words=("No", " nuts", " please"), num_tokens=3)) as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def service(model: OpenAIServer, clock: FakeClock) -> AsyncIterator[Service]:
    settings = Settings(journal_url="sqlite:///:memory:", limits=LimitSettings(max_running_responses=4))
    journal = Journal.open(settings.journal(), clock)
    network = with_writer()
    runtime = LocalRuntime(
        network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint, clock=clock
    )
    service = Service(settings, network, journal, runtime, clock)
    await service.start()
    yield service
    await service.close()
    journal.close()


def with_writer() -> Any:
    from dataclasses import replace

    from qraf.network.topology import LinkSpec, NodeSpec

    plain = topology()
    nodes = {**plain.nodes, "writer": NodeSpec("writer", "generator", model="scripted")}
    links = (*plain.links, *(LinkSpec(name, "writer") for name in plain.nodes))
    return replace(plain, nodes=nodes, links=links)


async def filled(service: Service, session: str = "ana", texts: tuple[str, ...] = NUTS, **fields: Any) -> None:
    await service.open_session(SessionOpen(id="0", session=session))
    items = tuple(WireItem(item_id=f"i{n}", text=text, **fields) for n, text in enumerate(texts))
    done = await service.write(Write(id="1", session=session, items=items))
    assert done.accepted == len(texts)


async def read(response: Response) -> list[ServerFrame]:
    return [frame async for frame in response.frames()]


# ------------------------------------------------------------------------------------------------ recall
async def test_recall_finds_what_shares_words_and_joins_its_text(service: Service) -> None:
    await filled(service)
    found = await service.recall(Recall(id="2", session="ana", text="Who is allergic to nuts?", k=2))
    assert found.evidence[0].text == NUTS[0]
    assert found.evidence[0].item_id == "i0"
    assert found.evidence[0].node == "desk"
    assert [item.rank for item in found.evidence] == list(range(1, len(found.evidence) + 1))
    assert 0 < found.coverage <= 1
    assert found.coverage == pytest.approx(sum(item.probability for item in found.evidence))
    assert found.state.items == 3


async def test_probabilities_of_everything_sum_to_one(service: Service) -> None:
    await filled(service)
    found = await service.recall(Recall(id="2", session="ana", text="nuts train parrot", k=50))
    assert sum(item.probability for item in found.evidence) == pytest.approx(1)


async def test_explained_terms_make_up_the_score(service: Service) -> None:
    await filled(service, speaker="Ana")
    found = await service.recall(Recall(id="2", session="ana", text="What is Ana allergic to?", k=3, explain=True))
    for item in found.evidence:
        t = item.terms
        assert t is not None
        own = t.dense + t.lexical + t.interference + t.neighbours
        assert own * t.speaker * t.question * t.clock * t.decay == pytest.approx(item.score, rel=1e-5)


async def test_an_empty_memory_gives_no_evidence_and_no_error(service: Service) -> None:
    await service.open_session(SessionOpen(id="0", session="empty"))
    found = await service.recall(Recall(id="2", session="empty", text="anything"))
    assert (found.evidence, found.coverage) == ((), 0.0)


@pytest.mark.parametrize("text", ["我对坚果过敏吗？", "🥜🥜", "the of and", "a\0b", "..."])
async def test_prompts_of_any_script_are_answered(service: Service, text: str) -> None:
    await filled(service)
    await service.recall(Recall(id="2", session="ana", text=text))


async def test_collections_and_session_are_ranked_together(service: Service) -> None:
    await filled(service)
    await service.write(Write(id="3", collection="papers", items=(WireItem(text="A paper on nuts and bolts."),)))
    found = await service.recall(Recall(id="4", session="ana", collections=("papers",), text="nuts", k=10))
    assert {item.collection or item.session for item in found.evidence if "nuts" in item.text} == {"ana", "papers"}


def test_budget_passes_over_what_does_not_fit() -> None:
    items = [
        Evidence(seq=i, memory="s/a", node="n", score=1, probability=0.5 / (i + 1), words=w)
        for i, w in enumerate((10, 900, 20))
    ]
    assert [e.seq for e in choose(items, k=9, token_budget=100)] == [0, 2]
    assert [e.seq for e in choose(items, k=1, token_budget=None)] == [0]
    assert [e.seq for e in choose(items, k=9, token_budget=None, least=0.2)] == [0, 1]


async def test_filter_and_as_of_bound_what_is_measured(service: Service) -> None:
    await service.open_session(SessionOpen(id="0", session="ana"))
    items = tuple(WireItem(text=f"nuts {year}", at=f"{year}-01-01") for year in (2020, 2022, 2024))
    await service.write(Write(id="1", session="ana", items=items))
    found = await service.recall(Recall(id="2", session="ana", text="nuts", as_of="2023-01-01"))
    assert {item.text for item in found.evidence} == {"nuts 2020", "nuts 2022"}
    later = msgspec.json.decode(b'{"field": "at", "gte": "2022-01-01"}', type=Filter)
    found = await service.recall(Recall(id="2", session="ana", text="nuts", filter=later))
    assert {item.text for item in found.evidence} == {"nuts 2022", "nuts 2024"}


@pytest.mark.parametrize(
    ("request_", "error", "pointer"),
    [
        (Recall(id="1", text="x"), InvalidRequest, "/session"),
        (Recall(id="1", session="ana", text="  "), InvalidRequest, "/text"),
        (Recall(id="1", session="ana", text="x" * 40_000), InvalidRequest, "/text"),
        (Recall(id="1", session="ana", text="x", k=0), InvalidRequest, "/k"),
        (Recall(id="1", session="ana", text="x", k=201), InvalidRequest, "/k"),
        (Recall(id="1", session="ana", text="x", token_budget=0), InvalidRequest, "/token_budget"),
        (Recall(id="1", session="ana", text="x", as_of="soon"), InvalidRequest, "/as_of"),
        (Recall(id="1", session="ana", text="x", collections=("nowhere",)), InvalidRequest, "/collections/0"),
        (Recall(id="1", session="nobody", text="x"), SessionNotFound, None),
    ],
)
async def test_recall_names_what_is_wrong(service: Service, request_: Recall, error: type, pointer: str | None) -> None:
    await filled(service)
    with pytest.raises(error) as caught:
        await service.recall(request_)
    if pointer is not None:
        assert caught.value.pointer == pointer


# ------------------------------------------------------------------------------------------------ enhance
async def test_a_response_tells_route_hops_evidence_text_and_one_end(service: Service) -> None:
    await filled(service)
    response = await service.prompts.start(Enhance(id="7", session="ana", prompt="May I eat nuts?"), "me")
    frames = await read(response)
    kinds = [type(frame) for frame in frames]
    assert kinds[:2] == [ResponseCreated, ResponseRoute]
    assert kinds[-1] is ResponseDone
    assert kinds.count(ResponseDone) == 1
    assert kinds.index(ResponseHop) < kinds.index(ResponseEvidence) < kinds.index(ResponseDelta)
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))  # type: ignore[union-attr]
    assert "".join(f.text for f in frames if isinstance(f, ResponseDelta)) == "No nuts please"
    done = frames[-1]
    assert isinstance(done, ResponseDone)
    assert (done.status, done.usage.completion_tokens) == ("completed", 3)
    assert done.state.items == 3


async def test_the_model_sees_the_evidence_and_the_question(service: Service, model: OpenAIServer) -> None:
    await filled(service)
    await read(await service.prompts.start(Enhance(id="7", session="ana", prompt="May I eat nuts?"), "me"))
    sent = " ".join(message["content"] for message in model.requests[-1]["messages"])
    assert "allergic to nuts" in sent
    assert "May I eat nuts?" in sent


async def test_generate_false_stops_at_the_evidence(service: Service, model: OpenAIServer) -> None:
    await filled(service)
    frames = await read(
        await service.prompts.start(Enhance(id="7", session="ana", prompt="nuts?", generate=False), "me")
    )
    assert isinstance(frames[-2], ResponseEvidence)
    assert frames[-1].finish_reason == "evidence"  # type: ignore[union-attr]
    assert model.requests == []


async def test_what_is_far_less_likely_than_the_best_does_not_reach_the_model(service: Service) -> None:
    await filled(service, texts=("Nuts and bolts.", "We met in Rome, by chance, and had nuts.", "It rained on Monday."))

    async def taken(**choice: Any) -> list[float]:
        request = Enhance(
            id="7", session="ana", prompt="nuts and bolts", evidence=EvidenceChoice(**choice), generate=False
        )
        frames = await read(await service.prompts.start(request, "me"))
        return [item.probability for frame in frames if isinstance(frame, ResponseEvidence) for item in frame.items]

    every = await taken(min_share=0)
    shares = [one / every[0] for one in every]
    assert shares[-1] < 0.25 < 0.9 < shares[0]
    assert await taken() == [one for one, share in zip(every, shares, strict=True) if share >= 0.25]
    assert await taken(min_share=1) == every[:1]


async def test_cancel_ends_once_and_stops_the_model(service: Service, model: OpenAIServer) -> None:
    model.script = Script(tokens_per_s=5)
    await filled(service)
    response = await service.prompts.start(
        Enhance(id="7", session="ana", prompt="nuts?", generate=GenerateChoice(max_tokens=1000)), "me"
    )
    seen = 0
    frames = []
    async for frame in response.frames():
        frames.append(frame)
        if isinstance(frame, ResponseDelta) and not seen:
            seen = model.produced
            assert response.cancel("enough")
    assert isinstance(frames[-1], ResponseDone)
    assert (frames[-1].status, frames[-1].finish_reason) == ("cancelled", "enough")
    for _ in range(100):  # the server notices the closed connection at its next token
        if not model.running:
            break
        await asyncio.sleep(0.02)
    assert model.running == 0
    assert model.produced <= seen + 2


async def test_cancel_before_anything_was_found_still_ends(service: Service) -> None:
    await filled(service)
    response = await service.prompts.start(Enhance(id="7", session="ana", prompt="nuts?"), "me")
    response.cancel("at once")
    frames = await read(response)
    kinds = [type(frame) for frame in frames if not isinstance(frame, ResponseCreated)]
    assert kinds == [ResponseDone]
    assert response.status == "cancelled"


async def test_a_model_that_breaks_ends_the_response_failed_and_retryable(
    service: Service, model: OpenAIServer
) -> None:
    model.script = Script(close_after=2)
    await filled(service)
    frames = await read(await service.prompts.start(Enhance(id="7", session="ana", prompt="nuts?"), "me"))
    done = frames[-1]
    assert isinstance(done, ResponseDone)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "engine_failed"
    assert done.error.retryable


async def test_length_is_incomplete(service: Service, model: OpenAIServer) -> None:
    model.script = Script()
    await filled(service)
    request = Enhance(id="7", session="ana", prompt="nuts?", generate=GenerateChoice(max_tokens=5))
    done = (await read(await service.prompts.start(request, "me")))[-1]
    assert (done.status, done.finish_reason) == ("incomplete", "length")  # type: ignore[union-attr]


async def test_remember_writes_prompt_and_answer_but_never_what_was_recalled(service: Service) -> None:
    await filled(service)
    await read(
        await service.prompts.start(Enhance(id="7", session="ana", prompt="May I eat nuts?", remember=True), "me")
    )
    items, _ = await service.items.page("ana", None, None, 50)
    assert [(item.role, item.text) for item in items[3:]] == [
        ("user", "May I eat nuts?"),
        ("assistant", "No nuts please"),
    ]


async def test_metrics_come_when_asked(service: Service, model: OpenAIServer) -> None:
    model.script = Script(num_tokens=30, tokens_per_s=100)
    await filled(service)
    request = msgspec.json.decode(
        b'{"type":"enhance","id":"7","session":"ana","prompt":"nuts?","metrics":{"every_ms":100}}', type=Enhance
    )
    metrics = [f for f in await read(await service.prompts.start(request, "me")) if isinstance(f, ResponseMetrics)]
    assert metrics[-1].tokens == 30
    assert metrics[-1].entropy_bits > 0


async def test_one_key_that_comes_several_times_at_once_starts_one_response(service: Service) -> None:
    await filled(service)
    request = Enhance(id="7", session="ana", prompt="nuts?", key="k", again=True, generate=False)
    first, *others = await asyncio.gather(*(service.prompts.start(request, f"me{n}") for n in range(3)))
    assert [other is first for other in others] == [True, True]
    assert not service.prompts._starting
    with pytest.raises(InvalidRequest, match="another request"):
        await service.prompts.start(msgspec.structs.replace(request, prompt="tea?"), "me")
    await read(first)


async def test_running_responses_are_bounded_and_the_slot_comes_back(service: Service, model: OpenAIServer) -> None:
    model.script = Script(tokens_per_s=20)
    await filled(service)
    request = Enhance(id="7", session="ana", prompt="nuts?")
    running = [await service.prompts.start(request, f"me{n}") for n in range(4)]
    with pytest.raises(LimitExceeded, match="max_running_responses"):
        await service.prompts.start(request, "one more")
    for response in running:
        response.cancel()
    await asyncio.gather(*(read(response) for response in running))
    model.script = Script(num_tokens=1)
    await read(await service.prompts.start(request, "again"))


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        (Enhance(id="1", session="ana", prompt=""), "/prompt"),
        (Enhance(id="1", session="ana", prompt="x", generate=GenerateChoice(max_tokens=0)), "/generate/max_tokens"),
        (Enhance(id="1", session="ana", prompt="x", generate=GenerateChoice(temperature=3)), "/generate/temperature"),
        (Enhance(id="1", session="ana", prompt="x", generate=GenerateChoice(model="gpt")), "/generate/model"),
        (Enhance(id="1", session="ana", prompt="x", generate=GenerateChoice(stop=("",))), "/generate/stop"),
        (Enhance(id="1", session="ana", prompt="x", evidence=EvidenceChoice(k=0)), "/evidence/k"),
        (Enhance(id="1", session="ana", prompt="x", evidence=EvidenceChoice(as_of="?")), "/evidence/as_of"),
        (Enhance(id="1", prompt="x", collections=(), remember=False), "/session"),
        (Enhance(id="1", prompt="x", remember=True), "/remember"),
    ],
)
async def test_enhance_names_what_is_wrong_before_it_starts(service: Service, request_: Enhance, pointer: str) -> None:
    await filled(service)
    with pytest.raises(InvalidRequest) as caught:
        await service.prompts.start(request_, "me")
    assert caught.value.pointer == pointer
    assert service.responses.running() == 0


async def test_explained_routes_carry_their_terms(service: Service) -> None:
    await filled(service)
    await service.write(Write(id="3", collection="papers", items=(WireItem(text="A paper on nuts and bolts."),)))
    request = Enhance(id="7", session="ana", prompt="nuts", route=RouteChoice(explain=True), generate=False)
    route = next(f for f in await read(await service.prompts.start(request, "me")) if isinstance(f, ResponseRoute))
    assert any(hop.terms for hop in route.hops)
    assert all(hop.why for hop in route.hops)


# ------------------------------------------------------------------------------------------------ forgetting
async def test_forget_by_filter_counts_first_then_forgets(service: Service) -> None:
    await filled(service)
    which = msgspec.json.decode(b'{"field": "item_id", "in": ["i0", "i2"]}', type=Filter)
    assert await service.items.forget("ana", None, which, dry_run=True) == (2, [])
    count, receipts = await service.items.forget("ana", None, which)
    assert count == 2
    assert [(r.forgotten, r.before.items, r.after.items) for r in receipts] == [(2, 3, 1)]
    found = await service.recall(Recall(id="2", session="ana", text="nuts parrot allergic", k=10))
    assert all(item.text == NUTS[1] for item in found.evidence)
    with pytest.raises(NotFound):
        await service.items.get("ana", None, "i0")


async def test_delete_item_gives_a_receipt(service: Service) -> None:
    await filled(service)
    receipt = await service.items.delete("ana", None, "i1")
    assert (receipt.forgotten, receipt.before.items, receipt.after.items) == (1, 3, 2)
    with pytest.raises(NotFound):
        await service.items.delete("ana", None, "i1")


async def test_a_deleted_session_is_gone_with_its_items(service: Service) -> None:
    await filled(service)
    receipt = await service.delete_session("ana")
    assert (receipt.forgotten, receipt.before.items) == (3, 3)
    with pytest.raises(SessionNotFound):
        await service.recall(Recall(id="2", session="ana", text="nuts"))
    await service.open_session(SessionOpen(id="0", session="ana"))
    assert (await service.recall(Recall(id="2", session="ana", text="nuts"))).evidence == ()


async def test_a_paused_session_refuses_until_it_is_resumed(service: Service) -> None:
    await filled(service)
    await service.sessions.pause("ana")
    with pytest.raises(SessionClosed):
        await service.recall(Recall(id="2", session="ana", text="nuts"))
    with pytest.raises(SessionClosed):
        await service.prompts.start(Enhance(id="7", session="ana", prompt="nuts?"), "me")
    await service.sessions.resume("ana")
    await service.recall(Recall(id="2", session="ana", text="nuts"))


async def test_an_item_whose_time_is_over_is_not_recalled(service: Service, clock: FakeClock) -> None:
    await filled(service, ttl_s=60.0)
    clock.advance(61)
    found = await service.recall(Recall(id="2", session="ana", text="nuts"))
    assert found.evidence == ()


async def test_health_is_ready_and_names_what_is_down(service: Service) -> None:
    assert service.health.report()["ready"]
    from dataclasses import replace

    service.runtime.health["shelf"] = replace(service.runtime.health["shelf"], up=False)
    told = service.health.report()
    assert not told["ready"]
    assert told["degraded"][0]["what"] == "node shelf"


class Slow(LocalRuntime):
    """Every answer of a recall takes `delay_s`; the node `shelf` takes `shelf_s` more."""

    delay_s = 0.0
    shelf_s = 0.0

    async def recall(self, visits: Any) -> Any:
        await asyncio.sleep(self.delay_s)
        for visit in sorted(visits, key=lambda v: v.node == "shelf"):
            if visit.node == "shelf":
                await asyncio.sleep(self.shelf_s)
            async for answer in super().recall([visit]):
                yield answer


async def slow_service(model: OpenAIServer, delay_s: float, shelf_s: float) -> Service:
    from dataclasses import replace

    settings = Settings(journal_url="sqlite:///:memory:")
    network = with_writer()
    network = replace(network, routing=replace(network.routing, deadline_ms=1000.0))
    journal = Journal.open(settings.journal())
    runtime = Slow(network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint)
    runtime.delay_s, runtime.shelf_s = delay_s, shelf_s
    service = Service(settings, network, journal, runtime)
    await service.start()
    return service


async def test_late_evidence_is_better_than_none(model: OpenAIServer) -> None:
    service = await slow_service(model, 1.2, 0.0)
    await filled(service)
    found = await service.recall(Recall(id="2", session="ana", text="nuts"))
    assert found.evidence[0].text == NUTS[0]
    await service.close()


async def test_a_late_node_is_left_out_when_another_has_answered(model: OpenAIServer) -> None:
    service = await slow_service(model, 0.0, 5.0)
    await filled(service)
    await service.write(Write(id="3", collection="notes", items=tuple(WireItem(text=f"nuts {n}") for n in range(8))))
    found = await service.recall(Recall(id="2", session="ana", collections=("notes",), text="nuts", k=20))
    assert "shelf" in found.route.not_visited
    assert "1000 ms" in found.route.not_visited["shelf"]
    assert {item.node for item in found.evidence} == {"desk", "attic"}
    await service.close()
