"""Deleveraging, with numbers that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from margin.domain.deleveraging import (
    BankruptPosition,
    deleverage,
    deleveraging_rank,
    most_to_deleverage,
)
from margin.domain.deleveraging_shares import (
    quantities_to_deleverage,
    shares_to_deleverage,
)
from margin.domain.instrument import Instrument
from margin.domain.position import Side
from tests.unit.domain.books import BTC, ETH, TWO_TIERS, account, amounts, market, position

if TYPE_CHECKING:
    from margin.domain.account import Account

# A long of 1, closed at 30000 with 5000 missing.
LONG = BankruptPosition(BTC, Decimal(1), Decimal(30000), Decimal(35000))
SHORT_AT_50000 = account("10000", position(BTC, "-1", "50000"))


def bankrupt(symbol: str, quantity: str, price: str, bankruptcy_price: str | None) -> BankruptPosition:
    at = None if bankruptcy_price is None else Decimal(bankruptcy_price)
    return BankruptPosition(symbol, Decimal(quantity), Decimal(price), at)


def test_short_is_closed_at_the_bankruptcy_price_and_the_fund_receives_the_gap() -> None:
    result = deleverage(SHORT_AT_50000, market("30000"), LONG, Decimal("0.4"))
    assert (result.quantity, result.remaining, result.price) == (Decimal("-0.4"), Decimal("-0.6"), 35000)
    assert (result.realised_pnl, result.received) == (6000, 2000)
    assert amounts(result.ledger_lines) == {"cash": 6000, "house_pnl": -8000, "insurance": 2000}
    assert (result.before.equity, result.after.equity) == (30000, 28000)
    assert result.account.positions[BTC] == position(BTC, "-0.6", "50000")


def test_long_is_closed_against_a_liquidated_short() -> None:
    lost = bankrupt(BTC, "-1", "70000", "65000")
    result = deleverage(account("10000", position(BTC, "1", "50000")), market("70000"), lost, Decimal(1))
    assert result.account == account("25000")
    assert amounts(result.ledger_lines) == {"cash": 15000, "house_pnl": -20000, "insurance": 5000}
    assert lost.opposite is Side.BUY


def test_mark_that_moved_on_changes_neither_price_nor_amount() -> None:
    result = deleverage(SHORT_AT_50000, market("28000"), LONG, Decimal(1))
    assert (result.price, result.mark_price, result.received) == (35000, 28000, 5000)
    assert result.before.equity - result.after.equity == 7000


def test_where_the_mark_has_come_back_others_are_closed_at_the_mark() -> None:
    result = deleverage(SHORT_AT_50000, market("45000"), LONG, Decimal("0.4"))
    assert (result.price, result.realised_pnl, result.received) == (45000, 2000, 2000)
    assert amounts(result.ledger_lines) == {"cash": 2000, "house_pnl": -4000, "insurance": 2000}
    assert result.before.equity == result.after.equity
    lost = bankrupt(BTC, "-1", "70000", "65000")
    long = account("10000", position(BTC, "1", "50000"))
    assert deleverage(long, market("60000"), lost, Decimal(1)).price == 60000
    assert deleverage(long, market("66000"), lost, Decimal(1)).price == 65000


@pytest.mark.parametrize("bankruptcy_price", [None, "30000", "29999.99999999"])
def test_position_without_a_worse_price_brings_nothing(bankruptcy_price: str | None) -> None:
    lost = bankrupt(BTC, "1", "30000", bankruptcy_price)
    assert lost.gap == 0
    assert most_to_deleverage(SHORT_AT_50000, market("30000"), lost, Decimal(1)) == 0
    wanted = quantities_to_deleverage([lost], {}, market("30000"), uncovered=Decimal(5), raised=Decimal(0))
    assert wanted == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (account("100000"), "no position"),
        (account("100000", position(BTC, "1", "20000")), "on the same side"),
        (account("100000", position(BTC, "-1", "30000")), "no profit"),
        (account("100000", position(BTC, "-1", "34999.99")), "a loss at the bankruptcy price"),
        (account("-17500", position(BTC, "-1", "50000")), "below maintenance margin"),
        (account("100000", position(BTC, "-1", "50000"), position(ETH, "1", "2000")), "a position without a mark"),
    ],
)
def test_account_is_passed_over(other: Account, why: str) -> None:
    assert most_to_deleverage(other, market("30000"), LONG, Decimal(1)) == 0, why


def test_account_with_a_stale_mark_is_passed_over() -> None:
    stale = market("30000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=31)
    assert most_to_deleverage(SHORT_AT_50000, stale, LONG, Decimal(1)) == 0
    assert deleveraging_rank(SHORT_AT_50000, stale, BTC) is None


def test_account_is_reduced_as_far_as_its_margin_allows() -> None:
    # Slack 500: each unit costs 5000 and frees 3000 of margin.
    other = account("-16500", position(BTC, "-1", "50000"))
    lots = market("30000", None, Instrument(BTC, lot_size=Decimal("0.01")))
    assert most_to_deleverage(other, lots, LONG, Decimal(1)) == Decimal("0.25")
    assert deleverage(other, lots, LONG, Decimal("0.25")).after.equity == 2250
    assert most_to_deleverage(other, lots, LONG, Decimal("0.2")) == Decimal("0.2")


def test_margin_of_every_tier_is_looked_at() -> None:
    # In the upper tier a unit frees 3000, in the lower 1500: 9500 - 5000 x >= 30000 (1 - x) / 20 for x = 1 no more.
    other = account("-15500", position(BTC, "-1", "50000"))
    tiers = market("30000", None, Instrument(BTC, TWO_TIERS, lot_size=Decimal("0.1")))
    most = most_to_deleverage(other, tiers, LONG, Decimal(1))
    assert not deleverage(other, tiers, LONG, most).after.liquidatable
    assert most == 1 or deleverage(other, tiers, LONG, most + Decimal("0.1")).after.liquidatable


def test_rank_is_profit_share_times_leverage_and_ignores_the_side() -> None:
    other = replace(SHORT_AT_50000, balance=Decimal(10000))
    assert deleveraging_rank(other, market("30000"), BTC) == Fraction(20000, 50000) * Fraction(30000, 30000)
    long = account("10000", position(BTC, "1", "50000"))
    assert deleveraging_rank(long, market("70000"), BTC) == Fraction(20000, 50000) * Fraction(70000, 30000)
    assert deleveraging_rank(long, market("50000"), BTC) is None


def test_shares_are_in_proportion_to_notional_and_what_others_cannot_give_comes_after() -> None:
    btc = bankrupt(BTC, "1", "30000", "33000")
    eth = bankrupt(ETH, "-10", "6000", "5400")
    lots = market("30000", "6000", Instrument(ETH, lot_size=Decimal("0.1")))
    wanted = quantities_to_deleverage([btc, eth], {}, lots, uncovered=Decimal(3000), raised=Decimal(0))
    # 1000 and 2000 of 3000; and all 3000 of either.
    assert wanted == [
        (btc, Decimal("0.33333334")),
        (eth, Decimal("3.4")),
        (btc, Decimal(1)),
        (eth, Decimal(5)),
    ]
    rest = quantities_to_deleverage(
        [btc, eth], {BTC: Decimal("0.33333334")}, lots, uncovered=Decimal(2000), raised=Decimal(1000)
    )
    assert rest == [(eth, Decimal("3.4")), (btc, Decimal("0.66666666")), (eth, Decimal("3.4"))]


def test_share_brings_no_more_than_is_missing() -> None:
    one = bankrupt(BTC, "10", "100", "110")
    other = bankrupt(ETH, "10", "100", "110")
    wanted = quantities_to_deleverage(
        [one, other], {BTC: Decimal(9)}, market("100", "100"), uncovered=Decimal(10), raised=Decimal(90)
    )
    # Its share is 5 of 10, and 1 is all that is missing.
    assert wanted == [(other, Decimal(1)), (one, Decimal(1)), (other, Decimal(1))]


def test_debt_is_shared_anew_where_the_bankruptcy_prices_of_the_others_do_not_suffice() -> None:
    btc, eth = bankrupt(BTC, "1", "25000", "26000"), bankrupt(ETH, "-25", "2000", "1920")
    owed = {"uncovered": Decimal(3000), "raised": Decimal(0)}
    marks = market("25000", "2000")
    shares = shares_to_deleverage([btc, eth], {}, marks, **owed)
    assert (shares.quantities, shares.notional) == (((btc, Decimal(1)), (eth, Decimal(25))), None)
    without_eth = shares_to_deleverage([btc, eth], {}, marks, without={ETH}, **owed)
    assert without_eth.quantities == ((replace(btc, bankruptcy_price=Decimal(28000)), Decimal(1)),)
    assert without_eth.notional == 25000
    without_btc = shares_to_deleverage([btc, eth], {ETH: Decimal(10)}, marks, without={BTC}, **owed)
    assert without_btc.quantities == ((replace(eth, bankruptcy_price=Decimal(1800)), Decimal(15)),)
    assert shares_to_deleverage([btc, eth], {}, marks, without={BTC, ETH}, **owed).quantities == ()
    # A short cannot be closed at a price of 0 or less; a long can at any.
    much = {**owed, "uncovered": Decimal(75000)}
    (only,) = shares_to_deleverage([btc, eth], {}, marks, **much).quantities
    assert only == (replace(btc, bankruptcy_price=Decimal(100000)), Decimal(1))


def test_what_cannot_be_deleveraged_is_refused() -> None:
    with pytest.raises(ValueError, match="opposite position"):
        deleverage(account("1"), market("30000"), LONG, Decimal(1))
    with pytest.raises(ValueError, match="opposite position"):
        deleverage(SHORT_AT_50000, market("30000"), LONG, Decimal("1.1"))
    with pytest.raises(ValueError, match="price that there is not"):
        deleverage(SHORT_AT_50000, market("30000"), bankrupt(BTC, "1", "30000", None), Decimal(1))
