"""Keeps mark prices in history: the last ones, for a Redis that was emptied, and samples of all, to be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from margin.domain.market import RESTORED_STAMP_US

if TYPE_CHECKING:
    from margin.ports import MarketStore
    from margin.ports.history import History

FORGOTTEN_PER_RUN_MAX: Final = 5_000
"""Five times what the most symbols that there can be add in a run, so that a shorter time to keep them is caught up."""

_US_PER_DAY: Final = 86_400_000_000


class MarkRecordService:
    """Copies mark prices to history.

    Parameters
    ----------
    market, history : MarketStore, History
        From where to where.
    kept_days : int
        For how many days samples are kept; 0 for ever.
    """

    def __init__(self, market: MarketStore, history: History, *, kept_days: int = 0) -> None:
        self._market = market
        self._history = history
        self._kept_days = kept_days

    async def save(self) -> int:
        """Keep the marks in force, and sample those that changed since the last time; how many are in force.

        What came from history itself is not written back. Samples that are too old go, so many at a time at most.

        Raises
        ------
        UnavailableError
        """
        market = await self._market.market()
        marks = {symbol: mark for symbol, mark in market.marks.items() if mark.stamp_us != RESTORED_STAMP_US}
        if marks:
            await self._history.save_marks(marks)
        if self._kept_days:
            oldest_us = market.now_us - self._kept_days * _US_PER_DAY
            await self._history.forget_mark_samples(oldest_us, FORGOTTEN_PER_RUN_MAX)
        return len(marks)
