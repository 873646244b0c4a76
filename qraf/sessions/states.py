"""Stored states as a transport sees them: orders go to the hosts, views and pages come from the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from qraf.actors.runtime import Runtime
from qraf.errors import InvalidRequest, NotFound
from qraf.state_orders import Preparation, StateAnswer, StateOrder, StatePrepare, StateRead, StateView, StateViews
from qraf.storage.journal import Journal
from qraf.storage.states import shown
from qraf.tenants import DEFAULT_TENANT

__all__ = ["States"]


class States:
    """The stored states of a journal and of the hosts that work on them."""

    def __init__(self, journal: Journal, runtime: Runtime) -> None:
        self._journal, self._runtime = journal, runtime

    async def order(self, order: StateOrder, *, is_job: bool = False) -> StateAnswer:
        """Carry out an order: all of it or nothing; what it made is durable. `is_job`: it may take long.

        Cancel: the answer is given up, a change may have been made.

        Raises:
            InvalidRequest: a fault of the request, by its pointer. NotFound: no such state.
            VersionConflict: the state has another version than the one named.
            LimitExceeded: a bound of `settings.states`.
            NodeDown: the host went away; a change may have been made, and the state's version tells.
        """
        if isinstance(order, StateRead) and order.ids:  # what was measured when it was written needs no host
            return StateViews(states=tuple([await self.view(state) for state in order.ids]))
        return await self._runtime.states(order, is_job=is_job)

    async def establish(self, states: Sequence[Preparation]) -> None:
        """Make those of a topology's states that are not there; one that is there stays, whatever became of it.

        Raises:
            InvalidRequest: one cannot be made; the message names it.
        """
        there = await asyncio.to_thread(self._journal.states.versions, [one.id or "" for one in states])
        for one in states:
            if one.id in there:
                continue
            try:
                fields = {name: getattr(one, name) for name in Preparation.__struct_fields__}
                await self._runtime.states(StatePrepare(**fields))
            except InvalidRequest as fault:
                raise InvalidRequest(f"state '{one.label}' of the topology: {fault.detail}", fault.pointer) from None

    async def view(self, state: str) -> StateView:
        """A state as it is shown; raises NotFound."""
        found = await asyncio.to_thread(self._journal.states.fetch, [state], packets=False)
        if state not in found:
            raise NotFound("state", state)
        return shown(found[state])

    async def page(
        self, cursor: str | None, limit: int, tenant: str = DEFAULT_TENANT
    ) -> tuple[tuple[StateView, ...], str | None]:
        """A page of a tenant's states, oldest first, and the cursor of the next one."""
        found, cursor = await asyncio.to_thread(self._journal.states.page, cursor, limit, tenant)
        return tuple(map(shown, found)), cursor
