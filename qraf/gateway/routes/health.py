"""Health, metrics, and the documents that describe this server."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.gateway.asyncapi import asyncapi
from qraf.gateway.bodies import answer, gate, principal, time_out
from qraf.gateway.metrics import CONTENT_TYPE, exposition
from qraf.gateway.openapi import operation

__all__ = ["TYPES", "documents", "health", "metrics"]

health = APIRouter(tags=["health"])
metrics = APIRouter(tags=["health"])
documents = APIRouter(tags=["documents"])


class Degraded(msgspec.Struct, frozen=True):
    """What does not work as it should, since when."""

    what: str
    since: str
    detail: str


class ProcessOut(msgspec.Struct, frozen=True):
    """A process of the network: the gateway that answers, the supervisor, a host or the engine. `epoch` 0: none."""

    what: str
    pid: int
    machine: str
    epoch: int


class HealthOut(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is. `ready`: it can do all its work. The rest is for operators, and empty for others."""

    ready: bool
    state: str
    version: str
    topology: str
    degraded: tuple[Degraded, ...]
    processes: tuple[ProcessOut, ...] = ()


TYPES = (HealthOut,)


@health.get("/health/live", openapi_extra=operation())
async def live() -> Response:
    """200 while the process answers at all."""
    return answer({"live": True})


@health.get("/health/ready", openapi_extra=operation(answer=HealthOut, also={503: HealthOut}))
async def ready(request: Request) -> Response:
    """200 when the server can do all its work, else 503; the body tells what is degraded since when."""
    report = _report(request)
    return answer(report, 200 if report.ready else 503)


@health.get("/health", openapi_extra=operation(answer=HealthOut))
async def overall(request: Request) -> Response:
    """The same report, always 200."""
    return answer(_report(request))


@metrics.get("/metrics", openapi_extra=operation(media_type="text/plain"))
async def get_metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    gateway = gate(request)
    gateway.service.whole.meters.see(gateway.service.network())
    text = exposition(gateway.service.whole.meters.registry, gateway.meters, gateway.sockets.outboxes)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


@documents.get("/asyncapi.json", openapi_extra=operation())
async def get_asyncapi(request: Request) -> Response:
    """The stream protocol as an AsyncAPI 3 document."""
    gateway = gate(request)
    return answer(asyncapi(gateway.service.version, request.headers["host"]))


@documents.get("/openapi.json", openapi_extra=operation())
async def get_openapi(request: Request) -> Response:
    """This interface as an OpenAPI document."""
    document: dict[str, Any] = request.app.openapi()
    return answer(document)


def _report(request: Request) -> HealthOut:
    service = gate(request).service
    found = service.whole.health.report()
    if not principal(request).may("network:operate"):
        return HealthOut(ready=found["ready"], state=found.get("state", ""), version="", topology="", degraded=())
    degraded = tuple(Degraded(d["what"], time_out(d["since"]) or "", d["detail"]) for d in found["degraded"])
    return HealthOut(
        ready=found["ready"],
        state=found.get("state", ""),
        version=service.version,
        topology=service.topology.name,
        degraded=degraded,
        processes=tuple(ProcessOut(one.what, one.pid, one.machine, one.epoch) for one in found.get("processes", ())),
    )
