"""History wins: puts an account back to what history holds when Redis has gone another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.safe_zone import triggers
from margin.errors import ContentionError
from margin.observability import MetricName, count, logger

if TYPE_CHECKING:
    from margin.ports import AccountStore, History, HistoryAccount, HistoryKey, MarketStore

_ATTEMPTS_MAX = 5


class HealingService:
    """Rebuilds single accounts from history.

    Parameters
    ----------
    accounts : AccountStore
        What is healed.
    market : MarketStore
        Marks to anchor the triggers to.
    history : History
        What is right.
    """

    def __init__(self, accounts: AccountStore, market: MarketStore, history: History) -> None:
        self._accounts = accounts
        self._market = market
        self._history = history

    async def heal(self, account_id: int) -> None:
        """Drop what history refused of an account and load the account from history.

        Events on the pending list go with their idempotency keys: none was acknowledged as final, so a retry executes
        them anew.

        Raises
        ------
        ContentionError
            The account kept changing.
        PostgresUnavailableError, RedisUnavailableError
        """
        for _ in range(_ATTEMPTS_MAX):
            version = (await self._accounts.versions([account_id]))[account_id]
            held = await self._history.account(account_id)
            if held is None:
                logger.error("healing_without_history", account_id=account_id, version=version)
                return
            if await self.load(*held, expected_version=version):
                count(MetricName.HISTORY_FORKS)
                logger.error("history_fork_healed", account_id=account_id, dropped=version, restored=held[0].version)
                return
        message = f"Account {account_id} kept changing while it was being put back to history; try again."
        raise ContentionError(message)

    async def load(self, row: HistoryAccount, keys: list[HistoryKey], *, expected_version: str) -> bool:
        """Load one account; False when Redis holds it at another version than expected."""
        market = await self._market.market()
        return await self._accounts.load(row, keys, triggers(row.account, market), expected_version=expected_version)
