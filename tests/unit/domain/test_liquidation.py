from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument
from margin.domain.liquidation import ClosedPosition, LiquidationResult, liquidate
from margin.domain.position import Position
from margin.errors import NoMarkPriceError
from tests.unit.domain.books import BTC, ETH, account, amounts, market, position

AGE_LIMITED = Instrument(BTC, mark_max_age_s=30)


def test_equity_equal_to_maintenance_margin_is_left_alone() -> None:
    # 9500 + 45000 - 50000 = 0.1 * 45000.
    assert liquidate(account("9500", position(BTC, "1", "50000")), market("45000")) is None


def test_equity_just_below_maintenance_margin_closes_everything_at_the_marks() -> None:
    held = account("9499.99999999", position(BTC, "1", "50000"))
    result = liquidate(held, market("45000"))
    assert result is not None
    assert result.account == account("4499.99999999")
    assert (result.equity, result.maintenance_margin) == (Decimal("4499.99999999"), 4500)
    assert result.reason == "EQUITY_BELOW_MAINTENANCE"
    assert (result.shortfall, amounts(result.ledger_lines)) == (0, {"cash": -5000, "house_pnl": 5000})


def test_loss_beyond_the_balance_becomes_the_shortfall_and_the_balance_ends_at_zero() -> None:
    result = liquidate(account("1000", position(BTC, "1", "50000")), market("48000"))
    assert result is not None
    assert result == LiquidationResult(
        account=account("0"),
        equity=Decimal(-1000),
        maintenance_margin=Decimal(4800),
        reason="EQUITY_BELOW_MAINTENANCE",
        closed=(ClosedPosition(BTC, Decimal(1), Decimal(50000), Decimal(48000), Decimal(-2000)),),
        shortfall=Decimal(1000),
        ledger_lines=result.ledger_lines,
    )
    assert amounts(result.ledger_lines) == {"cash": -1000, "house_pnl": 2000, "uncovered": -1000}


def test_winners_and_losers_are_closed_sorted_by_symbol() -> None:
    held = account("1000", position(ETH, "-10", "3000"), position(BTC, "1", "50000"))
    result = liquidate(held, market("45000", "2900"))
    assert result is not None
    assert [(closed.symbol, closed.quantity, closed.realised_pnl) for closed in result.closed] == [
        (BTC, 1, -5000),
        (ETH, -10, 1000),
    ]
    assert (result.shortfall, result.account) == (3000, account("0"))


def test_dust_of_closed_positions_goes_to_rounding() -> None:
    held = account("0").with_position(BTC, Position(BTC, Decimal(1), Decimal("99.999999995")))
    result = liquidate(held, market("100"))
    assert result is not None
    assert amounts(result.ledger_lines) == {
        "house_pnl": Decimal("-0.000000005"),
        "rounding": Decimal("0.000000005"),
    }


def test_stale_losing_position_gets_the_benefit_of_the_band() -> None:
    # At the last mark E = -1000; 20 % higher it is 8600 against a maintenance margin of 5760.
    held = account("1000", position(BTC, "1", "50000"))
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=31)) is None
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=30)) is not None


def test_only_fresh_positions_are_closed_and_no_shortfall_is_booked_while_one_is_open() -> None:
    held = account("1000", position(BTC, "1", "50000"), position(ETH, "10", "3000"))
    result = liquidate(held, market("48000", "1500", AGE_LIMITED, btc_age_s=31))
    assert result is not None
    # BTC counts at 57600: E = 1000 + 7600 - 15000, MM = 5760 + 1500.
    assert (result.equity, result.maintenance_margin) == (-6400, 7260)
    assert [closed.symbol for closed in result.closed] == [ETH]
    assert result.account == account("-14000", position(BTC, "1", "50000"))
    assert (result.shortfall, amounts(result.ledger_lines)) == (0, {"cash": -15000, "house_pnl": 15000})


def test_account_that_holds_only_stale_positions_waits() -> None:
    held = account("-14000", position(BTC, "1", "50000"))
    assert liquidate(held, market("48000", None, AGE_LIMITED, btc_age_s=31)) is None


def test_negative_balance_without_positions_is_booked_as_shortfall() -> None:
    result = liquidate(account("-5"), market())
    assert result is not None
    assert (result.account, result.shortfall, result.closed) == (account("0"), 5, ())
    assert amounts(result.ledger_lines) == {"cash": 5, "uncovered": -5}


def test_position_without_mark_price_refuses_the_evaluation() -> None:
    with pytest.raises(NoMarkPriceError):
        liquidate(account("-5", position(BTC, "1", "50000")), market())
