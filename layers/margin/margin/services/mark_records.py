"""Keeps the last mark prices in history: Redis that was emptied gets them back, as stale ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.market import RESTORED_STAMP_US

if TYPE_CHECKING:
    from margin.ports import MarketStore
    from margin.ports.history import History


class MarkRecordService:
    """Copies mark prices to history.

    Parameters
    ----------
    market, history : MarketStore, History
        From where to where.
    """

    def __init__(self, market: MarketStore, history: History) -> None:
        self._market = market
        self._history = history

    async def save(self) -> int:
        """Keep the marks in force; how many those are. What came from history itself is not written back.

        Raises
        ------
        UnavailableError
        """
        market = await self._market.market()
        marks = {symbol: mark for symbol, mark in market.marks.items() if mark.stamp_us != RESTORED_STAMP_US}
        if marks:
            await self._history.save_marks(marks)
        return len(marks)
