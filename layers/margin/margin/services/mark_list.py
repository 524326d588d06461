"""Mark prices with their ages, and those that wait to be confirmed: what an operator and a sender of prices look at."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.market import RESTORED_STAMP_US

if TYPE_CHECKING:
    from margin.domain.mark_jump import MarkCandidate
    from margin.domain.market import Mark, Market
    from margin.ports import MarketStore


@dataclasses.dataclass(frozen=True, slots=True)
class ListedMark:
    """The mark price of a symbol at one moment.

    ``age_s`` is None where nobody knows it any more, because the price was lost and put back from history; such a one
    is stale. ``age_max_s`` is what its instrument allows, None for no limit. ``waiting`` was set aside.
    """

    symbol: str
    mark: Mark
    age_s: Decimal | None
    is_stale: bool
    age_max_s: int | None
    waiting: MarkCandidate | None


@dataclasses.dataclass(frozen=True, slots=True)
class MarkList:
    """Mark prices in order of their symbols, and the moment they are of, in microseconds since the epoch."""

    as_of_us: int
    marks: tuple[ListedMark, ...]


class MarkListService:
    """Lists mark prices.

    Parameters
    ----------
    market : MarketStore
        Where they are. There are no more symbols than it takes.
    """

    def __init__(self, market: MarketStore) -> None:
        self._market = market

    async def mark_prices(self, *, symbol: str | None = None) -> MarkList:
        """List the mark prices of all symbols, or of one; nothing for a symbol that has none.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        market, waiting = await self._market.market_and_candidates()
        symbols = sorted(market.marks) if symbol is None else [symbol] if symbol in market.marks else []
        return MarkList(market.now_us, tuple(_listed(market, name, waiting.get(name)) for name in symbols))


def _listed(market: Market, symbol: str, waiting: MarkCandidate | None) -> ListedMark:
    mark = market.marks[symbol]
    age_s = None
    if mark.stamp_us != RESTORED_STAMP_US:
        # A clock that was put back would make it younger than it can be.
        age_s = Decimal(max(0, market.now_us - mark.as_of_us)).scaleb(-6)
    age_max_s = market.instrument(symbol).mark_max_age_s
    return ListedMark(symbol, mark, age_s, market.is_stale(symbol), age_max_s, waiting)
