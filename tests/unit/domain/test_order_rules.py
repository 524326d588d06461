"""What an instrument refuses, and the sentence of every refusal: it says what would have been allowed."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.instrument import Instrument, InstrumentStatus
from margin.domain.order import Liquidity, execute_order
from margin.domain.order_rules import limits_max, limits_min
from margin.domain.position import Side
from margin.errors import (
    InLiquidationError,
    InstrumentStatusError,
    InsufficientMarginError,
    LimitExceededError,
    MarginError,
    NoMarkPriceError,
    NotReducingError,
    OutsidePriceBandError,
    PositionLimitError,
    PriceOffTickError,
    QuantityOffLotError,
    QuantityTooLargeError,
    QuantityTooSmallError,
    RefusedError,
    StaleMarkPriceError,
)
from tests.unit.domain.books import BTC, ETH, account, buy, market, position, sell

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.order import Order
    from margin.domain.position import Position

FLAT = account("1000000")
LONG = account("1000000", position(BTC, "0.5", "50000"))
SHORT = account("1000000", position(BTC, "-0.5", "50000"))


def instrument(**terms: Any) -> Instrument:
    """Rules of BTC with some terms of their own; texts are decimals."""
    status = InstrumentStatus(terms.pop("status", "active"))
    decimals = {name: Decimal(value) if isinstance(value, str) else value for name, value in terms.items()}
    return Instrument(BTC, status=status, **decimals)


def reduce_only(order: Order) -> Order:
    return replace(order, reduce_only=True)


def passes(held: Account, order: Order, rules: Instrument, mark: str | None = "50000") -> bool:
    return execute_order(held, order, market(mark, None, rules)).account != held


def refused(
    error: type[RefusedError], held: Account, order: Order, rules: Instrument, mark: str | None = "50000"
) -> str:
    """The sentence of a refusal, which has to be this error and no other."""
    with pytest.raises(RefusedError) as refusal:
        execute_order(held, order, market(mark, None, rules))
    assert type(refusal.value) is error
    return refusal.value.detail


# --- status ---


@pytest.mark.parametrize(
    ("held", "order", "allowed"),
    [
        (LONG, buy("0.1", "50000"), ": only a SELL of at most 0.5"),
        (LONG, sell("0.50000001", "50000"), ": only a SELL of at most 0.5"),
        (SHORT, sell("0.1", "50000"), ": only a BUY of at most 0.5"),
        (FLAT, sell("0.1", "50000"), " and the account has no position in it: no trade"),
    ],
)
@pytest.mark.parametrize("status", ["reduce-only", "settling", "closed"])
def test_instrument_that_winds_down_names_what_reduces(held: Account, order: Order, allowed: str, status: str) -> None:
    detail = refused(InstrumentStatusError, held, order, instrument(status=status))
    assert detail == f"BTC-PERP is {status}{allowed} is accepted."


def test_reduce_only_instrument_takes_what_reduces_at_any_price_of_the_band() -> None:
    rules = instrument(status="reduce-only")
    assert passes(LONG, sell("0.5", "49000"), rules)
    assert passes(SHORT, buy("0.2", "51000"), rules)


@pytest.mark.parametrize("status", ["settling", "closed"])
def test_settling_instrument_takes_what_reduces_at_the_mark_price_alone(status: str) -> None:
    """A closed one has no holders; who was brought back to it by a lost event must still get out."""
    rules = instrument(status=status)
    assert passes(LONG, sell("0.5", "50000"), rules)
    detail = refused(InstrumentStatusError, LONG, sell("0.5", "50000.01"), rules)
    assert detail == f"BTC-PERP is {status}: trades are accepted at exactly the mark price 50000."


def test_settling_instrument_trades_at_a_mark_price_that_is_on_no_tick() -> None:
    rules = instrument(status="settling", tick_size="0.5")
    assert passes(LONG, sell("0.5", "50000.3"), rules, "50000.3")


def test_settling_instrument_without_a_mark_price_says_so() -> None:
    rules = instrument(status="settling")
    assert refused(NoMarkPriceError, LONG, sell("0.5", "50000"), rules, None).startswith("No mark price for BTC-PERP")


def test_position_above_the_most_of_one_trade_is_named_in_parts() -> None:
    rules = instrument(status="reduce-only", max_quantity="0.2")
    detail = refused(InstrumentStatusError, LONG, buy("0.1", "50000"), rules)
    assert detail == "BTC-PERP is reduce-only: only a SELL of at most 0.2 is accepted."


# --- reduce_only ---


@pytest.mark.parametrize(
    ("held", "order", "detail"),
    [
        (
            LONG,
            buy("0.1", "50000"),
            "The position is 0.5 long: with reduce_only a SELL of at most 0.5 is allowed.",
        ),
        (
            LONG,
            sell("0.6", "50000"),
            "The position is 0.5 long: with reduce_only a SELL of at most 0.5 is allowed.",
        ),
        (
            SHORT,
            sell("0.1", "50000"),
            "The position is 0.5 short: with reduce_only a BUY of at most 0.5 is allowed.",
        ),
        (FLAT, sell("0.1", "50000"), "There is no position in BTC-PERP that a reduce_only trade could reduce."),
        (LONG, sell("1", "3000", ETH), "There is no position in ETH-PERP that a reduce_only trade could reduce."),
    ],
)
def test_reduce_only_order_that_would_not_reduce_is_told_what_would(held: Account, order: Order, detail: str) -> None:
    assert refused(NotReducingError, held, reduce_only(order), instrument()) == detail


@pytest.mark.parametrize(("held", "order"), [(LONG, sell("0.5", "50000")), (SHORT, buy("0.2", "50000"))])
def test_reduce_only_order_that_reduces_is_executed_as_any_other(held: Account, order: Order) -> None:
    at = market("50000")
    assert execute_order(held, reduce_only(order), at) == execute_order(held, order, at)


# --- quantity ---


@pytest.mark.parametrize(
    ("quantity", "nearest"),
    [
        ("0.0015", "; nearest allowed: 0.001 and 0.002"),
        ("0.0005", "; nearest allowed: 0.001"),
        ("100.0005", "; nearest allowed: 100"),
    ],
)
def test_quantity_off_the_lot_names_the_nearest_that_are_allowed(quantity: str, nearest: str) -> None:
    rules = instrument(lot_size="0.001", max_quantity="100")
    detail = refused(QuantityOffLotError, FLAT, buy(quantity, "50000"), rules)
    assert detail == f"Quantity {quantity} is no multiple of the lot size 0.001{nearest}."


def test_nearest_lots_are_such_as_pass_the_other_limits_too() -> None:
    rules = instrument(lot_size="0.1", min_quantity="0.25", position_limit="1")
    detail = "Quantity 0.15 is no multiple of the lot size 0.1; nearest allowed: 0.3."
    assert refused(QuantityOffLotError, FLAT, buy("0.15", "50000"), rules) == detail
    held = account("1000000", position(BTC, "0.5", "50000"))
    detail = "Quantity 0.65 is no multiple of the lot size 0.1; nearest allowed: 0.5."
    assert refused(QuantityOffLotError, held, buy("0.65", "50000"), rules) == detail
    full = account("1000000", position(BTC, "1", "50000"))
    detail = "Quantity 0.65 is no multiple of the lot size 0.1; no BUY is allowed."
    assert refused(QuantityOffLotError, full, buy("0.65", "50000"), rules) == detail
    below = account("1000000", position(BTC, "-0.2", "50000"))
    detail = refused(QuantityOffLotError, below, buy("0.15", "50000"), rules)
    assert detail.endswith("; nearest allowed: 0.3, or 0.2, which closes the position.")
    detail = refused(QuantityOffLotError, below, reduce_only(buy("0.15", "50000")), rules)
    assert detail.endswith("; only 0.2, which closes the position, is allowed.")


def test_position_older_than_the_lot_size_can_be_closed_whole() -> None:
    rules = instrument(lot_size="0.001")
    held = account("10000", position(BTC, "0.0015", "50000"))
    assert execute_order(held, sell("0.0015", "50000"), market("50000", None, rules)).account.positions == {}
    detail = refused(QuantityOffLotError, held, sell("0.0005", "50000"), rules)
    assert detail == (
        "Quantity 0.0005 is no multiple of the lot size 0.001; nearest allowed: 0.001, "
        "or 0.0015, which closes the position."
    )
    detail = refused(QuantityOffLotError, held, buy("0.0015", "50000"), rules)
    assert detail.endswith("nearest allowed: 0.001 and 0.002.")


def test_quantity_below_the_least_names_the_smallest_that_is_allowed() -> None:
    rules = instrument(lot_size="0.1", min_quantity="0.25")
    detail = refused(QuantityTooSmallError, FLAT, buy("0.2", "50000"), rules)
    assert detail == "Quantity 0.2 is too small: at least 0.3 is allowed."
    assert passes(FLAT, buy("0.3", "50000"), rules)


def test_position_below_the_least_can_be_closed_whole_only() -> None:
    rules = instrument(min_quantity="0.25")
    held = account("10000", position(BTC, "-0.2", "50000"))
    assert passes(held, buy("0.2", "50000"), rules)
    detail = refused(QuantityTooSmallError, held, buy("0.1", "50000"), rules)
    assert detail == "Quantity 0.1 is too small: at least 0.25 is allowed, or 0.2, which closes the position."
    detail = refused(QuantityTooSmallError, held, sell("0.2", "50000"), rules)
    assert detail == "Quantity 0.2 is too small: at least 0.25 is allowed."


@pytest.mark.parametrize(("only", "status"), [(True, "active"), (False, "reduce-only"), (False, "settling")])
def test_least_that_would_not_reduce_is_not_named_to_who_may_only_reduce(status: str, *, only: bool) -> None:
    rules = instrument(min_quantity="2", status=status)
    held = account("1000000", position(BTC, "-1.5", "50000"))
    detail = refused(QuantityTooSmallError, held, replace(buy("1", "50000"), reduce_only=only), rules)
    assert detail == "Quantity 1 is too small: only 1.5, which closes the position, is allowed."


def test_least_that_the_position_limit_leaves_no_room_for_is_not_named() -> None:
    rules = instrument(lot_size="1", min_quantity="2", position_limit="2")
    full = account("1000000", position(BTC, "6", "50000"))
    assert refused(QuantityTooSmallError, full, buy("1", "50000"), rules) == (
        "Quantity 1 is too small: no BUY is allowed."
    )
    nearly = account("1000000", position(BTC, "1", "50000"))
    assert refused(QuantityTooSmallError, nearly, buy("1", "50000"), rules) == (
        "Quantity 1 is too small: no BUY is allowed."
    )


def test_quantity_above_the_most_is_refused_even_where_it_closes() -> None:
    rules = instrument(lot_size="0.1", max_quantity="0.45")
    detail = "Quantity 0.5 is too large for one trade: a {} of at most 0.4 is allowed."
    assert refused(QuantityTooLargeError, FLAT, buy("0.5", "50000"), rules) == detail.format("BUY")
    assert refused(QuantityTooLargeError, LONG, sell("0.5", "50000"), rules) == detail.format("SELL")
    assert passes(FLAT, buy("0.4", "50000"), rules)


@pytest.mark.parametrize(
    ("held", "side", "allowed"),
    [
        ("3", Side.BUY, "no BUY is"),
        ("2", Side.BUY, "a BUY of at most 1 is"),
        ("2", Side.SELL, "a SELL of at most 4.5 is"),
        ("-4.5", Side.BUY, "a BUY of at most 4.5 is"),
        ("-4.5", Side.SELL, "no SELL is"),
    ],
)
def test_quantity_above_the_most_names_what_every_limit_leaves(held: str, side: Side, allowed: str) -> None:
    rules = instrument(lot_size="0.5", max_quantity="4.5", position_limit="3")
    account_of = account("1000000", position(BTC, held, "50000"))
    detail = refused(QuantityTooLargeError, account_of, replace(buy("10", "50000"), side=side), rules)
    assert detail == f"Quantity 10 is too large for one trade: {allowed} allowed."


def test_whole_position_off_the_lot_is_named_where_one_trade_may_close_it() -> None:
    rules = instrument(lot_size="1", max_quantity="5.5")
    held = account("1000000", position(BTC, "5.5", "50000"))
    detail = refused(QuantityTooLargeError, held, sell("6", "50000"), rules)
    assert detail == "Quantity 6 is too large for one trade: a SELL of at most 5.5 is allowed."
    assert passes(held, sell("5.5", "50000"), rules)


# --- limits of the position ---


@pytest.mark.parametrize(
    ("held", "order", "detail"),
    [
        (
            LONG,
            buy("1", "50000"),
            "The position would be 1.5 long and may be at most 1 either way: a BUY of at most 0.5 is allowed.",
        ),
        (
            LONG,
            sell("2", "50000"),
            "The position would be 1.5 short and may be at most 1 either way: a SELL of at most 1.5 is allowed.",
        ),
        (
            account("1000000", position(BTC, "1", "50000")),
            buy("0.1", "50000"),
            "The position would be 1.1 long and may be at most 1 either way: no BUY is allowed.",
        ),
        (
            account("1000000", position(BTC, "-3", "50000")),
            sell("0.1", "50000"),
            "The position would be 3.1 short and may be at most 1 either way: no SELL is allowed.",
        ),
    ],
)
def test_position_limit_says_how_much_more_is_allowed_on_the_side(held: Account, order: Order, detail: str) -> None:
    assert refused(PositionLimitError, held, order, instrument(position_limit="1")) == detail


def test_position_of_exactly_the_limit_is_allowed() -> None:
    rules = instrument(position_limit="1")
    assert passes(LONG, buy("0.5", "50000"), rules)
    assert passes(LONG, sell("1.5", "50000"), rules)


def test_position_above_a_lowered_limit_can_be_reduced_but_not_flipped_beyond_it() -> None:
    held, rules = account("1000000", position(BTC, "3", "50000")), instrument(position_limit="1")
    assert passes(held, sell("0.5", "50000"), rules)
    assert passes(held, sell("4", "50000"), rules)
    assert refused(PositionLimitError, held, sell("4.1", "50000"), rules).endswith("a SELL of at most 4 is allowed.")


def test_position_that_would_reach_1e12_units_is_refused() -> None:
    held = account("100000000000", position(BTC, "999999999999", "0.01"))
    assert passes(held, buy("0.99999999", "0.01"), instrument(), "0.01")
    detail = refused(LimitExceededError, held, buy("1", "0.01"), instrument(), "0.01")
    assert detail == "A position must stay below 1000000000000 units: a BUY of at most 0.99999999 is allowed."


# --- price ---


@pytest.mark.parametrize(
    ("price", "nearest"),
    [
        ("50000.3", "50000 and 50000.5"),
        ("0.3", "40000"),
        ("39999.9", "40000"),
        ("60000.1", "60000"),
        ("999999999999.9", "60000"),
    ],
)
def test_price_off_the_tick_names_the_nearest_ticks(price: str, nearest: str) -> None:
    detail = refused(PriceOffTickError, FLAT, buy("0.1", price), instrument(tick_size="0.5"))
    assert detail == f"Price {price} is no multiple of the tick size 0.5; nearest allowed: {nearest}."
    assert passes(FLAT, buy("0.1", "50000.5"), instrument(tick_size="0.5"))


def test_nearest_ticks_are_such_as_the_band_lets_through() -> None:
    rules = instrument(tick_size="7")
    detail = "Price 6.34 is no multiple of the tick size 7; nearest allowed: 28."
    assert refused(PriceOffTickError, FLAT, buy("1", "6.34"), rules, "29") == detail
    detail = "Price 6.34 is no multiple of the tick size 7, and none is near enough to the mark price 10."
    assert refused(PriceOffTickError, FLAT, buy("1", "6.34"), rules, "10") == detail


@pytest.mark.parametrize(
    ("price", "nearest"), [("0.3", "0.5"), ("7.8", "7.5 and 8"), ("999999999999.9", "999999999999.5")]
)
def test_nearest_ticks_without_a_mark_price_are_any_that_there_are(price: str, nearest: str) -> None:
    detail = refused(PriceOffTickError, FLAT, buy("0.1", price), instrument(tick_size="0.5"), None)
    assert detail == f"Price {price} is no multiple of the tick size 0.5; nearest allowed: {nearest}."


def test_reduction_needs_a_price_on_a_tick_too() -> None:
    assert refused(PriceOffTickError, LONG, sell("0.5", "50000.3"), instrument(tick_size="0.5"))


def test_allowed_range_of_the_band_ends_on_ticks() -> None:
    rules = instrument(tick_size="700", price_band="0.01")
    detail = refused(OutsidePriceBandError, FLAT, buy("0.1", "51100"), rules)
    assert detail == "Price 51100 is too far from the mark price 50000; allowed is 49700 to 50400."
    assert passes(FLAT, buy("0.1", "49700"), rules)
    assert passes(FLAT, buy("0.1", "50400"), rules)


def test_band_without_a_tick_in_it_says_so() -> None:
    rules = instrument(tick_size="30000")
    detail = refused(OutsidePriceBandError, FLAT, buy("0.1", "60000"), rules, "45000")
    assert detail == (
        "Price 60000 is too far from the mark price 45000; no multiple of the tick size 30000 is near enough."
    )


def test_band_of_the_whole_mark_begins_at_the_first_tick() -> None:
    rules = instrument(tick_size="0.5", price_band="1")
    detail = refused(OutsidePriceBandError, FLAT, buy("0.1", "100000.5"), rules)
    assert detail.endswith("allowed is 0.5 to 100000.")


# --- which refusal comes first ---

STRICT = instrument(
    lot_size="0.1", min_quantity="0.25", max_quantity="5", position_limit="2", tick_size="0.5", mark_max_age_s=30
)


@pytest.mark.parametrize(
    ("order", "rules", "error"),
    [
        (reduce_only(buy("9.05", "1.3")), replace(STRICT, status=InstrumentStatus.REDUCE_ONLY), InstrumentStatusError),
        (reduce_only(buy("9.05", "1.3")), STRICT, NotReducingError),
        (buy("9.05", "1.3"), STRICT, QuantityOffLotError),
        (buy("0.2", "1.3"), STRICT, QuantityTooSmallError),
        (buy("9", "1.3"), STRICT, QuantityTooLargeError),
        (buy("4", "1.3"), STRICT, PositionLimitError),
        (buy("1", "1.3"), STRICT, PriceOffTickError),
        (buy("1", "1.5"), STRICT, OutsidePriceBandError),
        (buy("1", "40000"), STRICT, StaleMarkPriceError),
        (buy("1", "40000"), replace(STRICT, mark_max_age_s=None), InLiquidationError),
    ],
)
def test_what_another_price_or_balance_would_not_cure_is_said_first(
    order: Order, rules: Instrument, error: type[MarginError]
) -> None:
    ruined = account("10000", position(BTC, "1", "50000"))
    with pytest.raises(MarginError) as refusal:
        execute_order(ruined, order, market("40000", None, rules, btc_age_s=31))
    assert type(refusal.value) is error


def test_order_that_passes_every_rule_still_needs_margin() -> None:
    assert refused(InsufficientMarginError, account("1000"), buy("1", "50000"), STRICT).startswith("Insufficient")


# --- the largest and the smallest quantity ---


@pytest.mark.parametrize(
    ("held", "side", "terms", "most"),
    [
        (None, Side.BUY, {}, "999999999999.99999999"),
        (None, Side.BUY, {"max_quantity": "5", "lot_size": "2"}, "4"),
        (None, Side.SELL, {"position_limit": "3"}, "3"),
        ("2", Side.BUY, {"position_limit": "3"}, "1"),
        ("2", Side.SELL, {"position_limit": "3"}, "5"),
        ("2", Side.SELL, {"position_limit": "3", "max_quantity": "4"}, "4"),
        ("5", Side.BUY, {"position_limit": "3"}, "0"),
        ("5", Side.SELL, {"position_limit": "3"}, "8"),
        ("2", Side.BUY, {"position_limit": "2.5", "min_quantity": "1"}, "0"),
        ("2", Side.BUY, {"status": "reduce-only"}, "0"),
        ("2", Side.SELL, {"status": "reduce-only"}, "2"),
        ("2", Side.SELL, {"status": "settling"}, "2"),
        ("2", Side.SELL, {"status": "closed"}, "2"),
        ("2.5", Side.SELL, {"status": "reduce-only", "lot_size": "1"}, "2.5"),
        ("2.5", Side.SELL, {"status": "reduce-only", "lot_size": "1", "max_quantity": "2"}, "2"),
        ("0.5", Side.SELL, {"status": "reduce-only", "min_quantity": "1"}, "0.5"),
        ("-0.5", Side.SELL, {"status": "reduce-only", "min_quantity": "1"}, "0"),
    ],
)
def test_largest_quantity_is_what_the_strictest_rule_leaves(
    held: str | None, side: Side, terms: dict[str, Any], most: str
) -> None:
    at: Position | None = None if held is None else position(BTC, held, "50000")
    assert limits_max(at, side, instrument(**terms)) == Decimal(most)


def test_reduce_only_makes_the_position_the_largest_quantity() -> None:
    held = position(BTC, "2", "50000")
    assert limits_max(held, Side.SELL, instrument(), reduce_only=True) == 2
    assert limits_max(held, Side.BUY, instrument(), reduce_only=True) == 0
    assert limits_max(None, Side.BUY, instrument(), reduce_only=True) == 0


def test_smallest_quantity_is_a_multiple_of_the_lot() -> None:
    assert limits_min(instrument(lot_size="0.2", min_quantity="0.5")) == Decimal("0.6")


def test_client_order_id_and_liquidity_decide_nothing_without_fees() -> None:
    order = replace(buy("0.1", "50000"), liquidity=Liquidity.MAKER, client_order_id="x")
    assert execute_order(FLAT, order, market("50000")) == execute_order(FLAT, buy("0.1", "50000"), market("50000"))
