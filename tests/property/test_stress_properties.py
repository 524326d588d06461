from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.decimals import exact, round_down
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.risk import assess, is_liquidatable
from margin.domain.stress import StressOutcome, StressTest, moved_market
from margin.services.stress import LADDER_MOVES
from tests.property.strategies import (
    SYMBOLS,
    Book,
    books,
    failing_books,
    liquidation_policies,
    markets,
    positions,
    units,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.market import Market
    from margin.domain.position import Position

Moves = dict[str, Decimal]

moves = st.sampled_from(LADDER_MOVES) | units(-99_000_000, 1_000_000_000)
shocks = st.dictionaries(st.sampled_from(SYMBOLS), moves, max_size=len(SYMBOLS))


@dataclass(frozen=True)
class House:
    """All accounts of an exchange."""

    accounts: tuple[Account, ...]
    market: Market

    def tested(self, moved: Sequence[Mapping[str, Decimal]], policy: LiquidationPolicy) -> tuple[StressOutcome, ...]:
        test = StressTest(self.market, moved, policy)
        for account in self.accounts:
            test.add(account)
        return test.outcomes

    @exact
    def liquidated(self, moved: Mapping[str, Decimal], policy: LiquidationPolicy) -> StressOutcome:
        """Liquidate everyone in turn, as the engine would."""
        market = moved_market(self.market, moved)
        due = [account for account in self.accounts if is_liquidatable(account, market)]
        results = [result for account in due if (result := liquidate(account, market, policy)) is not None]
        assert len(results) == len(due)
        return StressOutcome(
            accounts=len(results),
            notional=sum((abs(one.quantity) * one.price for result in results for one in result.closed), Decimal(0)),
            shortfall=sum((result.shortfall for result in results), Decimal(0)),
            fees=sum((result.fee for result in results), Decimal(0)),
        )


@st.composite
def accounts_near_margin(draw: st.DrawFn, market: Market, account_id: int) -> Account:
    """An account whose equity at a market is some share of its margin, often between nothing and all of it."""
    held = draw(st.lists(st.sampled_from(SYMBOLS), unique=True))
    account = Account(account_id, Decimal(0), {symbol: draw(positions(symbol)) for symbol in held})
    return _with_equity(
        account, market, draw(units(-50_000_000, 150_000_000) | st.sampled_from([Decimal(0), Decimal(1)]))
    )


@exact
def _with_equity(account: Account, market: Market, share: Decimal) -> Account:
    risk = assess(account, market)
    return account.with_balance_change(round_down(risk.maintenance_margin * share - risk.equity))


@st.composite
def houses(draw: st.DrawFn, at: Mapping[str, Decimal], accounts_max: int = 3) -> House:
    market = draw(markets(may_be_stale=True))
    near = moved_market(market, at)
    count = draw(st.integers(1, accounts_max))
    return House(tuple(draw(accounts_near_margin(near, account_id)) for account_id in range(1, count + 1)), market)


@settings(deadline=None, max_examples=300)
@given(st.data(), st.lists(shocks, min_size=1, max_size=3), liquidation_policies())
def test_joint_shocks_come_to_what_liquidating_everyone_at_the_moved_marks_does(
    data: st.DataObject, joint: list[Moves], policy: LiquidationPolicy
) -> None:
    house = data.draw(houses(at=data.draw(st.sampled_from(joint))))
    assert house.tested(joint, policy) == tuple(house.liquidated(moved, policy) for moved in joint)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(SYMBOLS), st.sampled_from(LADDER_MOVES), liquidation_policies())
def test_every_step_of_the_ladder_comes_to_what_liquidating_everyone_there_does(
    data: st.DataObject, symbol: str, near: Decimal, policy: LiquidationPolicy
) -> None:
    house = data.draw(houses(at={symbol: near}))
    steps: list[Moves] = [{symbol: move} for move in LADDER_MOVES]
    assert house.tested(steps, policy) == tuple(house.liquidated(step, policy) for step in steps)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(SYMBOLS), st.booleans())
def test_the_further_a_price_moves_against_all_holders_the_more_are_liquidated_and_the_less_can_they_pay(
    data: st.DataObject, symbol: str, falls: bool
) -> None:
    market = data.draw(markets(may_be_stale=True))
    held = data.draw(st.lists(positions(symbol), min_size=1, max_size=3))
    towards = sorted(LADDER_MOVES, reverse=falls)
    house = House(
        tuple(_against(one, account_id, falls, market, data) for account_id, one in enumerate(held, 1)), market
    )
    outcomes = house.tested([{symbol: move} for move in towards], LiquidationPolicy())
    counts = [outcome.accounts for outcome in outcomes]
    shortfalls = [outcome.shortfall for outcome in outcomes]
    assert (counts, shortfalls) == (sorted(counts), sorted(shortfalls))


def _against(one: Position, account_id: int, falls: bool, market: Market, data: st.DataObject) -> Account:
    position = one if (one.quantity > 0) is falls else replace(one, quantity=-one.quantity, entry_cost=-one.entry_cost)
    account = Account(account_id, Decimal(0), {position.symbol: position})
    return _with_equity(account, market, data.draw(units(100_000_000, 500_000_000)))


@settings(deadline=None, max_examples=300)
@given(books(may_be_stale=True) | failing_books(may_be_stale=True))
def test_liquidatable_is_who_has_something_closed(book: Book) -> None:
    result = liquidate(book.account, book.market, LiquidationPolicy())
    assert is_liquidatable(book.account, book.market) is bool(result is not None and result.closed)
