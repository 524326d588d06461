"""Setting pause switches: in history, which keeps them and decides their order; then in Redis, which enforces them.

A change that is in history takes effect: where it could not be written to Redis at once, the drain writes it within a
minute, and no partition is opened before it has all of them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from margin.domain.controls import ControlState
from margin.errors import StateNotLoadedError, UnavailableError
from margin.observability import logger
from margin.ports.controls import ControlChange
from margin.services.cursors import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from margin.caller import Caller
    from margin.ports.controls import ControlHistory, ControlStore

CHANGES_PER_PAGE = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class ControlOutcome:
    """A change that is in history; ``effective``: every commit from now on obeys it."""

    change: ControlChange
    effective: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ControlPage:
    """Switches that are not active, by name, and the cursor of the next page (None on the last)."""

    changes: list[ControlChange]
    next_cursor: str | None


class ControlService:
    """Sets and lists pause switches.

    Parameters
    ----------
    history : ControlHistory
        Where changes are kept.
    store : ControlStore
        Where switches are enforced. It does not look at markers.
    """

    def __init__(self, history: ControlHistory, store: ControlStore) -> None:
        self._history = history
        self._store = store

    async def set(self, name: str, state: ControlState, reason: str, caller: Caller) -> ControlOutcome:
        """Set a switch; setting it again does no harm.

        Parameters
        ----------
        name : str
            Made by `margin.domain.controls`: ``engine``, a symbol's or an account's.
        state : ControlState
            From the next commit on, where the outcome is effective.
        reason : str
            Why, for those who find it set.
        caller : Caller
            Who asks, for the record.

        Raises
        ------
        PostgresUnavailableError
            Nothing was changed.
        OutcomeUnknownError
            The change may be in history, and takes effect if it is.
        """
        change = await self._history.record(name, state, reason, caller)
        try:
            await self._enforce(change)
        except UnavailableError as error:
            logger.warning("control_recorded", control=name, state=str(state), change_id=change.id, code=error.code)
            return ControlOutcome(change, effective=False)
        logger.warning("control_set", control=name, state=str(state), change_id=change.id)
        return ControlOutcome(change, effective=True)

    async def _enforce(self, change: ControlChange) -> None:
        """Put a change in place that was just written down.

        Redis can know a higher id: somebody was quicker, or history came back older than Redis and gives out the same
        ids again. Once history has skipped those ids, what it says about the name is true for good.
        """
        there = await self._store.put([change])
        foremost = max(there.stood, there.aligned_to)
        if foremost > change.id:
            await self._history.skip_ids(foremost)
            await self._store.put([await self._history.newest(change.name)], over=foremost)

    async def state(self, name: str) -> ControlState:
        """Read the switch that commits obey now.

        Raises
        ------
        RedisUnavailableError
        """
        return await self._store.state(name)

    async def list(self, *, limit: int = 100, cursor: str | None = None) -> ControlPage:
        """List the switches that are not active; one that stays so over all pages is on one of them.

        Raises
        ------
        CursorInvalidError, PostgresUnavailableError
        """
        after_name = ""
        if cursor is not None:
            (after_name,) = decode_cursor("controls", cursor, str)
        changes = await self._history.in_force(after_name, limit + 1)
        more = len(changes) > limit
        changes = changes[:limit]
        return ControlPage(changes, encode_cursor("controls", changes[-1].name) if more else None)

    async def align(self, *, anew: Sequence[int] = ()) -> int:
        """Write to Redis what history has and Redis may lack.

        Redis knows up to which change it has all of them, so that this is one read and two queries when there is
        nothing to do, and one query and one script for each partition per 1000 switches that changed since. A Redis
        that was emptied, or came back older, knows less and gets more. Where history came back older, Redis names a
        change that history does not have, and all switches are written anew, without one being away in between.
        Aligning twice at the same time does no harm.

        Parameters
        ----------
        anew : sequence of int
            Partitions that are being opened. With any, all switches are written whatever Redis holds.

        Returns
        -------
        int
            How many changes it took.

        Raises
        ------
        StateNotLoadedError
            Redis was emptied meanwhile.
        PostgresUnavailableError, RedisUnavailableError
        """
        after_id, foremost = await self._store.aligned_to()
        lost = foremost > 0 and await self._history.last_id(foremost) < foremost
        if lost or anew:
            await self._write_anew(foremost)
        if lost:
            logger.error("controls_older_than_redis", change_id=foremost)
            # The last step: until here whoever comes finds what is wrong, even if this process goes no further.
            await self._store.unalign()
            after_id = 0
        taken = 0
        while changes := await self._history.changes(after_id, CHANGES_PER_PAGE):
            there = await self._store.align(changes, after_id=after_id)
            if there.stood:
                # Somebody was quicker, or history does not have that id; then what it has goes over it.
                await self._history.skip_ids(there.stood)
                await self._write_over(there.stood, partial(self._history.changes, after_id, CHANGES_PER_PAGE))
                continue
            if there.aligned_to < changes[-1].id:
                message = "Redis was emptied while pause switches were written to it; try again."
                raise StateNotLoadedError(message)
            taken += len(changes)
            after_id = changes[-1].id
        if taken:
            logger.info("controls_aligned", changes=taken, change_id=after_id)
        return taken

    async def _write_anew(self, over: int) -> None:
        """Replace all switches in Redis, of which history may lack the changes up to ``over``, by those of history."""
        await self._history.skip_ids(over)
        after_id = 0
        while True:
            changes, over = await self._write_over(over, partial(self._history.changes, after_id, CHANGES_PER_PAGE))
            if not changes:
                break
            after_id = changes[-1].id
        async for names in self._store.stopped():
            _, over = await self._write_over(over, partial(self._strangers, names))

    async def _write_over(
        self, over: int, read: Callable[[], Awaitable[Sequence[ControlChange]]]
    ) -> tuple[Sequence[ControlChange], int]:
        """Put in place what is read from history, which skipped ids up to ``over``; what that was, and up to where now.

        Whatever id Redis has for a name is then either in history before it is read once more, or never will be.
        """
        while changes := await read():
            there = await self._store.put(changes, over=over)
            if not there.stood:
                break
            over = there.stood
            await self._history.skip_ids(over)
        return changes, over

    async def _strangers(self, names: Sequence[str]) -> Sequence[ControlChange]:
        """Make the changes by which those of some switches that history does not know are active again."""
        known = await self._history.known(names)
        return [ControlChange(0, name, ControlState.ACTIVE, "", None, 0) for name in names if name not in known]
