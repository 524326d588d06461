from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument
from margin.domain.liquidation import ClosedPosition, LiquidationPolicy, LiquidationResult, liquidate
from margin.domain.position import Position
from margin.domain.risk import AccountRisk, assess
from margin.errors import NoMarkPriceError
from tests.unit.domain.books import BTC, ETH, TWO_TIERS, account, amounts, market, position

POLICY = LiquidationPolicy(buffer=Decimal("0.1"), remaining_notional_min=Decimal(10))
AGE_LIMITED = Instrument(BTC, mark_max_age_s=30)
WITH_FEE = Instrument(BTC, liquidation_fee_cap=Decimal("0.01"))


def test_equity_equal_to_maintenance_margin_is_left_alone() -> None:
    # 9500 + 45000 - 50000 = 0.1 * 45000.
    assert liquidate(account("9500", position(BTC, "1", "50000")), market("45000"), POLICY) is None


def test_least_is_closed_that_restores_maintenance_margin_with_its_buffer() -> None:
    # E = 15000 - 14000 = 1000, T = 1.1 * 3600 = 3960: x = 2960 / 0.11 in notional, 0.747474.. units, rounded up.
    result = liquidate(account("15000", position(BTC, "1", "50000")), market("36000"), POLICY)
    assert result is not None
    (closed,) = result.closed
    assert closed == ClosedPosition(
        symbol=BTC,
        quantity=Decimal("0.74747475"),
        remaining=Decimal("0.25252525"),
        entry_price=Decimal(50000),
        price=Decimal(36000),
        # 36000 * (1 - 1000 / 36000).
        bankruptcy_price=Decimal(35000),
        realised_pnl=Decimal("-10464.6465"),
        fee=Decimal(0),
    )
    assert result.before == AccountRisk(Decimal(1000), Decimal(7200), Decimal(3600))
    assert result.after == assess(result.account, market("36000"))
    assert result.after.equity == 1000
    assert result.after.equity >= Decimal("1.1") * result.after.maintenance_margin
    one_lot_less = Decimal("0.25252526") * 36000 / 10
    assert result.after.equity < Decimal("1.1") * one_lot_less
    assert result.reason == "EQUITY_BELOW_MAINTENANCE"
    assert amounts(result.ledger_lines) == {"cash": Decimal("-10464.6465"), "house_pnl": Decimal("10464.6465")}


def test_quantity_is_rounded_up_to_the_lot() -> None:
    lots = Instrument(BTC, lot_size=Decimal("0.2"))
    result = liquidate(account("15000", position(BTC, "1", "50000")), market("36000", None, lots), POLICY)
    assert result is not None
    assert [(closed.quantity, closed.remaining) for closed in result.closed] == [(Decimal("0.8"), Decimal("0.2"))]


@pytest.mark.parametrize(
    "instrument",
    [
        Instrument(BTC, lot_size=Decimal("0.3")),
        Instrument(BTC, min_quantity=Decimal("0.3")),
    ],
    ids=["less than a lot", "less than the least quantity"],
)
def test_position_is_closed_whole_rather_than_left_too_small(instrument: Instrument) -> None:
    result = liquidate(account("15000", position(BTC, "1", "50000")), market("36000", None, instrument), POLICY)
    assert result is not None
    assert [(closed.quantity, closed.remaining) for closed in result.closed] == [(1, 0)]
    assert result.account == account("1000")


@pytest.mark.parametrize(("least", "remaining"), [("9090.9", "0.25252525"), ("9090.91", "0")])
def test_position_is_closed_whole_rather_than_left_with_too_little_notional(least: str, remaining: str) -> None:
    policy = LiquidationPolicy(POLICY.buffer, Decimal(least))
    result = liquidate(account("15000", position(BTC, "1", "50000")), market("36000"), policy)
    assert result is not None
    assert result.closed[0].remaining == Decimal(remaining)


def test_short_is_bought_back_and_keeps_its_sign() -> None:
    # E = 10000 - 6000 = 4000, MM = 5600, T = 6160: x = 2160 / 0.11 in notional.
    result = liquidate(account("10000", position(BTC, "-1", "50000")), market("56000"), POLICY)
    assert result is not None
    (closed,) = result.closed
    assert (closed.quantity, closed.remaining) == (Decimal("-0.35064936"), Decimal("-0.64935064"))
    # 56000 * (1 + 4000 / 56000).
    assert closed.bankruptcy_price == 60000
    assert result.after.equity == 4000


def test_tiers_are_solved_at_the_margin() -> None:
    # MM = 0.10 * 45000 - 500 = 4000; E = 3500: T = 4400. 900 / 0.11 in notional stays within the second tier.
    held = account("8500", position(BTC, "1", "50000"))
    result = liquidate(held, market("45000", None, Instrument(BTC, TWO_TIERS)), POLICY)
    assert result is not None
    assert result.closed[0].quantity == Decimal("0.18181819")
    # E = 400: down into the first tier, where T = 1.1 * 0.05 * n, so that 400 / 0.055 of notional may be left.
    result = liquidate(
        account("5400", position(BTC, "1", "50000")), market("45000", None, Instrument(BTC, TWO_TIERS)), POLICY
    )
    assert result is not None
    assert result.after.equity == 400
    assert result.closed[0].remaining == Decimal("0.16161616")


def test_largest_margin_is_closed_first_and_the_next_only_as_far_as_needed() -> None:
    # E = 6000 + 0 - 5000 = 1000; MM = 4500 + 3000; after BTC is gone T = 3300: 2300 / 0.11 of ETH.
    held = account("6000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    result = liquidate(held, market("45000", "3000"), POLICY)
    assert result is not None
    assert [(closed.symbol, closed.quantity, closed.remaining) for closed in result.closed] == [
        (BTC, 1, 0),
        (ETH, Decimal("-6.96969697"), Decimal("-3.03030303")),
    ]
    # N = 75000: each bears its share of E.
    assert [closed.bankruptcy_price for closed in result.closed] == [44400, 3040]


def test_position_that_suffices_leaves_the_others_alone() -> None:
    held = account("12400", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    result = liquidate(held, market("45000", "3000"), POLICY)
    assert result is not None
    assert [closed.symbol for closed in result.closed] == [BTC]
    assert result.account.positions[ETH] == held.positions[ETH]


def test_fee_goes_to_the_insurance_fund_and_is_counted_in_what_is_closed() -> None:
    # x = (3960 - 1000) / (0.11 - 0.01) = 29600 in notional, 0.82222223 units.
    held = account("15000", position(BTC, "1", "50000"))
    result = liquidate(held, market("36000", None, WITH_FEE), POLICY)
    assert result is not None
    assert result.closed[0].quantity == Decimal("0.82222223")
    assert result.fee == result.closed[0].fee == Decimal("296.0000028")
    assert result.after.equity == 1000 - result.fee
    assert result.after.equity >= Decimal("1.1") * result.after.maintenance_margin
    assert amounts(result.ledger_lines)["insurance"] == result.fee


def test_fee_never_takes_more_than_the_account_has_above_bankruptcy() -> None:
    # E = 100 and a cap of 360: all is closed, and the fund gets the 100.
    result = liquidate(account("14100", position(BTC, "1", "50000")), market("36000", None, WITH_FEE), POLICY)
    assert result is not None
    assert (result.account, result.fee, result.shortfall) == (account("0"), 100, 0)


def test_bankrupt_account_pays_no_fee() -> None:
    result = liquidate(account("13000", position(BTC, "1", "50000")), market("36000", None, WITH_FEE), POLICY)
    assert result is not None
    assert (result.fee, result.shortfall) == (0, 1000)


def test_loss_beyond_the_balance_becomes_the_shortfall_and_the_balance_ends_at_zero() -> None:
    result = liquidate(account("1000", position(BTC, "1", "50000")), market("48000"), POLICY)
    assert result is not None
    assert result == LiquidationResult(
        account=account("0"),
        before=AccountRisk(Decimal(-1000), Decimal(9600), Decimal(4800)),
        after=AccountRisk(Decimal(0), Decimal(0), Decimal(0)),
        reason="EQUITY_BELOW_MAINTENANCE",
        closed=(
            ClosedPosition(
                symbol=BTC,
                quantity=Decimal(1),
                remaining=Decimal(0),
                entry_price=Decimal(50000),
                price=Decimal(48000),
                bankruptcy_price=Decimal(49000),
                realised_pnl=Decimal(-2000),
                fee=Decimal(0),
            ),
        ),
        fee=Decimal(0),
        shortfall=Decimal(1000),
        ledger_lines=result.ledger_lines,
    )
    assert amounts(result.ledger_lines) == {"cash": -1000, "house_pnl": 2000, "uncovered": -1000}


def test_bankruptcy_price_that_no_price_can_be_is_none() -> None:
    # A short that lost more than its notional: even at a price of 0 its buyer would not be paid.
    result = liquidate(account("0", position(BTC, "-1", "1000")), market("3000"), POLICY)
    assert result is not None
    assert result.closed[0].bankruptcy_price == 1000
    result = liquidate(account("-9000", position(BTC, "-1", "1000")), market("3000"), POLICY)
    assert result is not None
    assert result.closed[0].bankruptcy_price is None


def test_dust_of_closed_positions_goes_to_rounding() -> None:
    held = account("0").with_position(BTC, Position(BTC, Decimal(1), Decimal("99.999999995")))
    result = liquidate(held, market("100"), POLICY)
    assert result is not None
    assert amounts(result.ledger_lines) == {
        "house_pnl": Decimal("-0.000000005"),
        "rounding": Decimal("0.000000005"),
    }


def test_debt_of_dust_alone_is_no_shortfall() -> None:
    # E = 0, and closing both loses half a unit each.
    held = account("0", position(BTC, "0.00000001", "0"), position(ETH, "0.00000001", "1"))
    result = liquidate(held, market("0.5", "0.5"), POLICY)
    assert result is not None
    assert result.before.equity == 0
    assert (result.account, result.shortfall) == (account("0"), 0)
    assert amounts(result.ledger_lines) == {}


def test_shortfall_is_the_missing_equity_rounded_up_and_not_the_dust_of_closing() -> None:
    held = account("0", position(BTC, "0.00000001", "0.2"), position(ETH, "0.00000001", "1"))
    result = liquidate(held, market("0.5", "0.5"), POLICY)
    assert result is not None
    assert result.before.equity == Decimal("-0.000000002")
    assert (result.account, result.shortfall) == (account("0"), Decimal("0.00000001"))
    assert amounts(result.ledger_lines) == {
        "house_pnl": Decimal("0.000000002"),
        "rounding": Decimal("0.000000008"),
        "uncovered": Decimal("-0.00000001"),
    }


def test_stale_losing_position_gets_the_benefit_of_the_band() -> None:
    # At the last mark E = -1000; 20 % higher it is 8600 against a maintenance margin of 5760.
    held = account("1000", position(BTC, "1", "50000"))
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=31), POLICY) is None
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=30), POLICY) is not None


def test_only_fresh_positions_are_closed_and_no_shortfall_is_booked_while_one_is_open() -> None:
    held = account("1000", position(BTC, "1", "50000"), position(ETH, "10", "3000"))
    result = liquidate(held, market("48000", "1500", AGE_LIMITED, btc_age_s=31), POLICY)
    assert result is not None
    # BTC counts at 57600: E = 1000 + 7600 - 15000, MM = 5760 + 1500.
    assert (result.before.equity, result.before.maintenance_margin) == (-6400, 7260)
    assert [closed.symbol for closed in result.closed] == [ETH]
    assert result.account == account("-14000", position(BTC, "1", "50000"))
    assert (result.shortfall, amounts(result.ledger_lines)) == (0, {"cash": -15000, "house_pnl": 15000})


def test_account_that_holds_only_stale_positions_waits() -> None:
    held = account("-14000", position(BTC, "1", "50000"))
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=31), POLICY) is None


def test_negative_balance_without_positions_is_booked_as_shortfall() -> None:
    result = liquidate(account("-5"), market(), POLICY)
    assert result is not None
    assert (result.account, result.shortfall, result.closed) == (account("0"), 5, ())
    assert amounts(result.ledger_lines) == {"cash": 5, "uncovered": -5}


def test_position_without_mark_price_refuses_the_evaluation() -> None:
    with pytest.raises(NoMarkPriceError):
        liquidate(account("-5", position(BTC, "1", "50000")), market(), POLICY)


@pytest.mark.parametrize(("buffer", "least"), [("-0.1", "0"), ("0", "-1"), ("NaN", "0"), ("0", "Infinity")])
def test_policy_of_negative_or_endless_numbers_is_no_policy(buffer: str, least: str) -> None:
    with pytest.raises(ValueError, match=r"never negative|finite"):
        LiquidationPolicy(Decimal(buffer), Decimal(least))
