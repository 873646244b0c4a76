"""Snapshots that somebody wants now: of one memory, or of all that have changed, as an operation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from qraf.actors.runtime import Runtime
from qraf.errors import NodeDown, NotAvailable, QrafError, SealBroken
from qraf.service_orders import OperationView, SnapshotsMade
from qraf.sessions.operations import Operations
from qraf.settings import SnapshotSettings
from qraf.tenants import DEFAULT_TENANT, tenant_of

__all__ = ["order_snapshots"]

log = logging.getLogger(__name__)


async def order_snapshots(
    runtime: Runtime,
    settings: SnapshotSettings | None,
    operations: Operations,
    tenant: str,
    wanted: Sequence[tuple[str, str]] | None = None,
) -> OperationView:
    """A tenant's operation that makes snapshots of `wanted`, nodes and memories; None: of all that have changed.

    All are the tenant's own; for the default tenant, whose operators run the server, those of every tenant. What fails
    of one memory does not keep the others from theirs.

    Raises:
        NotAvailable: none are made here.
        NodeDown: a host that would have to make some is down.
        LimitExceeded: too many operations run or wait.
    """
    if settings is None:
        raise NotAvailable("making snapshots where QRAF_SNAPSHOTS__MODE is off")
    if wanted is None:
        due = await runtime.due_snapshots()
        wanted = [one for one in due if tenant in (DEFAULT_TENANT, tenant_of(one[1][2:]))]
    return operations.start("snapshots", [partial(_make, runtime, *one) for one in wanted], _sum, tenant, is_apart=True)


async def _make(runtime: Runtime, node: str, memory: str) -> SnapshotsMade:
    try:
        is_made = await runtime.snapshot(node, memory) == "made"
    except NodeDown:
        raise
    except QrafError as fault:
        log.warning("no snapshot of memory '%s' on node '%s': %s", memory, node, fault)
        return SnapshotsMade(failed=1, reason=fault.title if isinstance(fault, SealBroken) else str(fault))
    return SnapshotsMade(made=int(is_made), unchanged=int(not is_made))


async def _sum(parts: Sequence[SnapshotsMade]) -> SnapshotsMade:
    reasons = [one.reason for one in parts if one.reason]
    return SnapshotsMade(
        made=sum(one.made for one in parts),
        unchanged=sum(one.unchanged for one in parts),
        failed=sum(one.failed for one in parts),
        reason=reasons[0] if reasons else "",
    )
