"""Gives a partition that is being opened the funding that history has, before accounts are compared."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.errors import StateNotLoadedError
from margin.observability import logger
from margin.ports.funding import KnownFunding
from margin.services.funding import ATTEMPTS_MAX, continues, history_lost

if TYPE_CHECKING:
    from margin.domain.funding import Funding
    from margin.domain.market import Market
    from margin.ports.funding import FundingHistory, FundingStore

_NOTHING = KnownFunding(0, Decimal(0), None)


class FundingRestoreService:
    """Restores funding.

    Parameters
    ----------
    history : FundingHistory
        What is right.
    store : FundingStore
        Redis, whatever its markers say.
    warning_pct : Decimal
        Utilisation from which on accounts are warned, in %.
    """

    def __init__(self, history: FundingHistory, store: FundingStore, *, warning_pct: Decimal) -> None:
        self._history = history
        self._store = store
        self._warning_pct = warning_pct

    async def restore(self, partition: int, *, rebuild: bool) -> int:
        """Bring the funding of a closed partition to what history has; how many symbols that took.

        Its triggers move with the index, so they guard what they guarded before. Where the partition has funding that
        history does not know, only a rebuild takes history for right.

        Raises
        ------
        HistoryLostError
            The partition has funding that history does not know, and this is no rebuild.
        StateNotLoadedError
            The partition changed meanwhile.
        UnavailableError
        """
        for _ in range(ATTEMPTS_MAX):
            market = await self._store.market(partition)
            todo = await self._todo(partition, market, rebuild=rebuild)
            placed = [
                await self._store.restore_funding(partition, symbol, funding, market=market)
                for symbol, funding in todo.items()
            ]
            if all(placed):
                if todo:
                    logger.warning("funding_restored", partition=partition, symbols=len(todo))
                return len(todo)
        message = "The funding of a partition kept changing while it was being opened; try again."
        raise StateNotLoadedError(message)

    async def _todo(self, partition: int, market: Market, *, rebuild: bool) -> dict[str, Funding]:
        known = await self._history.known({symbol: funding.n for symbol, funding in market.funding.items()})
        todo: dict[str, Funding] = {}
        for symbol in sorted({*known, *market.funding}):
            present, target = market.funding_of(symbol), known.get(symbol, _NOTHING)
            if not rebuild and not continues(present, target):
                raise history_lost(partition, symbol)
            if (target.n, target.index) != (present.n, present.index):
                lines = market.guarded_lines(symbol)
                todo[symbol] = present.moved_to(target.n, target.index, lines, self._warning_pct)
        return todo
