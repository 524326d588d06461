"""History wins: puts an account back to what history holds when Redis has gone another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.safe_zone import triggers
from margin.errors import ContentionError
from margin.observability import MetricName, count, logger
from margin.ports import Loaded

if TYPE_CHECKING:
    from margin.ports import AccountStore, HistoryAccount, HistoryWriter, MarketStore

_ATTEMPTS_MAX = 5


class HealingService:
    """Rebuilds single accounts from history.

    Parameters
    ----------
    accounts : AccountStore
        What is healed.
    market : MarketStore
        Marks to anchor the triggers to.
    """

    def __init__(self, accounts: AccountStore, market: MarketStore) -> None:
        self._accounts = accounts
        self._market = market

    async def heal(self, account_id: int, forked_event_id: int, writer: HistoryWriter) -> None:
        """Drop what history refused of an account and load the account from history.

        Events on the pending list go with their idempotency keys: none was acknowledged as final, so a retry executes
        them anew. Only as long as the event that forked is among them: whoever comes after another has healed must not
        drop what was decided since.

        Raises
        ------
        ContentionError
            The account kept changing.
        PostgresUnavailableError, RedisUnavailableError
        """
        for _ in range(_ATTEMPTS_MAX):
            version = (await self._accounts.versions([account_id]))[account_id]
            row = await writer.account(account_id)
            if row is None:
                logger.error("healing_without_history", account_id=account_id, version=version)
                return
            loaded = await self.load(row, writer, expected_version=version, forked_event_id=forked_event_id)
            if loaded is Loaded.CHANGED:
                continue
            if loaded is Loaded.DONE:
                count(MetricName.HISTORY_FORKS)
                logger.error("history_fork_healed", account_id=account_id, dropped=version, restored=row.version)
            return
        message = f"Account {account_id} kept changing while it was being put back to history; try again."
        raise ContentionError(message)

    async def load(
        self, row: HistoryAccount, writer: HistoryWriter, *, expected_version: str, forked_event_id: int | None = None
    ) -> Loaded:
        """Load one account with its live keys, if Redis holds it at the expected version."""
        market = await self._market.market()
        return await self._accounts.load(
            row,
            await writer.live_keys(row.account.account_id),
            triggers(row.account, market),
            expected_version=expected_version,
            forked_event_id=forked_event_id,
        )
