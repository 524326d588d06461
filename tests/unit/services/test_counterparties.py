"""Who can be deleveraged: ranked over all partitions, in pages, no more of them than allowed."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.account import Account
from margin.domain.deleveraging import BankruptPosition
from margin.domain.market import Mark, Market
from margin.domain.position import Position
from margin.domain.safe_zone import TriggerSide
from margin.errors import StateNotLoadedError
from margin.ports import AccountRow, IndexedAccount, SweepPage
from margin.services.counterparties import TRIES_MAX, Counterparties

if TYPE_CHECKING:
    from collections.abc import Mapping

BTC = "BTC-PERP"
LOST = BankruptPosition(BTC, Decimal(1), Decimal(30000), Decimal(35000))
MARK_PRICE = Decimal(30000)
MARKET = Market({BTC: Mark(Decimal(30000), 1)}, {}, 1)


class Index:
    """Pages of two shorts, by partition; account id to entry price."""

    def __init__(self, *partitions: Mapping[int, str], closed: int | None = None) -> None:
        self._partitions = partitions
        self._closed = closed
        self.read = 0

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    async def holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        assert (symbol, side) == (BTC, TriggerSide.CEILING)
        if partition == self._closed:
            raise StateNotLoadedError("it was restarted")
        self.read += 1
        start = int(cursor)
        held = list(self._partitions[partition].items())
        rows = tuple(IndexedAccount(AccountRow("1:1", _short(*one)), {}) for one in held[start : start + 2])
        return SweepPage(str(start + 2) if len(rows) == 2 else "0", rows, MARKET)


def _short(account_id: int, entry_price: str) -> Account:
    position = Position(BTC, Decimal(-1), -Decimal(entry_price))
    return Account(account_id, Decimal(20000), {BTC: position})


async def left(counterparties: Counterparties, liquidation_id: int = 1, lost: BankruptPosition = LOST) -> list[int]:
    """Whose turn it is, one after the other, as the caller passes them over."""
    turn = await counterparties.turn(liquidation_id, lost, shared=False, keep_going=lambda: True)
    assert turn is not None
    named = []
    while (account_id := turn.account_id(lost, MARK_PRICE)) is not None:
        named.append(account_id)
        turn.pass_over()
    return named


async def first(counterparties: Counterparties) -> int | None:
    turn = await counterparties.turn(1, LOST, shared=False, keep_going=lambda: True)
    return turn and turn.account_id(LOST, MARK_PRICE)


async def test_highest_rank_comes_first_and_ties_go_by_id() -> None:
    index = Index({2: "40000", 4: "50000", 6: "60000"}, {1: "50000", 3: "35000", 5: "34999"}, {})
    # Half of the entry and less equity, or two fifths and more: the same. At 34999 the bankruptcy price is a loss.
    assert await left(Counterparties(index)) == [1, 4, 6, 2, 3]


async def test_index_is_read_once_in_a_run_and_each_shortfall_has_its_own_turn() -> None:
    index = Index({2: "40000", 4: "50000"})
    counterparties = Counterparties(index)
    assert await left(counterparties) == [4, 2]
    assert await left(counterparties) == []
    read = index.read
    other = BankruptPosition(BTC, Decimal(3), Decimal(30000), Decimal(45000))
    assert await left(counterparties, 2, other) == [4]
    assert index.read == read


async def test_who_would_lose_at_a_price_beyond_can_still_be_closed_at_the_recorded_one() -> None:
    counterparties = Counterparties(Index({2: "40000"}))
    beyond = BankruptPosition(BTC, Decimal(1), Decimal(30000), Decimal(41000))
    turn = await counterparties.turn(1, beyond, shared=True, keep_going=lambda: True)
    assert turn is not None
    assert turn.account_id(beyond, MARK_PRICE) is None
    assert await left(counterparties) == [2]


async def test_holders_who_won_enough_suffice_or_not() -> None:
    turn = await Counterparties(Index({2: "40000", 4: "50000", 6: "34000"})).turn(
        1, LOST, shared=False, keep_going=lambda: True
    )
    assert turn is not None
    assert turn.suffices(LOST, MARK_PRICE, Decimal(2))
    assert not turn.suffices(LOST, MARK_PRICE, Decimal("2.1"))
    turn.pass_over()
    assert not turn.suffices(LOST, MARK_PRICE, Decimal(2))


async def test_of_all_holders_those_of_the_highest_rank_are_kept() -> None:
    index = Index({number: str(40000 + 100 * number) for number in range(1, 30)})
    best = await left(Counterparties(index, holders_max=8))
    assert best == (await left(Counterparties(index)))[:8]
    assert len(best) == 8


async def test_no_more_holders_are_looked_at_than_allowed() -> None:
    index = Index(dict.fromkeys(range(2, 40, 2), "50000"), dict.fromkeys(range(1, 40, 2), "50000"))
    assert len(await left(Counterparties(index, holders_read_max=8))) == 8
    assert index.read == 4


async def test_time_is_asked_for_before_each_page_and_what_was_ranked_by_half_is_not_used() -> None:
    index = Index(dict.fromkeys(range(2, 20, 2), "50000"))
    counterparties = Counterparties(index)
    assert await counterparties.turn(1, LOST, shared=False, keep_going=lambda: index.read < 2) is None
    assert index.read == 2
    assert len(await left(counterparties)) == 9


async def test_partition_that_is_not_loaded_is_left_out() -> None:
    index = Index({2: "50000"}, {1: "40000"}, closed=0)
    counterparties = Counterparties(index)
    assert await left(counterparties) == [1]
    assert counterparties.skipped


async def test_account_that_moved_some_times_is_passed_over() -> None:
    counterparties = Counterparties(Index({2: "40000", 4: "50000"}))
    for times in range(TRIES_MAX):
        assert await first(counterparties) == 4, times
        counterparties.moved(4)
    assert await first(counterparties) == 2
