"""The mark prices of a replay, in order, and whether an account could live through a stretch of them.

Between two of its events an account does not change, so it must be healthy at every mark price in between. H = E - MM
is a sum over symbols in which a long's part never falls and a short's never rises with its price (maintenance rates are
below 1). So the corner of the worst price of each symbol bounds a whole stretch of marks: when the account is healthy
there, it was healthy throughout; when it is not, the stretch is halved, down to a single mark, which is exact.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margin.domain.market import Mark, Market
from margin.domain.risk import assess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.position import Position

__all__ = ["MarkPath", "PostedMark"]


@dataclass(frozen=True, slots=True)
class PostedMark:
    """A mark price that the engine took.

    Parameters
    ----------
    stamp_us : int
        When it came into force, by the clock that times events too.
    symbol : str
    price : Decimal
    label : str
        What a reader knows it by, such as its row and column.
    """

    stamp_us: int
    symbol: str
    price: Decimal
    label: str


class MarkPath:
    """Mark prices by number, from 0; number -1 is the time before the first.

    Parameters
    ----------
    marks : sequence of PostedMark
        In order of their stamps, which rise strictly.
    instruments : mapping of str to Instrument
        Configured symbols; others have the default rules.

    Raises
    ------
    ValueError
        When the stamps do not rise.
    """

    def __init__(self, marks: Sequence[PostedMark], instruments: Mapping[str, Instrument]) -> None:
        self.marks = tuple(marks)
        self._instruments = instruments
        self._stamps_us = [mark.stamp_us for mark in marks]
        if any(later <= earlier for earlier, later in zip(self._stamps_us, self._stamps_us[1:], strict=False)):
            raise ValueError("stamps of marks rise from mark to mark")
        self._prices: dict[str, list[Decimal | None]] = {mark.symbol: [] for mark in marks}
        present: dict[str, Decimal | None] = dict.fromkeys(self._prices)
        for mark in marks:
            present[mark.symbol] = mark.price
            for symbol, prices in self._prices.items():
                prices.append(present[symbol])

    def __len__(self) -> int:
        return len(self.marks)

    def number_at(self, at_us: int) -> int:
        """Find the number of the last mark that was in force at a time."""
        return bisect_right(self._stamps_us, at_us) - 1

    def price(self, symbol: str, number: int) -> Decimal | None:
        """Mark price of a symbol while mark ``number`` was the last one; None when there was none yet."""
        prices = self._prices.get(symbol)
        return prices[number] if prices is not None and number >= 0 else None

    def market(self, number: int) -> Market:
        """All mark prices that were in force while mark ``number`` was the last one; none of them is stale."""
        prices = ((symbol, self.price(symbol, number)) for symbol in self._prices)
        return self.market_of({symbol: price for symbol, price in prices if price is not None})

    def market_of(self, prices: Mapping[str, Decimal]) -> Market:
        """Make a market of given prices under this path's instruments."""
        return Market({symbol: Mark(price, 1) for symbol, price in prices.items()}, self._instruments, 1)

    def first_liquidatable(self, account: Account, start: int, stop: int) -> int | None:
        """Find the first mark from ``start`` to before ``stop`` at which the account is liquidatable.

        Raises
        ------
        NoMarkPriceError
            When a position's symbol had no mark price at ``start``.
        """
        if start >= stop or not account.positions or not self._liquidatable_at_worst(account, start, stop):
            return None
        if stop - start == 1:
            return start
        middle = (start + stop) // 2
        found = self.first_liquidatable(account, start, middle)
        return self.first_liquidatable(account, middle, stop) if found is None else found

    def _liquidatable_at_worst(self, account: Account, start: int, stop: int) -> bool:
        prices: dict[str, Decimal] = {}
        for symbol, position in account.positions.items():
            worst = self._worst(position, start, stop)
            if worst is not None:
                prices[symbol] = worst
        return assess(account, self.market_of(prices)).liquidatable

    def _worst(self, position: Position, start: int, stop: int) -> Decimal | None:
        prices = [price for price in self._prices.get(position.symbol, [])[max(0, start) : stop] if price is not None]
        # A missing price at the start must not hide behind later ones.
        if not prices or self.price(position.symbol, start) is None:
            return None
        return min(prices) if position.quantity > 0 else max(prices)
