"""The margin arithmetic against figures that large venues have published; their sources are in ``tests/data``."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.liquidation_price import liquidation_price
from margin.domain.market import Mark, Market
from margin.domain.position import Side
from margin.domain.risk import assess, assess_positions
from tests.unit.domain.books import NOW_US, account, position
from tests.venues import EXAMPLES, VENUES, agrees, ids

if TYPE_CHECKING:
    from margin.domain.account import Account
    from tests.venues import Example, Venue

WITH_ACCOUNT_FIGURES = [(venue, example) for venue, example in EXAMPLES if example.account_figures]
WITH_PRICES = [
    (venue, example)
    for venue, example in EXAMPLES
    if any(figure == "liquidation_price" for _, figure in example.position_figures)
]
TABLES = [(venue, symbol) for venue in VENUES for symbol in venue.maintenance_amounts]


def account_of(example: Example) -> Account:
    positions = [
        position(trade["symbol"], str(Side(trade["side"]).sign * Decimal(trade["quantity"])), trade["price"])
        for trade in example.trades
    ]
    return account(example.deposit, *positions)


def market_of(venue: Venue, example: Example) -> Market:
    marks = {symbol: Mark(Decimal(price), NOW_US) for symbol, price in example.marks.items()}
    return Market(marks, venue.instruments, NOW_US)


def test_there_are_examples_of_at_least_five_venues() -> None:
    assert len({venue.name for venue, _ in EXAMPLES}) >= 5


@pytest.mark.parametrize(("venue", "symbol"), TABLES, ids=[f"{venue.name} {symbol}" for venue, symbol in TABLES])
def test_derived_maintenance_amounts_are_those_that_the_venue_publishes(venue: Venue, symbol: str) -> None:
    assert venue.instruments[symbol].maintenance_amounts == venue.maintenance_amounts[symbol]


@pytest.mark.parametrize(("venue", "example"), WITH_ACCOUNT_FIGURES, ids=ids(WITH_ACCOUNT_FIGURES))
def test_figures_of_the_account_are_the_published_ones(venue: Venue, example: Example) -> None:
    risk = assess(account_of(example), market_of(venue, example))
    calculated = {
        "equity": risk.equity,
        "initial_margin_required": risk.initial_margin,
        "maintenance_margin_required": risk.maintenance_margin,
    }
    for figure, published in example.account_figures.items():
        assert agrees(calculated[figure], published), f"{figure}: {calculated[figure]}, published: {published}"


@pytest.mark.parametrize(("venue", "example"), EXAMPLES, ids=ids(EXAMPLES))
def test_figures_of_each_position_are_the_published_ones(venue: Venue, example: Example) -> None:
    described = {risk.symbol: risk for risk in assess_positions(account_of(example), market_of(venue, example))}
    assert set(described) == {trade["symbol"] for trade in example.trades}
    for (symbol, figure), published in example.position_figures.items():
        calculated = getattr(described[symbol], figure)
        assert calculated is not None
        assert agrees(calculated, published), f"{figure} of {symbol}: {calculated}, published: {published}"


@pytest.mark.parametrize(("venue", "example"), WITH_PRICES, ids=ids(WITH_PRICES))
def test_published_liquidation_price_is_solved_without_the_symbols_own_mark(venue: Venue, example: Example) -> None:
    held, market = account_of(example), market_of(venue, example)
    for (symbol, figure), published in example.position_figures.items():
        if figure == "liquidation_price":
            elsewhere = {other: mark for other, mark in market.marks.items() if other != symbol}
            price = liquidation_price(held, symbol, replace(market, marks=elsewhere))
            assert price is not None
            assert agrees(price, published)
