from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.position import Fill, Position, Side, apply_fill
from tests.unit.domain.books import BTC, ETH, position


def fill(held: Position | None, side: Side, quantity: str, price: str) -> Fill:
    return apply_fill(held, BTC, side, Decimal(quantity), Decimal(price), funding_index=Decimal(0))


def test_sides_have_signs() -> None:
    assert (Side.BUY.sign, Side.SELL.sign) == (1, -1)


def test_values_of_a_long_and_a_short_by_hand() -> None:
    long, short = position(BTC, "0.1", "50000"), position(BTC, "-2", "50000")
    assert (long.entry_price, long.notional(Decimal(51000)), long.unrealised_pnl(Decimal(51000))) == (50000, 5100, 100)
    assert (short.entry_price, short.notional(Decimal(51000))) == (50000, 102000)
    assert short.unrealised_pnl(Decimal(51000)) == -2000


def test_entry_price_shown_is_rounded_to_8_decimals() -> None:
    assert Position(BTC, Decimal(3), Decimal(100)).entry_price == Decimal("33.33333333")


@pytest.mark.parametrize(("quantity", "cost"), [("0", "0"), ("NaN", "0"), ("1", "Infinity")])
def test_position_without_quantity_or_with_a_number_not_finite_is_refused(quantity: str, cost: str) -> None:
    with pytest.raises(ValueError, match="position"):
        Position(BTC, Decimal(quantity), Decimal(cost))


def test_opening_a_short_gives_negative_quantity_and_cost() -> None:
    assert fill(None, Side.SELL, "0.1", "50000") == Fill(Position(BTC, Decimal("-0.1"), Decimal(-5000)), 0, 0)


def test_increase_adds_cost_and_realises_nothing() -> None:
    increased = fill(position(BTC, "1", "50000"), Side.BUY, "1", "60000")
    assert increased == Fill(Position(BTC, Decimal(2), Decimal(110000)), 0, 0)
    assert increased.position is not None
    assert increased.position.entry_price == 55000


def test_reduce_of_a_long_realises_its_share_and_keeps_the_entry_price() -> None:
    reduced = fill(position(BTC, "2", "50000"), Side.SELL, "0.5", "52000")
    assert reduced == Fill(Position(BTC, Decimal("1.5"), Decimal(75000)), 1000, 1000)


def test_reduce_of_a_short_realises_its_share_and_keeps_the_entry_price() -> None:
    reduced = fill(position(BTC, "-2", "50000"), Side.BUY, "0.5", "52000")
    assert reduced == Fill(Position(BTC, Decimal("-1.5"), Decimal(-75000)), -1000, -1000)


def test_reduce_keeps_the_dust_of_a_gain_in_the_entry_cost() -> None:
    # A third of the cost 100 is 33.333...; the gain 40 - 33.333... = 6.666... is booked as 6.66666666.
    reduced = fill(Position(BTC, Decimal(3), Decimal(100)), Side.SELL, "1", "40")
    assert reduced.realised_pnl == reduced.gain == Decimal("6.66666666")
    assert reduced.position == Position(BTC, Decimal(2), Decimal("66.66666666"))


def test_reduce_books_a_loss_rounded_away_from_the_account() -> None:
    # 30 - 33.333... = -3.333... is booked as -3.33333334, and the entry cost falls by what was booked too much.
    reduced = fill(Position(BTC, Decimal(3), Decimal(100)), Side.SELL, "1", "30")
    assert reduced.realised_pnl == Decimal("-3.33333334")
    assert reduced.position == Position(BTC, Decimal(2), Decimal("66.66666666"))


def test_close_hands_the_dust_to_the_gain() -> None:
    closed = fill(Position(BTC, Decimal("0.5"), Decimal("25.000000005")), Side.SELL, "0.5", "60")
    assert closed == Fill(None, Decimal("4.99999999"), Decimal("4.999999995"))


def test_flip_closes_the_whole_and_opens_the_rest_at_the_trades_price() -> None:
    flipped = fill(position(BTC, "1", "50000"), Side.SELL, "1.5", "51000")
    assert flipped == Fill(Position(BTC, Decimal("-0.5"), Decimal(-25500)), 1000, 1000)


def test_flip_of_a_short_realises_its_loss() -> None:
    flipped = fill(position(BTC, "-1", "50000"), Side.BUY, "3", "51000")
    assert flipped == Fill(Position(BTC, Decimal(2), Decimal(102000)), -1000, -1000)


@pytest.mark.parametrize(("quantity", "price"), [("0", "1"), ("-1", "1"), ("1", "0"), ("1", "-1")])
def test_fill_without_quantity_or_price_is_a_programmers_error(quantity: str, price: str) -> None:
    with pytest.raises(ValueError, match="above 0"):
        fill(None, Side.BUY, quantity, price)


def test_fill_of_another_symbol_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="same symbol"):
        fill(position(ETH, "1", "3000"), Side.BUY, "1", "50000")
