from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.liquidation_price import liquidation_price
from margin.domain.risk import assess, assess_positions
from tests.property.strategies import Book, at_prices, books, solvent_books

UNIT = Decimal("0.00000001")


def liquidatable_at(book: Book, symbol: str, price: Decimal) -> bool:
    return assess(book.account, at_prices(book.market, {symbol: price})).liquidatable


@settings(deadline=None, max_examples=150)
@given(st.one_of(solvent_books(), books(positions_min=1)))
def test_account_is_safe_at_the_liquidation_price_and_liquidatable_one_unit_further(book: Book) -> None:
    for symbol, position in book.account.positions.items():
        price = liquidation_price(book.account, symbol, book.market)
        further = -UNIT if position.quantity > 0 else UNIT
        if price is None:
            # A long that no fall can liquidate, a short that no fall can save.
            assert liquidatable_at(book, symbol, UNIT) is (position.quantity < 0)
            continue
        assert price > 0
        assert not liquidatable_at(book, symbol, price)
        if price + further > 0:
            assert liquidatable_at(book, symbol, price + further)


@settings(deadline=None, max_examples=50)
@given(books(positions_min=1))
def test_described_positions_carry_the_same_liquidation_price(book: Book) -> None:
    for described in assess_positions(book.account, book.market):
        assert described.liquidation_price == liquidation_price(book.account, described.symbol, book.market)


@settings(deadline=None, max_examples=50)
@given(solvent_books())
def test_liquidation_price_of_a_safe_account_lies_on_the_losing_side_of_the_mark(book: Book) -> None:
    for described in assess_positions(book.account, book.market):
        if described.quantity < 0:
            assert described.liquidation_price is not None
            assert described.liquidation_price >= described.mark_price
        elif described.liquidation_price is not None:
            assert described.liquidation_price <= described.mark_price
