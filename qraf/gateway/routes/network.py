"""`/v1/topology`: the network as it runs, and where a prompt would go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qraf.frames import RouteOut
from qraf.gateway.bodies import answer, gate, principal, query
from qraf.gateway.openapi import operation
from qraf.gateway.values import check_number
from qraf.network.links import LinkChannel
from qraf.network.topology import LinkSpec
from qraf.records import Figures

__all__ = ["TYPES", "router"]

router = APIRouter(tags=["network"])


class RouteQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, and how it would be routed; `session` asks for one session's memory too."""

    prompt: str
    session: str | None = None
    max_visits: int | None = None
    explain: bool = False


class NodeOut(msgspec.Struct, frozen=True, kw_only=True):
    """A node: what the operator said of it, and what was last seen of it (`up` and everything after)."""

    node: str
    role: str
    host: str
    sessions: bool
    collections: tuple[str, ...]
    capacity_bytes: int | None
    budget_bytes: int | None
    half_life_s: float | None
    rank: int
    bits: int
    encoder: str
    model: str
    up: bool
    epoch: int
    memories: int
    items: int
    bytes: int
    load: float
    latency_ms: float
    state: Figures
    corrected: int
    stopped: int


class TopologyOut(msgspec.Struct, frozen=True, kw_only=True):
    """The network as the server runs it."""

    name: str
    version: int
    description: str
    ingress: str
    encoder: str
    dim: int
    hosts: tuple[dict[str, Any], ...]
    nodes: tuple[NodeOut, ...]
    links: tuple[dict[str, Any], ...]
    routing: dict[str, Any]


TYPES = (RouteOut, TopologyOut, NodeOut)


@router.get("/topology", openapi_extra=operation(answer=TopologyOut))
async def get_topology(request: Request) -> Response:
    """Hosts, nodes with what was last seen of them (others than operators: `up` alone), links, and the routing."""
    service = gate(request).service
    topology = service.topology
    seen = {view.node: view for view in service.network()}
    can_operate = principal(request).may("network:operate")
    nodes = []
    for spec in topology.nodes.values():
        view = seen.get(spec.name)
        live = msgspec.structs.asdict(view) if view is not None else {}
        if not can_operate:  # the sums over all tenants are the operators'
            live = {"up": live.get("up", False)}
        nodes.append(
            NodeOut(
                node=spec.name,
                role=spec.role,
                host=spec.host or str(live.get("host", "")),
                **{name: getattr(spec, name) for name in _SPEC},
                **{name: live.get(name, default) for name, default in _LIVE.items()},
            )
        )
    return answer(
        TopologyOut(
            name=topology.name,
            version=topology.version,
            description=topology.description,
            ingress=topology.ingress,
            encoder=topology.encoder,
            dim=topology.dim,
            hosts=tuple(dataclasses.asdict(host) for host in topology.hosts.values()),
            nodes=tuple(nodes),
            links=tuple(_link(link, service.whole.recaller.router.channels) for link in topology.links),
            routing=dataclasses.asdict(topology.routing),
        )
    )


@router.get("/topology/route", openapi_extra=operation(query=RouteQuery, answer=RouteOut))
async def get_route(request: Request) -> Response:
    """Where a prompt would go and why; nothing is measured."""
    asked = query(request, RouteQuery)
    check_number(asked.max_visits, "/query/max_visits", 1, 1_000_000)
    route = await gate(request).service.route(asked.prompt, asked.max_visits, asked.explain, asked.session)
    return answer(route)


def _link(link: LinkSpec, channels: Mapping[tuple[str, str], LinkChannel]) -> dict[str, Any]:
    """A link as the operator wrote it, with the channel that a qubit meets on a noisy one."""
    stated, channel = dataclasses.asdict(link), channels.get((link.source, link.target))
    return stated | ({} if channel is None else {"channel": {**dataclasses.asdict(channel), "w": channel.w}})


_SPEC = ("sessions", "collections", "capacity_bytes", "budget_bytes", "half_life_s", "rank", "bits", "encoder", "model")
_LIVE: dict[str, Any] = {
    "up": False,
    "epoch": 0,
    "memories": 0,
    "items": 0,
    "bytes": 0,
    "load": 0.0,
    "latency_ms": 0.0,
    "state": Figures(),
    "corrected": 0,
    "stopped": 0,
}
