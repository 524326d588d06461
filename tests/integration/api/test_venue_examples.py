"""Worked examples of large venues, through the interface: their tables imported, their trades made, their figures read.

The sources of the figures are in ``tests/data``.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.decimals import plain
from tests.integration.api.exchange import assert_problem
from tests.venues import EXAMPLES, VENUES, agrees, ids

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange
    from tests.venues import Example, Venue

ACCOUNT = 1
CENT = Decimal("0.01")
UNIT = Decimal("0.00000001")


def account_figures(example: Example) -> dict[str, str]:
    """The published figures of the account, and the sum of its positions' margins, to the cent, where all are known."""
    margins = [
        Decimal(value) for (_, figure), value in example.position_figures.items() if figure == "maintenance_margin"
    ]
    if len(margins) < len(example.trades):
        return example.account_figures
    total = sum(margins, start=Decimal(0)).quantize(CENT)
    return {"maintenance_margin_required": str(total), **example.account_figures}


WITH_AMOUNTS = [venue for venue in VENUES if venue.maintenance_amounts]
ANSWERED_BY_TRADE = [
    (venue, example) for venue, example in EXAMPLES if not example.entry_marks and account_figures(example)
]
"""Examples whose trades happen at the marks of the figures, so that the last trade itself answers them."""
WITH_INITIAL_MARGIN = [
    (venue, example) for venue, example in EXAMPLES if "initial_margin_required" in example.account_figures
]
PRICED = [
    (venue, example, symbol)
    for venue, example in EXAMPLES
    if not example.entry_marks
    for symbol, figure in example.position_figures
    if figure == "liquidation_price"
]
TRADED_LAST = [
    (venue, example, trade["symbol"])
    for venue, example in EXAMPLES
    if not example.entry_marks
    for trade in example.trades
    if account_figures(example) or (trade["symbol"], "liquidation_price") in example.position_figures
]
ACCOUNT_FIGURES = (
    "balance",
    "equity",
    "initial_margin_required",
    "maintenance_margin_required",
    "margin_utilisation_pct",
)


def ids_by_symbol(examples: list[tuple[Venue, Example, str]]) -> list[str]:
    return [f"{venue.name}: {example.name}, {symbol}" for venue, example, symbol in examples]


def import_table(exchange: Exchange, venue: Venue) -> None:
    for terms in venue.terms:
        rules = {name: value for name, value in terms.items() if name != "symbol"}
        reply = exchange.call("PUT", f"/instruments/{terms['symbol']}", rules)
        assert reply.status == 200, reply.text


def set_marks(exchange: Exchange, marks: dict[str, str]) -> None:
    for symbol, price in marks.items():
        exchange.mark(symbol, price)


def begin(exchange: Exchange, venue: Venue, example: Example) -> None:
    import_table(exchange, venue)
    set_marks(exchange, example.entry_marks or example.marks)
    exchange.deposit(ACCOUNT, example.deposit)


def order(trade: dict[str, str]) -> dict[str, Any]:
    return {"account_id": ACCOUNT, **trade}


def check(answer: dict[str, Any], figure: str, published: str) -> None:
    calculated = Decimal(answer[figure])
    assert agrees(calculated, published), f"{figure}: {calculated}, published: {published}"


@pytest.mark.parametrize("venue", WITH_AMOUNTS, ids=[venue.name for venue in WITH_AMOUNTS])
def test_imported_table_shows_the_published_maintenance_amounts(exchange: Exchange, venue: Venue) -> None:
    import_table(exchange, venue)
    for symbol, published in venue.maintenance_amounts.items():
        tiers = exchange.get(f"/instruments/{symbol}")["tiers"]
        assert [Decimal(tier["maintenance_amount"]) for tier in tiers] == list(published)


@pytest.mark.parametrize(("venue", "example"), EXAMPLES, ids=ids(EXAMPLES))
def test_positions_show_the_published_figures(exchange: Exchange, venue: Venue, example: Example) -> None:
    begin(exchange, venue, example)
    for trade in example.trades:
        exchange.post("/trade", **order(trade))
    set_marks(exchange, example.marks)
    answer = exchange.get(f"/positions/{ACCOUNT}")
    for figure, published in example.account_figures.items():
        check(answer, figure, published)
    held = {position["symbol"]: position for position in answer["positions"]}
    assert set(held) == {trade["symbol"] for trade in example.trades}
    for (symbol, figure), published in example.position_figures.items():
        check(held[symbol], figure, published)


@pytest.mark.parametrize(("venue", "example"), ANSWERED_BY_TRADE, ids=ids(ANSWERED_BY_TRADE))
def test_last_trade_answers_the_published_figures(exchange: Exchange, venue: Venue, example: Example) -> None:
    begin(exchange, venue, example)
    for trade in example.trades:
        answer = exchange.post("/trade", **order(trade))
    for figure, published in account_figures(example).items():
        check(answer, figure, published)


@pytest.mark.parametrize(("venue", "example", "symbol"), TRADED_LAST, ids=ids_by_symbol(TRADED_LAST))
def test_preview_of_a_trade_that_completes_the_example_tells_the_published_figures(
    exchange: Exchange, venue: Venue, example: Example, symbol: str
) -> None:
    begin(exchange, venue, example)
    *earlier, last = sorted(example.trades, key=lambda trade: trade["symbol"] == symbol)
    for trade in earlier:
        exchange.post("/trade", **order(trade))
    previewed = exchange.post("/trade/preview", **order(last))
    assert previewed["accepted"] is True
    assert previewed["refusal"] is None
    for figure, published in account_figures(example).items():
        check(previewed["after"], figure, published)
    if (symbol, "liquidation_price") in example.position_figures:
        check(previewed["after"], "liquidation_price", example.position_figures[symbol, "liquidation_price"])
    assert [held["symbol"] for held in exchange.get(f"/positions/{ACCOUNT}")["positions"]] == sorted(
        trade["symbol"] for trade in earlier
    )
    traded = exchange.post("/trade", **order(last))
    assert {figure: previewed["after"][figure] for figure in ACCOUNT_FIGURES} == {
        figure: traded[figure] for figure in ACCOUNT_FIGURES
    }


@pytest.mark.parametrize(("venue", "example"), WITH_INITIAL_MARGIN, ids=ids(WITH_INITIAL_MARGIN))
def test_equity_of_the_published_initial_margin_is_enough_for_the_trades_and_a_cent_less_is_not(
    exchange: Exchange, venue: Venue, example: Example
) -> None:
    import_table(exchange, venue)
    set_marks(exchange, example.marks)
    required = Decimal(example.account_figures["initial_margin_required"])
    exchange.deposit(ACCOUNT, plain(required - CENT))
    *earlier, last = example.trades
    for trade in earlier:
        exchange.post("/trade", **order(trade))
    refusal = exchange.post("/trade/preview", **order(last))["refusal"]
    assert refusal["code"] == "INSUFFICIENT_MARGIN"
    assert refusal["detail"] == (
        f"Insufficient equity. Required: {plain(required)}, Available: {plain(required - CENT)}"
    )
    assert assert_problem(exchange.call("POST", "/trade", order(last)), 400, refusal["code"]) == refusal["detail"]
    exchange.deposit(ACCOUNT, plain(CENT))
    previewed = exchange.post("/trade/preview", **order(last))
    assert previewed["accepted"] is True
    assert previewed["largest"][last["side"].lower()] == last["quantity"]
    check(exchange.post("/trade", **order(last)), "initial_margin_required", plain(required))


@pytest.mark.parametrize(
    ("venue", "example", "symbol"),
    PRICED,
    ids=ids_by_symbol(PRICED),
)
def test_account_is_liquidated_just_beyond_the_published_price_and_not_just_before_it(
    exchange: Exchange, venue: Venue, example: Example, symbol: str
) -> None:
    begin(exchange, venue, example)
    for trade in example.trades:
        exchange.post("/trade", **order(trade))
    published = Decimal(example.position_figures[symbol, "liquidation_price"])
    # A price of two decimals is rounded by half a cent at most, one of eight is the safe one or a neighbour of it.
    step = CENT if published.as_tuple().exponent == CENT.as_tuple().exponent else 2 * UNIT
    (side,) = (trade["side"] for trade in example.trades if trade["symbol"] == symbol)
    beyond = -step if side == "BUY" else step
    exchange.mark(symbol, plain(published - beyond))
    assert exchange.get("/liquidations")["liquidations"] == []
    exchange.mark(symbol, plain(published + beyond))
    (liquidation,) = exchange.get("/liquidations")["liquidations"]
    assert liquidation["account_id"] == ACCOUNT
