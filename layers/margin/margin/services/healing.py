"""History wins: puts accounts back to what history holds where Redis has gone another way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.domain.event import parse_version
from margin.domain.margin_warning import MarginWarnings
from margin.errors import ContentionError
from margin.observability import MetricName, count, logger
from margin.ports import AccountLoad, Loaded
from margin.services.anchors import anchor_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.market import Market
    from margin.ports import AccountStore, MarketStore
    from margin.ports.history import HistoryAccount, HistoryWriter

_ATTEMPTS_MAX = 5


class HealingService:
    """Rebuilds single accounts from history.

    Parameters
    ----------
    accounts : AccountStore
        What is healed.
    market : MarketStore
        Marks to anchor the triggers to.
    warnings : MarginWarnings
        Who is to be warned; whether an account has been warned is not in history, so it may be warned again.
    """

    def __init__(self, accounts: AccountStore, market: MarketStore, warnings: MarginWarnings | None = None) -> None:
        self._accounts = accounts
        self._market = market
        self._warnings = warnings or MarginWarnings()

    async def behind(self, rows: Sequence[HistoryAccount]) -> list[int]:
        """Accounts, all of one partition, of which Redis knows less than history, or something else.

        Their rows must have been read before: Redis commits first.

        Raises
        ------
        RedisUnavailableError
        """
        versions = await self._accounts.versions([row.account.account_id for row in rows])
        return [row.account.account_id for row in rows if is_behind(versions[row.account.account_id], row.version)]

    async def heal(self, account_id: int, writer: HistoryWriter, *, forked_event_id: int | None = None) -> bool:
        """Drop what history refused of an account and load the account from history.

        Events on the pending list go with their idempotency keys: none was acknowledged as final, so a retry executes
        them anew. With ``forked_event_id`` only as long as that event is among them: whoever comes after another has
        healed must not drop what was decided since. Without it only when Redis knows less than history.

        Returns
        -------
        bool
            Whether the account was put back.

        Raises
        ------
        ContentionError
            The account kept changing.
        PostgresUnavailableError, RedisUnavailableError
        """
        for _ in range(_ATTEMPTS_MAX):
            # Only the loading decides: it takes place at this very version or not at all.
            version = (await self._accounts.versions([account_id]))[account_id]
            row = await writer.account(account_id)
            if row is None:
                logger.error("healing_without_history", account_id=account_id, version=version)
                return False
            if forked_event_id is None and not is_behind(version, row.version):
                return False
            market = await self._market.market(account_id % self._accounts.partitions)
            (load,) = await self.loads([row], {account_id: version}, market, writer)
            loaded = await self._accounts.load(dataclasses.replace(load, forked_event_id=forked_event_id))
            if loaded is Loaded.CHANGED:
                continue
            if loaded is Loaded.DONE:
                count(MetricName.HISTORY_FORKS)
                logger.error("history_fork_healed", account_id=account_id, dropped=version, restored=row.version)
            return loaded is Loaded.DONE
        message = f"Account {account_id} kept changing while it was being put back to history; try again."
        raise ContentionError(message)

    async def loads(
        self,
        rows: Sequence[HistoryAccount],
        versions: Mapping[int, str],
        market: Market,
        writer: HistoryWriter,
        *,
        guard: str = "",
    ) -> list[AccountLoad]:
        """Prepare the loading of accounts from history, each if Redis still has it at its version.

        ``market`` is that of their partition.

        Of an account that has very many keys the older ones are put back here already. ``guard`` is the opening or the
        hold under which alone they are loaded; see `margin.ports.AccountLoad`.

        Raises
        ------
        PostgresUnavailableError, RedisUnavailableError
        """
        keys = await writer.live_keys([row.account.account_id for row in rows])
        anchors = (
            anchor_of(row.account, versions[row.account.account_id], market, self._warnings, warned=False)
            for row in rows
        )
        loads = [
            AccountLoad(
                row=row,
                keys=keys.get(anchor.account_id, ()),
                triggers=anchor.triggers,
                warnings=anchor.warnings,
                expected_version=anchor.version,
                guard=guard,
                instrument_versions=anchor.instrument_versions,
            )
            for row, anchor in zip(rows, anchors, strict=True)
        ]
        # Before the account itself: from when its version says that all is well, no key may be missing.
        return [await self._with_older_keys(load, writer) for load in loads]

    async def _with_older_keys(self, load: AccountLoad, writer: HistoryWriter) -> AccountLoad:
        """Put back, some at a time, the keys of an account that are too many to come with it."""
        if len(load.keys) < writer.live_keys_max:
            return load
        kept: list[str] = []
        oldest = load.keys[0].event_id
        while older := await writer.older_keys(load.row.account.account_id, oldest):
            waiting = await self._accounts.restore_keys(load, older)
            if waiting is None:
                break
            kept += waiting
            oldest = older[-1].event_id
        return dataclasses.replace(load, kept_keys=kept)


def is_behind(version: str, stored: str) -> bool:
    """Whether Redis' version of an account lacks what history's has: fewer events, or another last one."""
    (n, event_id), (stored_n, stored_event_id) = parse_version(version), parse_version(stored)
    return n < stored_n or (n == stored_n and event_id != stored_event_id)
