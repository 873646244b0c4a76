"""The request path: prepare, route, measure, generate; every step is a frame of the response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from qraf.clock import Clock
from qraf.errors import EngineFailed, QrafError, QuotaExceeded, RateExceeded
from qraf.frames import (
    Enhance,
    GenerateChoice,
    ResponseEvidence,
    ResponseHop,
    ResponseMetrics,
    ResponseRoute,
    Usage,
    WireItem,
)
from qraf.network.topology import Topology
from qraf.records import Evidence, Figures
from qraf.sessions.accounts import Account, Bill
from qraf.sessions.faults import error_body
from qraf.sessions.meters import Meters
from qraf.sessions.recall import Address, Measurement, Recaller, ahead_of, evidence_out, tokens_of
from qraf.sessions.response import Response
from qraf.sessions.write import Writer
from qraf.tenants import plain
from qraf.text.generator import Generator
from qraf.text.prompt import build_messages
from qraf.times import parse_time

__all__ = ["Enhancer"]

log = logging.getLogger(__name__)


class Enhancer:
    """Runs responses. One `run` per response, in a task that the service owns."""

    def __init__(
        self,
        topology: Topology,
        recaller: Recaller,
        writer: Writer,
        generator_of: Callable[[str], Generator],
        clock: Clock,
        meters: Meters,
    ) -> None:
        self._topology, self._recaller, self._writer = topology, recaller, writer
        self._generator_of, self._clock, self._meters = generator_of, clock, meters

    async def run(self, response: Response, request: Enhance, address: Address, account: Account | None = None) -> None:
        """Drive `response` to its one end, whatever happens. Cancel: ends it `cancelled`; the model stops at once."""
        started = self._clock.monotonic()
        progress = _Progress(started, None if account is None else Bill(account))
        self._meters.running.inc()
        status, reason, error = "completed", "stop", None
        try:
            status, reason = await self._run(response, request, address, progress)
        except asyncio.CancelledError:
            status, reason = "cancelled", response.cancel_reason or "cancelled"
        except (QuotaExceeded, RateExceeded) as fault:  # what was generated until then is the answer
            status, reason, error = "incomplete" if response.length else "failed", "quota", error_body(fault)
        except QrafError as fault:
            status, reason, error = "failed", "error", error_body(fault)
        except Exception as fault:
            log.exception("response %s failed", response.id)
            status, reason, error = "failed", "error", error_body(fault)
        finally:
            self._meters.running.dec()
        usage = progress.usage(self._clock.monotonic())
        self._meters.responses.labels(status).inc()
        self._meters.tokens.labels("completion").inc(usage.completion_tokens)
        self._meters.tokens.labels("prompt").inc(usage.prompt_tokens)
        try:
            if progress.bill is not None:
                await progress.bill.settle(usage.prompt_tokens, usage.completion_tokens)
        finally:  # a cancel that comes now is too late
            response.end(status, reason, usage, progress.figures, error)

    async def _run(
        self, response: Response, request: Enhance, address: Address, progress: _Progress
    ) -> tuple[str, str]:
        recaller, stream = self._recaller, response.stream
        choice = request.generate
        wanted = choice.model if isinstance(choice, GenerateChoice) else None
        prompt = await recaller.prepare(request.prompt, address)
        route = await recaller.route(
            prompt,
            address,
            max_visits=request.route.max_visits,
            deadline_ms=request.route.deadline_ms,
            explain=request.route.explain,
            model=wanted,
        )
        response.emit(
            ResponseRoute(
                stream=stream,
                seq=0,
                hops=route.hops,
                predicted_ms=route.predicted_ms,
                generator=route.generator,
                not_visited=route.not_visited,
            )
        )
        measurement = Measurement(prompt, route, key=response.id)
        ask = request.evidence
        answers = recaller.measure(
            measurement,
            address,
            k=ahead_of(ask.k),
            filter=ask.filter,
            as_of=None if ask.as_of is None else parse_time(ask.as_of, "/evidence/as_of"),
            explain=request.route.explain,
            deadline_ms=request.route.deadline_ms or self._topology.routing.deadline_ms,
        )
        async for answer in answers:
            progress.items_scanned += answer.items_scanned
            response.emit(
                ResponseHop(
                    stream=stream,
                    seq=0,
                    node=answer.node,
                    memory=f"{answer.memory[:2]}{plain(answer.memory)}",
                    ms=answer.ms,
                    items_scanned=answer.items_scanned,
                    state=answer.figures,
                    error=answer.error,
                    links=measurement.links(answer.node),
                    arrived=measurement.fidelity(answer.node),
                )
            )
        evidence, coverage = await recaller.evidence(
            measurement,
            k=ask.k,
            token_budget=ask.token_budget,
            min_probability=ask.min_probability,
            min_share=ask.min_share,
        )
        progress.saw(measurement, evidence, address.session)
        response.emit(ResponseEvidence(stream=stream, seq=0, items=evidence_out(evidence), coverage=coverage))
        if not isinstance(choice, GenerateChoice):
            return "completed", "evidence"
        if not route.generator:
            raise EngineFailed(wanted or "any", "no generator can be reached")
        reason = await self._generate(response, request, choice, route.generator, evidence, progress)
        if request.remember and request.session is not None:
            await self._remember(request, response.text, None if progress.bill is None else progress.bill.account)
        return ("incomplete" if reason == "length" else "completed"), reason

    async def _generate(
        self,
        response: Response,
        request: Enhance,
        choice: GenerateChoice,
        node: str,
        evidence: Sequence[Evidence],
        progress: _Progress,
    ) -> str:
        messages = build_messages(request.prompt, evidence)
        prompt = round(tokens_of(sum(len(str(message.get("content", "")).split()) for message in messages)))
        pieces = self._generator_of(node).stream(
            messages,
            max_tokens=choice.max_tokens,
            temperature=choice.temperature,
            top_p=choice.top_p,
            stop=choice.stop,
            seed=choice.seed,
        )
        reason = "stop"
        async with contextlib.AsyncExitStack() as stack:
            # closing the iterator closes the model's connection, which stops it within one token
            await stack.enter_async_context(contextlib.aclosing(pieces))
            if request.metrics is not None:
                await stack.enter_async_context(
                    _every(request.metrics.every_ms / 1000, lambda: self._tick(response, progress))
                )
            async for piece in pieces:
                now = self._clock.monotonic()
                if piece.text and progress.first_at is None:
                    progress.first_at = now
                    self._meters.first_token.observe(now - progress.started)
                progress.last_at = now
                if progress.bill is not None and piece.tokens:
                    await progress.bill.tokens(piece.tokens, prompt)
                progress.tokens += piece.tokens
                response.delta(piece.text, piece.tokens)
                if piece.usage is not None:
                    progress.prompt_tokens = piece.usage.prompt_tokens
                    progress.counted_tokens = piece.usage.completion_tokens
                reason = piece.finish_reason or reason
        if request.metrics is not None:
            self._tick(response, progress)
        if progress.tokens > 1 and progress.first_at is not None:
            self._meters.between_tokens.observe((progress.last_at - progress.first_at) / (progress.tokens - 1))
        return reason

    def _tick(self, response: Response, progress: _Progress) -> None:
        state, now = progress.figures, self._clock.monotonic()
        response.emit(
            ResponseMetrics(
                stream=response.stream,
                seq=0,
                tokens=progress.tokens,
                tokens_per_s=progress.rate(now),
                time_to_first_token_ms=progress.first_token_ms,
                coherence_bits=state.coherence_bits,
                entropy_bits=state.entropy_bits,
                purity=state.purity,
                compression_ratio=state.compression_ratio,
            )
        )

    async def _remember(self, request: Enhance, answer: str, account: Account | None) -> None:
        # a command that is sent again, even to a server that has forgotten its key, must not be remembered twice
        ids = (f"{request.key}.prompt", f"{request.key}.answer") if request.key else (None, None)
        items = [WireItem(item_id=ids[0], text=request.prompt, role="user")]
        if answer.strip():
            items.append(WireItem(item_id=ids[1], text=answer, role="assistant"))
        await self._writer.write(session=request.session, collection=None, items=tuple(items), account=account)


class _Progress:
    """What a response has used so far."""

    def __init__(self, started: float, bill: Bill | None) -> None:
        self.started, self.bill = started, bill
        self.first_at: float | None = None
        self.last_at = started
        self.tokens = self.prompt_tokens = self.counted_tokens = 0
        self.items_scanned = self.evidence_items = self.evidence_tokens = self.nodes = 0
        self.figures = Figures()

    def saw(self, measurement: Measurement, evidence: Sequence[Evidence], session: str | None) -> None:
        self.figures = measurement.figures(session)
        self.nodes = len({answer.node for answer in measurement.answers})
        self.evidence_items = len(evidence)
        self.evidence_tokens = round(sum(tokens_of(item.words) for item in evidence))

    @property
    def first_token_ms(self) -> float | None:
        return None if self.first_at is None else (self.first_at - self.started) * 1000

    def rate(self, now: float) -> float:
        if self.first_at is None or now <= self.first_at:
            return 0.0
        return max(0, self.tokens - 1) / (now - self.first_at)

    def usage(self, now: float) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.counted_tokens or self.tokens,
            evidence_items=self.evidence_items,
            evidence_tokens=self.evidence_tokens,
            items_scanned=self.items_scanned,
            nodes_visited=self.nodes,
            time_to_first_token_ms=self.first_token_ms,
            total_ms=(now - self.started) * 1000,
        )


@contextlib.asynccontextmanager
async def _every(seconds: float, act: Callable[[], None]) -> AsyncIterator[None]:
    async def loop() -> None:
        while True:
            act()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(loop(), name="response metrics")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
