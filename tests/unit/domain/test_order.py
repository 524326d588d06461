from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.instrument import Instrument
from margin.domain.order import Liquidity, Order, TradeResult, execute_order, purely_reduces, trade_fee
from margin.domain.position import Fill, Position, Side
from margin.domain.risk import AccountRisk
from margin.errors import (
    InLiquidationError,
    InsufficientMarginError,
    NoMarkPriceError,
    OutsidePriceBandError,
    StaleMarkPriceError,
)
from tests.unit.domain.books import BTC, ETH, account, amounts, buy, market, position, sell

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.market import Market

AGE_LIMITED = Instrument(BTC, mark_max_age_s=30)


def refusal(held: Account, order: Order, at: Market) -> str:
    with pytest.raises(InsufficientMarginError) as refused:
        execute_order(held, order, at)
    return refused.value.detail


def test_trade_of_the_readme_example_opens_a_position() -> None:
    bought = Position(BTC, Decimal("0.1"), Decimal(5000))
    assert execute_order(account("10000"), buy("0.1", "50000"), market("50000")) == TradeResult(
        account=account("10000", bought),
        fill=Fill(bought, Decimal(0), Decimal(0)),
        fee=Decimal(0),
        risk=AccountRisk(Decimal(10000), Decimal(1000), Decimal(500)),
        ledger_lines=(),
    )


def test_equity_exactly_equal_to_initial_margin_is_accepted() -> None:
    result = execute_order(account("10000"), buy("1", "50000"), market("50000"))
    assert result.risk.equity == result.risk.initial_margin == 10000


def test_smallest_quantity_more_is_refused_with_required_and_available() -> None:
    detail = refusal(account("10000"), buy("1.00000001", "50000"), market("50000"))
    assert detail == "Insufficient equity. Required: 10000.0001, Available: 10000"


def test_worse_price_than_the_mark_lowers_the_available_equity() -> None:
    assert refusal(account("10000"), buy("1", "50010"), market("50000")).endswith("Required: 10000, Available: 9990")
    assert refusal(account("10000"), sell("1", "49990"), market("50000")).endswith("Required: 10000, Available: 9990")


def test_better_price_than_the_mark_is_no_collateral_but_counts_in_the_result() -> None:
    assert refusal(account("9999"), buy("1", "49000"), market("50000")).endswith("Required: 10000, Available: 9999")
    assert execute_order(account("10000"), buy("1", "49000"), market("50000")).risk.equity == 11000


def test_unrealised_profit_is_collateral() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    assert execute_order(held, buy("0.5", "60000"), market("60000")).risk.initial_margin == 18000
    assert refusal(held, buy("1", "60000"), market("60000")).endswith("Required: 24000, Available: 20000")


def test_margin_of_other_positions_is_required_too() -> None:
    held = account("10000", position(ETH, "10", "3000"))
    detail = refusal(held, buy("0.5", "50000"), market("50000", "3000"))
    assert detail.endswith("Required: 11000, Available: 10000")


def test_account_without_equity_and_positions_is_refused_by_the_margin_test() -> None:
    assert refusal(account("0"), buy("0.1", "50000"), market("50000")).endswith("Required: 1000, Available: 0")


def test_account_with_positions_and_no_equity_is_in_liquidation_even_for_a_reduction() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    with pytest.raises(InLiquidationError, match="Equity is 0"):
        execute_order(held, sell("1", "40000"), market("40000"))


def test_reduction_below_initial_margin_is_accepted_when_it_relieves() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    # E = 4000 and MM = 4400; half sold at 41000 costs 1500 against the mark: 2500 / 2200 is more than 4000 / 4400.
    result = execute_order(held, sell("0.5", "41000"), market("44000"))
    assert result.account.balance == 5500
    assert result.risk == AccountRisk(Decimal(2500), Decimal(4400), Decimal(2200))
    assert amounts(result.ledger_lines) == {"cash": -4500, "house_pnl": 4500}


def test_reduction_that_keeps_the_ratio_exactly_is_accepted_and_a_worse_one_refused() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    # Half of MM is left, so half of E = 4000 is needed: 4000 may be lost against the mark, on 0.5.
    assert execute_order(held, sell("0.5", "40000"), market("44000")).risk.equity == 2000
    detail = refusal(held, sell("0.5", "39999.99"), market("44000"))
    assert detail == "Insufficient equity. Required: 2000, Available: 1999.995"


def test_required_of_a_reduction_is_the_less_that_it_needs_rounded_up() -> None:
    at = market("100", None, Instrument(BTC, taker_fee=Decimal("0.1")))
    # A third of MM = 30 is left, so a third of E = 40 is enough, though IM' is 20.
    detail = refusal(account("40", position(BTC, "3", "100")), sell("2", "95"), at)
    assert detail == "Insufficient equity. Required: 13.33333334, Available: 11"
    # A third of E = 70 is more than IM'.
    detail = refusal(account("70", position(BTC, "3", "100")), sell("2", "80"), at)
    assert detail == "Insufficient equity. Required: 20, Available: 14"


def test_reduction_of_a_short_is_accepted_when_it_relieves() -> None:
    held = account("10000", position(BTC, "-1", "50000"))
    result = execute_order(held, buy("0.5", "55000"), market("55000"))
    assert result.account == account("7500", position(BTC, "-0.5", "50000"))


def test_close_below_initial_margin_of_the_rest_is_accepted() -> None:
    held = account("1000", position(BTC, "1", "50000"), position(ETH, "10", "3000"))
    result = execute_order(held, sell("1", "50000"), market("50000", "3000"))
    assert result.account == account("1000", position(ETH, "10", "3000"))


def test_increase_below_initial_margin_is_refused_although_liquidation_is_far() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    detail = refusal(held, buy("0.00000001", "49000"), market("49000"))
    assert detail == "Insufficient equity. Required: 9800.000098, Available: 9000"


def test_flip_is_no_reduction_and_needs_initial_margin_for_the_rest() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    assert refusal(held, sell("1.5", "44000"), market("44000")).endswith("Required: 4400, Available: 4000")
    flipped = execute_order(held, sell("1.4", "44000"), market("44000"))
    assert flipped.account == account("4000", position(BTC, "-0.4", "44000"))


@pytest.mark.parametrize("price", ["40000", "60000"])
def test_price_at_the_edge_of_the_band_is_accepted(price: str) -> None:
    result = execute_order(account("100000"), buy("1", price), market("50000"))
    assert result.account.positions[BTC].entry_cost == Decimal(price)


@pytest.mark.parametrize("price", ["39999.99999999", "60000.00000001"])
def test_price_beyond_the_band_is_refused_with_the_allowed_range(price: str) -> None:
    with pytest.raises(OutsidePriceBandError) as refused:
        execute_order(account("100000"), buy("1", price), market("50000"))
    assert refused.value.detail == (f"Price {price} is too far from the mark price 50000; allowed is 40000 to 60000.")


def test_allowed_range_names_only_prices_that_are_allowed() -> None:
    at = market("0.00000012")
    with pytest.raises(OutsidePriceBandError, match=r"allowed is 0\.0000001 to 0\.00000014"):
        execute_order(account("100"), buy("1", "0.00000015"), at)
    assert execute_order(account("100"), buy("1", "0.00000014"), at).fill.position is not None
    assert execute_order(account("100"), buy("1", "0.0000001"), at).fill.position is not None


def test_band_of_the_instrument_applies() -> None:
    narrow = market("50000", None, Instrument(BTC, price_band=Decimal("0.01")))
    with pytest.raises(OutsidePriceBandError):
        execute_order(account("100000"), buy("1", "50501"), narrow)


def test_symbol_without_mark_price_is_refused() -> None:
    with pytest.raises(NoMarkPriceError, match="BTC-PERP"):
        execute_order(account("10000"), buy("1", "50000"), market())


def test_held_symbol_without_mark_price_refuses_a_trade_in_another() -> None:
    with pytest.raises(NoMarkPriceError, match="ETH-PERP"):
        execute_order(account("10000", position(ETH, "1", "3000")), buy("0.1", "50000"), market("50000"))


def test_fee_is_charged_rounded_up_and_booked_to_fees() -> None:
    at = market("50001", None, Instrument(BTC, taker_fee=Decimal("0.0003")))
    # 0.00000001 * 50001 * 0.0003 = 0.000000150003
    result = execute_order(account("10000"), buy("0.00000001", "50001"), at)
    assert result.fee == Decimal("0.00000016")
    assert result.account.balance == Decimal("9999.99999984")
    assert amounts(result.ledger_lines) == {"cash": -result.fee, "fees": result.fee}


def test_fee_counts_in_the_margin_test() -> None:
    at = market("50000", None, Instrument(BTC, taker_fee=Decimal("0.0002")))
    assert refusal(account("10000"), buy("1", "50000"), at).endswith("Required: 10000, Available: 9990")
    assert execute_order(account("10010"), buy("1", "50000"), at).risk.equity == 10000


MAKER_REBATE = Instrument(BTC, taker_fee=Decimal("0.0003"), maker_fee=Decimal("-0.0001"))


def as_maker(order: Order) -> Order:
    return replace(order, liquidity=Liquidity.MAKER)


def test_maker_pays_the_makers_fee_and_taker_the_takers() -> None:
    instrument = Instrument(BTC, taker_fee=Decimal("0.0005"), maker_fee=Decimal("0.0002"))
    at = market("50000", None, instrument)
    assert execute_order(account("20000"), buy("1", "50000"), at).account.balance == 19975
    assert execute_order(account("20000"), as_maker(buy("1", "50000")), at).account.balance == 19990


def test_rebate_is_credited_rounded_down_and_taken_from_fees() -> None:
    # 0.00000001 * 50001 * 0.0001 = 0.000000050001
    result = execute_order(account("10000"), as_maker(buy("0.00000001", "50001")), market("50001", None, MAKER_REBATE))
    assert result.fee == Decimal("-0.00000005")
    assert result.account.balance == Decimal("10000.00000005")
    assert amounts(result.ledger_lines) == {"cash": -result.fee, "fees": result.fee}


def test_rebate_below_the_last_decimal_is_none_and_leaves_no_line() -> None:
    order = as_maker(buy("0.00000001", "4999"))
    assert trade_fee(order, MAKER_REBATE) == 0
    assert execute_order(account("10000"), order, market("4999", None, MAKER_REBATE)).ledger_lines == ()


def test_rebate_counts_in_the_margin_test() -> None:
    at = market("50000", None, MAKER_REBATE)
    assert execute_order(account("9995"), as_maker(buy("1", "50000")), at).risk.equity == 10000
    detail = refusal(account("9994.99999999"), as_maker(buy("1", "50000")), at)
    assert detail == "Insufficient equity. Required: 10000, Available: 9999.99999999"


def test_fee_of_a_reduction_is_charged_beside_what_it_realises() -> None:
    at = market("51000", None, Instrument(BTC, taker_fee=Decimal("0.001")))
    result = execute_order(account("10000", position(BTC, "1", "50000")), sell("0.5", "51000"), at)
    assert (result.fee, result.fill.realised_pnl, result.account.balance) == (Decimal("25.5"), 500, Decimal("10474.5"))
    assert amounts(result.ledger_lines) == {"cash": Decimal("474.5"), "house_pnl": -500, "fees": Decimal("25.5")}


def test_closing_that_the_fee_makes_too_expensive_is_refused() -> None:
    held = account("10000", position(BTC, "1", "50000"))
    at = market("40001", None, Instrument(BTC, taker_fee=Decimal("0.0001")))
    # E = 1, and the fee is 4.0001.
    assert refusal(held, sell("1", "40001"), at) == "Insufficient equity. Required: 0, Available: -3.0001"


def test_dust_of_a_closed_position_goes_to_rounding() -> None:
    held = account("10000").with_position(BTC, Position(BTC, Decimal("0.5"), Decimal("25.000000005")))
    result = execute_order(held, sell("0.5", "60"), market("60"))
    assert result.account == account("10004.99999999")
    assert amounts(result.ledger_lines) == {
        "cash": Decimal("4.99999999"),
        "house_pnl": Decimal("-4.999999995"),
        "rounding": Decimal("0.000000005"),
    }


@pytest.mark.parametrize("order", [buy("0.1", "50000"), sell("1.1", "50000"), buy("0.1", "3000", ETH)])
def test_stale_mark_blocks_whatever_adds_risk(order: Order) -> None:
    held = account("50000", position(BTC, "1", "50000"))
    with pytest.raises(StaleMarkPriceError, match="BTC-PERP"):
        execute_order(held, order, market("50000", "3000", AGE_LIMITED, btc_age_s=31))
    assert execute_order(held, order, market("50000", "3000", AGE_LIMITED, btc_age_s=30)).account != held


@pytest.mark.parametrize("quantity", ["0.5", "1"])
def test_stale_mark_never_blocks_a_reduction(quantity: str) -> None:
    held = account("50000", position(BTC, "1", "50000"))
    stale = market("50000", None, AGE_LIMITED, btc_age_s=31)
    assert execute_order(held, sell(quantity, "50000"), stale).account.balance == 50000


@pytest.mark.parametrize(("quantity", "price"), [("0", "1"), ("1", "0"), ("1e12", "1"), ("1", "0.000000001")])
def test_order_outside_the_limits_is_a_programmers_error(quantity: str, price: str) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Order(1, BTC, Side.BUY, Decimal(quantity), Decimal(price))


def test_order_of_another_account_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="own account"):
        execute_order(account("10000"), Order(2, BTC, Side.BUY, Decimal(1), Decimal(1)), market("1"))


def test_notional_is_quantity_times_price() -> None:
    assert buy("0.1", "50000").notional == 5000


def test_only_an_opposite_order_within_the_position_purely_reduces() -> None:
    long, short = position(BTC, "1", "50000"), position(BTC, "-1", "50000")
    assert purely_reduces(long, sell("1", "50000"))
    assert purely_reduces(short, buy("0.5", "50000"))
    assert not purely_reduces(long, sell("1.00000001", "50000"))
    assert not purely_reduces(long, buy("1", "50000"))
    assert not purely_reduces(None, sell("1", "50000"))
