"""The largest quantity, against every quantity tried, over equities that no test picked."""

from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.account import Account
from margin.domain.instrument import Instrument, Tier
from margin.domain.largest_order import largest_quantity
from margin.domain.market import Mark, Market
from margin.domain.order import Order, execute_order
from margin.domain.position import Position, Side
from margin.errors import RefusedError

BTC = "BTC-PERP"
STEEP = (
    Tier(Decimal(350), Decimal("0.02"), Decimal("0.01")),
    Tier(Decimal(850), Decimal("0.50"), Decimal("0.25")),
    Tier(None, Decimal(1), Decimal("0.60")),
)


def market(instrument: Instrument) -> Market:
    return Market({BTC: Mark(Decimal(100), 1)}, {BTC: instrument}, 1)


def passes(account: Account, order: Order, quantity: int | Decimal, at: Market) -> bool:
    asked = Order(1, BTC, order.side, Decimal(quantity), order.price)
    try:
        execute_order(account, asked, at)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize("held", ["0", "10", "10.5", "-10", "-10.5", "3", "-3.25"])
@pytest.mark.parametrize("taker_fee", ["0", "0.05", "0.4"])
@pytest.mark.parametrize("price", ["100", "60", "135"])
def test_largest_is_the_last_that_passes_at_every_equity(held: str, taker_fee: str, price: str) -> None:
    at = market(Instrument(BTC, STEEP, taker_fee=Decimal(taker_fee), price_band=Decimal("0.5"), lot_size=Decimal(1)))
    quantity = Decimal(held)
    positions = {BTC: Position(BTC, quantity, quantity * 100)} if quantity else {}
    found = set()
    for equity in range(1, 1500, 53):
        account = Account(1, Decimal(equity), positions)
        for side in Side:
            order = Order(1, BTC, side, Decimal(1), Decimal(price))
            tried = [x for x in [*map(Decimal, range(1, 40)), abs(quantity)] if x and passes(account, order, x, at)]
            largest = largest_quantity(account, order, at)
            assert largest == max(tried, default=Decimal(0)), (equity, side)
            found.add(largest)
    assert len(found) > 3, found


def test_nothing_can_be_traded_without_a_mark_price() -> None:
    order = Order(1, BTC, Side.BUY, Decimal(1), Decimal(100))
    assert largest_quantity(Account(1, Decimal(1000), {}), order, Market({}, {}, 0)) == 0


def test_position_is_closed_whole_though_it_is_no_whole_number_of_lots() -> None:
    at = market(Instrument(BTC, lot_size=Decimal(1)))
    account = Account(1, Decimal(1), {BTC: Position(BTC, Decimal("2.5"), Decimal(250))})
    order = Order(1, BTC, Side.SELL, Decimal(1), Decimal(100))
    assert largest_quantity(account, order, at) == Decimal("2.5")
