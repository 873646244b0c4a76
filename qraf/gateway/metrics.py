"""The gateway's own meters, and the text of `GET /metrics`: the service's registry, then this one."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from qraf import __version__

__all__ = ["CONTENT_TYPE", "GatewayMeters", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMeters:
    """Meters of the connections. Labels hold types and actions, never a session or a client."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.connections = Gauge("qraf_ws_connections", "Open WebSocket connections", registry=registry)
        self._frames = Counter("qraf_ws_frames", "Frames sent and received", ["type"], registry=registry)
        self.closes = Counter("qraf_ws_closes", "Connections ended by the server", ["code"], registry=registry)
        self.slow = Counter("qraf_ws_slow_reader", "What was done for slow readers", ["action"], registry=registry)
        self.resumes = Counter("qraf_ws_resume", "Streams that clients came back to", ["result"], registry=registry)
        self.depth = Gauge("qraf_queue_depth", "Entries that wait in a queue", ["queue"], registry=registry)
        self.requests = Counter("qraf_http_requests", "HTTP requests by status", ["status"], registry=registry)
        info = Gauge("qraf_build_info", "1; the version is in the label", ["version"], registry=registry)
        info.labels(__version__).set(1)
        self._by_type: dict[str, Counter] = {}

    def frame(self, type: str) -> None:
        """Count a frame."""
        child = self._by_type.get(type)
        if child is None:
            child = self._by_type[type] = self._frames.labels(type)
        child.inc()


def exposition(service: CollectorRegistry, own: GatewayMeters, outboxes: Iterable[Sized]) -> bytes:
    """Both registries in Prometheus' text format."""
    own.depth.labels("outbox").set(sum(len(outbox) for outbox in outboxes))
    return bytes(generate_latest(service)) + bytes(generate_latest(own.registry))
