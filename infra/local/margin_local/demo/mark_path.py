"""The mark prices of a replay, in order, and whether an account could live through a stretch of them.

Between two of its events an account does not change, so it must be healthy at all marks in between. H = E - MM
is a sum over symbols in which a long's part never falls and a short's never rises with its price (maintenance rates are
below 1). So the corner of the worst price of each symbol bounds a whole stretch of marks: when the account is healthy
there, it was healthy throughout; when it is not, the stretch is halved, down to a single step, which is exact. Marks
that were posted together are one step: nobody is judged between them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from margin.domain.market import Mark, Market
from margin.domain.risk import assess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.position import Position

__all__ = ["MarkPath", "PostedMarks"]


@dataclass(frozen=True, slots=True)
class PostedMarks:
    """Mark prices that the engine took in one step.

    Parameters
    ----------
    marks : mapping of str to Mark
        By symbol, one at least; their stamps say when they came into force, by the clock that times events too.
    label : str
        What a reader knows them by, such as row and column.
    """

    marks: Mapping[str, Mark]
    label: str

    @property
    def stamp_us(self) -> int:
        """When all of them were in force."""
        return max(mark.stamp_us for mark in self.marks.values())


class MarkPath:
    """Mark prices by number of the step that set them, from 0; number -1 is the time before the first.

    Parameters
    ----------
    steps : sequence of PostedMarks
        In order of their stamps, which rise strictly.
    instruments : mapping of str to Instrument
        Configured symbols; others have the default rules.

    Raises
    ------
    ValueError
        When the stamps do not rise.
    """

    def __init__(self, steps: Sequence[PostedMarks], instruments: Mapping[str, Instrument]) -> None:
        self.steps = tuple(steps)
        self._instruments = instruments
        self._stamps_us = [step.stamp_us for step in steps]
        if any(later <= earlier for earlier, later in pairwise(self._stamps_us)):
            raise ValueError("stamps of marks rise from step to step")
        self._marks: dict[str, list[Mark | None]] = {symbol: [] for step in steps for symbol in step.marks}
        present: dict[str, Mark | None] = dict.fromkeys(self._marks)
        for step in steps:
            present.update(step.marks)
            for symbol, marks in self._marks.items():
                marks.append(present[symbol])

    def __len__(self) -> int:
        return len(self.steps)

    def number_at(self, at_us: int) -> int:
        """Find the number of the last step that was in force at a time."""
        return bisect_right(self._stamps_us, at_us) - 1

    def mark(self, symbol: str, number: int) -> Mark | None:
        """Mark of a symbol while step ``number`` was the last one; None when there was none yet."""
        marks = self._marks.get(symbol)
        return marks[number] if marks is not None and number >= 0 else None

    def price(self, symbol: str, number: int) -> Decimal | None:
        """Mark price of a symbol while step ``number`` was the last one; None when there was none yet."""
        mark = self.mark(symbol, number)
        return None if mark is None else mark.price

    def market(self, number: int) -> Market:
        """All mark prices that were in force while step ``number`` was the last one; none of them is stale."""
        prices = ((symbol, self.price(symbol, number)) for symbol in self._marks)
        return self.market_of({symbol: price for symbol, price in prices if price is not None})

    def market_of(self, prices: Mapping[str, Decimal]) -> Market:
        """Make a market of given prices under this path's instruments."""
        return Market({symbol: Mark(price, 1) for symbol, price in prices.items()}, self._instruments, 1)

    def first_liquidatable(self, account: Account, start: int, stop: int) -> int | None:
        """Find the first step from ``start`` to before ``stop`` at which the account is liquidatable.

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
        marks = self._marks.get(position.symbol, [])[max(0, start) : stop]
        prices = [mark.price for mark in marks if mark is not None]
        # A missing price at the start must not hide behind later ones.
        if not prices or self.price(position.symbol, start) is None:
            return None
        return min(prices) if position.quantity > 0 else max(prices)
