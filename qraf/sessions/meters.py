"""The service's own counts, in Prometheus types; the gateway adds the connections' and serves them.

Base units; no session, item or tenant in a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from qraf.actors.messages import SnapshotStats
from qraf.frames import NodeView

__all__ = ["Meters"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_RATIOS = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)


class Meters:
    """One set of meters in a registry of its own, so that two services in a process do not collide."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.items = Counter("qraf_write_items", "Items written and acknowledged", ["node"], registry=registry)
        self.write = Histogram(
            "qraf_write_duration_seconds", "Write command to write.done", registry=registry, buckets=_SECONDS
        )
        self.recall = Histogram(
            "qraf_recall_duration_seconds",
            "Stages of a recall: encode, route, measure, join",
            ["stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.first_token = Histogram(
            "qraf_time_to_first_token_seconds", "Prompt to first delta", registry=registry, buckets=_SECONDS
        )
        self.between_tokens = Histogram(
            "qraf_inter_token_latency_seconds",
            "Mean gap between tokens of a response",
            registry=registry,
            buckets=_SECONDS,
        )
        self.tokens = Counter("qraf_tokens", "Tokens read by and written by generators", ["kind"], registry=registry)
        self.routes = Counter("qraf_route_decisions", "Routes by outcome", ["outcome"], registry=registry)
        self.responses = Counter("qraf_responses", "Ended responses by status", ["status"], registry=registry)
        self.running = Gauge("qraf_responses_running", "Responses not ended yet", registry=registry)
        self.unread = Gauge(
            "qraf_responses_unread", "Running responses that nobody reads at the moment", registry=registry
        )
        self.restarts = Gauge("qraf_host_restarts", "Restarts of hosts since the server started", registry=registry)
        self._bytes = Gauge("qraf_state_bytes", "Bytes held by the states of a node", ["node"], registry=registry)
        self._figures = {
            name: Gauge(f"qraf_state_{label}", text, ["node"], registry=registry)
            for name, label, text in (
                ("compression_ratio", "compression_ratio", "Bytes of float32 amplitudes that came in / bytes held"),
                ("coherence_bits", "coherence_bits", "Relative entropy of coherence of the Gram state"),
                ("entropy_bits", "entropy_bits", "Von Neumann entropy"),
                ("purity", "purity_ratio", "Tr rho^2"),
                ("fidelity", "fidelity_ratio", "Mean fidelity of coded to exact amplitudes"),
            )
        }
        self._up = Gauge("qraf_node_up", "1 while the node answers", ["node"], registry=registry)
        self.corrections = Counter(
            "qraf_corrections",
            "Corrected errors: damaged codes made anew (codes), expected ones of links that states crossed (link), "
            "defects of matrices that were repaired (trace, hermiticity, negativity), decoded flips (decoded)",
            ["kind"],
            registry=registry,
        )
        self.quantize_infidelity = Histogram(
            "qraf_quantize_infidelity_ratio",
            "Mean infidelity of the rows or states of one order, for each code",
            ["code"],
            registry=registry,
            buckets=_RATIOS,
        )
        self.quota_rejections = Counter(
            "qraf_quota_rejections",
            "What a rate or a quota refused, by key.POLICY or tenant.POLICY",
            ["policy"],
            registry=registry,
        )
        self.rates_alone = Gauge(
            "qraf_rates_alone",
            "1 while this gateway counts rates by itself, because Redis does not answer",
            registry=registry,
        )
        self._snapshots = Counter(
            "qraf_snapshots",
            "Snapshots of memories: made, failed, restored (a memory began so), refused (not whole), late (unread)",
            ["outcome"],
            registry=registry,
        )
        self._snapshot_bytes = Counter("qraf_snapshot_bytes", "Bytes of snapshots that were made", registry=registry)
        self._snapshots_seen: dict[str, tuple[int, SnapshotStats]] = {}  # by host: the epoch and what was counted last
        self._corrected: dict[str, tuple[int, int]] = {}  # by node: the epoch and the count seen last

    def see(self, views: Sequence[NodeView]) -> None:
        """Take the gauges of the network from what the runtime last knew."""
        for view in views:
            self._up.labels(view.node).set(1.0 if view.up else 0.0)
            if view.role != "memory":
                continue
            self._bytes.labels(view.node).set(view.bytes)
            self._count_corrections(view)
            for name, gauge in self._figures.items():
                gauge.labels(view.node).set(getattr(view.state, name))

    def see_snapshots(self, hosts: Mapping[str, tuple[int, SnapshotStats]]) -> None:
        """Add what is new of the hosts' own counts, which start again with every epoch."""
        for host, (epoch, now) in hosts.items():
            last_epoch, before = self._snapshots_seen.get(host, (epoch, SnapshotStats()))
            if last_epoch != epoch or now.made < before.made:
                before = SnapshotStats()
            for outcome in ("made", "failed", "restored", "refused", "late"):
                self._snapshots.labels(outcome).inc(max(0, getattr(now, outcome) - getattr(before, outcome)))
            self._snapshot_bytes.inc(max(0, now.bytes - before.bytes))
            self._snapshots_seen[host] = epoch, now

    def _count_corrections(self, view: NodeView) -> None:
        """Add what is new of a node's own count, which starts again with every epoch of its host."""
        epoch, seen = self._corrected.get(view.node, (view.epoch, 0))
        if view.epoch != epoch or view.corrected < seen:
            seen = 0
        self.corrections.labels("codes").inc(view.corrected - seen)
        self._corrected[view.node] = view.epoch, view.corrected
