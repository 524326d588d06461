"""Who can be deleveraged against a liquidated position, the highest rank first."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from margin.domain.deleveraging import deleveraging_rank, has_won
from margin.domain.position import Side
from margin.domain.safe_zone import TriggerSide
from margin.errors import StateNotLoadedError
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from decimal import Decimal
    from fractions import Fraction

    from margin.domain.deleveraging import BankruptPosition
    from margin.domain.position import Position
    from margin.ports.settlement import HolderIndex

HOLDERS_MAX = 10_000
"""How many holders of one side of a symbol are kept in a run, in all partitions together: those of the highest rank."""

HOLDERS_READ_MAX = 20_000
"""How many are looked at to find them, in all partitions together, those furthest from their trigger first."""

TRIES_MAX = 3
"""How often in one run an account that moves between plan and execution is tried."""


class Holder(NamedTuple):
    """Somebody with a profit in a position, when ranked. Of two the one that is deleveraged first is the larger."""

    rank: Fraction
    minus_id: int
    position: Position

    @property
    def account_id(self) -> int:
        """The account's id: of equal ranks the smallest comes first."""
        return -self.minus_id


class Turn:
    """Whose turn it is to be deleveraged, for one position of one shortfall.

    Parameters
    ----------
    holders : sequence of Holder
        The highest rank first.
    tries : Counter of int
        How often an account has moved away in this run.
    """

    def __init__(self, holders: Sequence[Holder], tries: Counter[int]) -> None:
        self._holders = holders
        self._tries = tries
        self._passed = 0

    def account_id(self, bankrupt: BankruptPosition, mark_price: Decimal) -> int | None:
        """Name the first who had won enough for this price and was not passed over; None for nobody."""
        while self._passed < len(self._holders):
            holder = self._holders[self._passed]
            moves = self._tries[holder.account_id] >= TRIES_MAX
            if not moves and has_won(holder.position, mark_price, bankrupt):
                return holder.account_id
            self._passed += 1
        return None

    def pass_over(self) -> None:
        """Go on to the next."""
        self._passed += 1

    def suffices(self, bankrupt: BankruptPosition, mark_price: Decimal, wanted: Decimal) -> bool:
        """Whether those whose turn is still to come, and who had won enough for this price, hold so many units."""
        for holder in self._holders[self._passed :]:
            if has_won(holder.position, mark_price, bankrupt):
                wanted -= abs(holder.position.quantity)
            if wanted <= 0:
                return True
        return False


class Counterparties:
    """Ranks the holders of a position once in a run, and remembers who was passed over.

    Parameters
    ----------
    index : HolderIndex
        Who holds what.
    holders_max, holders_read_max : int
        How many holders of a side to keep and to look at.
    """

    def __init__(
        self, index: HolderIndex, *, holders_max: int = HOLDERS_MAX, holders_read_max: int = HOLDERS_READ_MAX
    ) -> None:
        self._index = index
        self._holders_max = holders_max
        self._holders_read_max = holders_read_max
        self._ranked: dict[tuple[str, Side], list[Holder]] = {}
        self._turns: dict[tuple[int, str, bool], Turn] = {}
        self._tries: Counter[int] = Counter()
        self.skipped = False
        """Whether a partition was left out because its state was not loaded."""

    async def turn(
        self, liquidation_id: int, bankrupt: BankruptPosition, *, shared: bool, keep_going: Callable[[], bool]
    ) -> Turn | None:
        """Whose turn it is; None when time was up before all were ranked.

        Parameters
        ----------
        liquidation_id : int
            Each liquidation has its own turn.
        bankrupt : BankruptPosition
        shared : bool
            Whether its price shares the debt anew: who would lose at that price may be closed at the recorded one.
        keep_going : callable
            Asked before each page of holders.

        Raises
        ------
        UnavailableError
        """
        side = (bankrupt.symbol, bankrupt.opposite)
        if side not in self._ranked:
            ranked = await self._rank(*side, keep_going)
            if ranked is None:
                return None
            self._ranked[side] = ranked
        key = (liquidation_id, bankrupt.symbol, shared)
        if key not in self._turns:
            self._turns[key] = Turn(self._ranked[side], self._tries)
        return self._turns[key]

    def moved(self, account_id: int) -> None:
        """Note that an account went on before it could be deleveraged; after some times it is passed over."""
        self._tries[account_id] += 1

    async def _rank(self, symbol: str, side: Side, keep_going: Callable[[], bool]) -> list[Holder] | None:
        best: list[Holder] = []
        seen: set[int] = set()
        for partition in range(self._index.partitions):
            try:
                if not await self._rank_partition(partition, (symbol, side), best, seen, keep_going):
                    return None
            except StateNotLoadedError as error:
                self.skipped = True
                logger.warning("holders_not_ranked", partition=partition, symbol=symbol, reason=error.detail)
        return sorted(best, reverse=True)

    async def _rank_partition(
        self,
        partition: int,
        held: tuple[str, Side],
        best: list[Holder],
        seen: set[int],
        keep_going: Callable[[], bool],
    ) -> bool:
        """Rank a partition's holders among the best; False when time was up."""
        symbol, side = held
        trigger_side = TriggerSide.FLOOR if side is Side.BUY else TriggerSide.CEILING
        cursor, looked_at = "0", 0
        while looked_at == 0 or (cursor != "0" and looked_at < self._holders_read_max // self._index.partitions):
            if not keep_going():
                return False
            page = await self._index.holders(partition, symbol, trigger_side, cursor)
            for indexed in page.accounts:
                account = indexed.row.account
                rank = None if account.account_id in seen else deleveraging_rank(account, page.market, symbol)
                if rank is None:
                    continue
                seen.add(account.account_id)
                holder = Holder(rank, -account.account_id, account.positions[symbol])
                if len(best) < self._holders_max:
                    heapq.heappush(best, holder)
                else:
                    heapq.heappushpop(best, holder)
            cursor = page.cursor
            looked_at += max(1, len(page.accounts))
        return True
