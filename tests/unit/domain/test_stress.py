"""What price moves would liquidate, with numbers that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument
from margin.domain.liquidation import LiquidationPolicy
from margin.domain.market import Mark
from margin.domain.stress import StressOutcome, StressTest, moved_market
from margin.errors import NoMarkPriceError
from tests.unit.domain.books import BTC, ETH, NOW_US, account, market, position

POLICY = LiquidationPolicy(Decimal(0), Decimal(0))


def outcome(accounts: int, notional: str, shortfall: str = "0", fees: str = "0") -> StressOutcome:
    return StressOutcome(accounts, Decimal(notional), Decimal(shortfall), Decimal(fees))


def test_moved_mark_is_fresh_and_the_others_are_as_they_were() -> None:
    before = market("50000", "2500", Instrument(BTC, mark_max_age_s=10), btc_age_s=60)
    after = moved_market(before, {BTC: Decimal("-0.3")})
    assert (before.is_stale(BTC), after.is_stale(BTC)) == (True, False)
    assert (after.mark_price(BTC), after.marks[ETH]) == (35000, before.marks[ETH])
    assert (after.instruments, after.now_us) == (before.instruments, before.now_us)


def test_moved_mark_is_not_in_doubt_and_the_others_are_as_they_were() -> None:
    before = replace(market("50000", "2500"), waiting={BTC: Decimal(1), ETH: Decimal(2)})
    after = moved_market(before, {BTC: Decimal("-0.3")})
    assert (after.is_stale(BTC), after.is_stale(ETH), after.waiting) == (False, True, {ETH: 2})


def test_moved_mark_has_no_more_decimals_than_a_mark_and_is_never_0() -> None:
    least = market("0.00000001")
    assert moved_market(least, {BTC: Decimal("-0.99")}).mark_price(BTC) == Decimal("0.00000001")
    assert moved_market(market("0.33333333"), {BTC: Decimal("0.5")}).mark_price(BTC) == Decimal("0.5")
    assert moved_market(market("0.33333331"), {BTC: Decimal("0.5")}).mark_price(BTC) == Decimal("0.49999997")


def test_moving_a_symbol_without_a_mark_is_refused() -> None:
    with pytest.raises(NoMarkPriceError):
        moved_market(market("50000"), {ETH: Decimal("0.1")})


@pytest.mark.parametrize("move", ["-1", "-0.99000001", "10.00000001", "0.000000001", "NaN", "Infinity"])
def test_moves_beyond_the_limits_are_refused(move: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        moved_market(market("50000"), {BTC: Decimal(move)})


def test_account_is_closed_in_part_or_whole_or_not_as_the_price_says() -> None:
    # At 40000 equity is 2000, enough for half of the position.
    held = account("12000", position(BTC, "1", "50000"))
    moves = [{BTC: Decimal(move)} for move in ("-0.5", "-0.2", "-0.1", "0", "0.5")]
    test = StressTest(market("50000"), moves, POLICY)
    test.add(held)
    assert test.outcomes == (
        outcome(1, "25000", shortfall="13000"),
        outcome(1, "20000"),
        outcome(0, "0"),
        outcome(0, "0"),
        outcome(0, "0"),
    )
    assert [prices[BTC] for prices in test.prices] == [25000, 40000, 45000, 50000, 75000]


def test_account_with_exactly_its_maintenance_margin_is_not_closed() -> None:
    test = StressTest(market("50000"), [{BTC: Decimal("-0.2")}, {BTC: Decimal("-0.20000001")}], POLICY)
    test.add(account("14000", position(BTC, "1", "50000")))
    assert [one.accounts for one in test.outcomes] == [0, 1]


def test_accounts_add_up_and_a_gain_of_one_does_not_pay_for_another() -> None:
    test = StressTest(market("50000"), [{BTC: Decimal("-0.5")}, {BTC: Decimal("0.5")}], POLICY)
    for held in (position(BTC, "1", "50000"), position(BTC, "-1", "50000"), position(BTC, "2", "50000")):
        test.add(account("15000", held))
    assert test.outcomes == (outcome(2, "75000", shortfall="45000"), outcome(1, "75000", shortfall="10000"))


def test_hedged_account_is_judged_after_all_the_prices_of_a_shock() -> None:
    hedged = account("12000", position(BTC, "1", "50000"), position(ETH, "-20", "2500"))
    fall = Decimal("-0.3")
    test = StressTest(market("50000", "2500"), [{BTC: fall}, {BTC: fall, ETH: fall}], POLICY)
    test.add(hedged)
    assert test.outcomes == (outcome(1, "85000", shortfall="3000"), outcome(0, "0"))


def test_account_that_is_to_be_liquidated_anyhow_counts_at_every_shock() -> None:
    below = account("4000", position(ETH, "-20", "2500"))
    test = StressTest(market("50000", "2500"), [{BTC: Decimal("-0.5")}, {BTC: Decimal(0)}], POLICY)
    test.add(below)
    assert test.outcomes == (outcome(1, "10000"),) * 2


def test_position_with_a_stale_mark_counts_in_the_accounts_favour_and_is_not_closed() -> None:
    hour_old = Instrument(ETH, mark_max_age_s=10)
    now = market("50000", None, hour_old)
    stale = replace(now, marks={**now.marks, ETH: Mark(Decimal(2500), NOW_US - 3_600_000_000)})
    held = account("30000", position(BTC, "1", "50000"), position(ETH, "20", "2500"))
    # ETH counts at 3000: 10000 are gained and 6000 of margin needed. BTC is closed, and no debt is booked.
    moves = [{BTC: Decimal(move)} for move in ("-0.62", "-0.7", "-0.9")]
    test = StressTest(stale, moves, POLICY)
    test.add(held)
    assert test.outcomes == (outcome(0, "0"), outcome(1, "15000"), outcome(1, "5000"))


def test_account_all_of_whose_marks_are_stale_is_not_closed() -> None:
    stale = market("50000", "2500", Instrument(BTC, mark_max_age_s=10), btc_age_s=60)
    test = StressTest(stale, [{ETH: Decimal("-0.5")}, {BTC: Decimal(0)}], POLICY)
    test.add(account("-100000", position(BTC, "1", "50000")))
    assert test.outcomes == (outcome(0, "0"), outcome(1, "50000", shortfall="100000"))


def test_account_without_positions_is_never_closed() -> None:
    test = StressTest(market("50000"), [{BTC: Decimal("-0.5")}], POLICY)
    for balance in ("0", "5", "-5"):
        test.add(account(balance))
    assert test.outcomes == (outcome(0, "0"),)


def test_position_without_a_mark_is_never_left_out() -> None:
    test = StressTest(market("50000"), [{BTC: Decimal("-0.1")}], POLICY)
    with pytest.raises(NoMarkPriceError):
        test.add(account("1000000", position(ETH, "1", "2500")))


def test_fees_come_before_the_fund_is_asked() -> None:
    due = outcome(1, "1000", shortfall="100", fees="30")
    assert [due.missing(Decimal(fund)) for fund in ("0", "69.99999999", "70", "1000", "-5")] == [
        Decimal(missing) for missing in ("70", "0.00000001", "0", "0", "75")
    ]
