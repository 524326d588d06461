"""Rebuilding: makes the state in Redis anew from history, whatever Redis says; of one account, some partitions or all.

For an operator: nothing does it by itself. A rebuild can be repeated, and one that was broken off goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from margin.caller import NOBODY
from margin.errors import (
    ContentionError,
    EventsBlockedError,
    InvalidRequestError,
    RedisUnavailableError,
    UnknownAccountError,
)
from margin.observability import logger
from margin.ports import Dropped, Loaded
from margin.services.key_sweep import KeySweepService

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from margin.caller import Caller
    from margin.ports.history import History
    from margin.services.layout import Layout
    from margin.services.opening import OpeningReport, OpeningService

HOLD_S = 60.0
"""For so long at most nothing commits on an account whose rebuild died."""


class RebuildService:
    """Rebuilds accounts and partitions.

    Parameters
    ----------
    layout : Layout
        Redis.
    history : History
        What is right.
    opening : OpeningService
        Rebuilds partitions.
    """

    def __init__(self, layout: Layout, history: History, opening: OpeningService) -> None:
        self._layout = layout
        self._history = history
        self._opening = opening
        self._key_sweep = KeySweepService(layout.accounts, history)

    async def rebuild_account(self, account_id: int, *, caller: Caller = NOBODY) -> str:
        """Load one account from history: balance, positions, live keys, triggers.

        Nothing commits on it meanwhile (its requests answer 503 STATE_NOT_LOADED for some milliseconds); what it has
        pending goes to history first. It keeps the epoch of its partition: its chain goes on. One that history does
        not know is removed. History remembers for whom it was done.

        Returns
        -------
        str
            The version that it has now; empty when it was removed.

        Raises
        ------
        EventsBlockedError
            History refuses what the account has pending; nothing was changed.
        UnknownAccountError
            Neither history nor Redis knows it.
        ContentionError
            Another rebuild of the account got in between, or this one took too long.
        UnavailableError
        """
        accounts = self._layout.accounts
        suspects = await self._key_sweep.suspects(account_id)
        hold = await accounts.hold(account_id, HOLD_S)
        try:
            if not await self._layout.drain.drain_account(account_id):
                raise EventsBlockedError(_BLOCKED.format(account_id=account_id))
            dropped = (await accounts.versions([account_id]))[account_id]
            restored = await self._load(account_id, dropped, hold)
            if not await self._key_sweep.forget_false(account_id % accounts.partitions, suspects, hold):
                raise ContentionError(_CHANGED.format(account_id=account_id))
        finally:
            # Where that fails the hold ends by itself.
            with contextlib.suppress(RedisUnavailableError):
                await accounts.release(account_id, hold)
        await self._history.record_rebuild(account_id, dropped, restored, caller)
        logger.warning(
            "account_rebuilt", account_id=account_id, dropped=dropped, restored=restored, subject=caller.subject
        )
        return restored

    async def rebuild(
        self,
        partitions: Collection[int] | None = None,
        *,
        keep_going: Callable[[], bool] = lambda: True,
        caller: Caller = NOBODY,
    ) -> OpeningReport:
        """Load every account of some partitions, or of all, from history, and begin a new epoch there.

        Requests that need these partitions answer 503 STATE_NOT_LOADED meanwhile. Marks stay; those that are missing
        or older than history's come back as stale. An account that history does not know goes. One whose pending
        events history refuses stays as it is. Partitions that have to be opened anyway are opened too.

        Where a rebuild of these partitions was broken off, what is left of it is done; the call after that begins anew.

        Raises
        ------
        InvalidRequestError
            There is no such partition.
        StateNotLoadedError
            Another process is opening or rebuilding at this moment.
        UnavailableError
        """
        count = self._layout.accounts.partitions
        chosen = range(count) if partitions is None else partitions
        if any(not 0 <= partition < count for partition in chosen):
            message = f"partition: must be from 0 to {count - 1}, for PARTITIONS is {count}."
            raise InvalidRequestError(message, "partition")
        return await self._opening.open(rebuild=chosen, keep_going=keep_going, caller=caller)

    async def _load(self, account_id: int, version: str, hold: str) -> str:
        """Replace an account by what history holds, or remove it; the version that it has then."""
        accounts = self._layout.accounts
        market = await self._layout.market.market(account_id % accounts.partitions)
        async with self._history.reserve() as writer:
            row = await writer.account(account_id)
            if row is None:
                if not version:
                    raise UnknownAccountError(account_id)
                if await accounts.drop(account_id, account_id % accounts.partitions, hold) is not Dropped.DONE:
                    raise ContentionError(_CHANGED.format(account_id=account_id))
                return ""
            (load,) = await self._layout.healing.loads([row], {account_id: version}, market, writer, guard=hold)
            load = dataclasses.replace(load, swept_symbols=tuple({**market.marks, **market.instruments}))
            if await accounts.load(load) is not Loaded.DONE:
                raise ContentionError(_CHANGED.format(account_id=account_id))
        return row.version


_BLOCKED = "Account {account_id} has events that cannot be stored in history; put that right first."
_CHANGED = "Account {account_id} changed while it was being rebuilt; try again."
