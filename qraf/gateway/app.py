"""The application: wiring and nothing else."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from qraf.errors import QrafError
from qraf.gateway.bodies import Gate, enter, failure, note_limit
from qraf.gateway.door import Door
from qraf.gateway.metrics import GatewayMeters
from qraf.gateway.openapi import serve_document
from qraf.gateway.repeats import Repeats
from qraf.gateway.room import Room
from qraf.gateway.routes import (
    enhance,
    health,
    memory,
    network,
    operations,
    security,
    services,
    sessions,
    snapshots,
    states,
    usage,
)
from qraf.gateway.security.authority import Authority
from qraf.gateway.sockets import Sockets
from qraf.sessions.service import Service
from qraf.sessions.tenants import TenantService
from qraf.settings import Settings

__all__ = ["create_app"]


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The ASGI application over a service that is started and closed by the caller."""
    app = FastAPI(
        title="QRAF",
        version=service.version,
        description="A memory for text generation that lives in a network of quantum states. Errors are problem+json.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(enter)],
    )
    meters = GatewayMeters()
    authority = Authority(settings, service.journal.keys, service.clock)
    everyone = TenantService(service)
    sockets = Sockets(everyone, meters, authority)
    repeats = Repeats(service.journal.answers, settings.repeats)
    app.state.gate = Gate(everyone, settings, meters, sockets, authority, repeats)
    room = app.state.room = Room(settings.limits.max_incoming_bytes)
    app.add_middleware(Door, meters=meters, settings=settings.gateway, authority=authority, room=room)
    app.add_exception_handler(QrafError, _failed)
    app.add_exception_handler(HTTPException, _failed)
    for router in (
        sessions.router,
        memory.router,
        enhance.router,
        network.router,
        states.router,
        services.router,
        operations.router,
        snapshots.router,
        security.router,
        usage.router,
        health.health,
        health.documents,
    ):
        app.include_router(router, prefix="/v1")
    app.include_router(health.health)
    app.include_router(health.metrics)
    app.router.routes.append(WebSocketRoute("/v1/ws", sockets))
    serve_document(
        app,
        (
            *sessions.TYPES,
            *memory.TYPES,
            *enhance.TYPES,
            *network.TYPES,
            *states.TYPES,
            *services.TYPES,
            *operations.TYPES,
            *snapshots.TYPES,
            *security.TYPES,
            *usage.TYPES,
            *health.TYPES,
        ),
    )
    return app


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, QrafError):
        note_limit(request, error)
    return failure(error, request)
