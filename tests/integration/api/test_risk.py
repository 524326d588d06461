"""The ladder and the shocks through the handler, on real servers: they say what setting the prices then does."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import risk_api
from tests.events import LambdaContext, api_gateway_event
from tests.integration.api.exchange import Reply, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange

LOSSES = {"accounts_liquidated", "notional_closed", "shortfall", "fees", "fund_suffices", "fund_missing"}
CRASH = {
    "name": "crash",
    "moves": [{"symbol": "BTC-PERP", "move": "-0.30"}, {"symbol": "ETH-PERP", "move": "-0.40"}],
}


@pytest.fixture
def filled(exchange: Exchange) -> Exchange:
    """Return an exchange at 50000 and 3000: account 1 long, 2 short, 3 long in both, 4 without a position."""
    exchange.mark("BTC-PERP", "50000")
    exchange.mark("ETH-PERP", "3000")
    for account_id, amount in {1: "15000", 2: "15000", 3: "30000", 4: "5"}.items():
        exchange.deposit(account_id, amount)
    exchange.trade(1, "BUY", "1", "50000")
    exchange.trade(2, "SELL", "1", "50000")
    exchange.trade(3, "BUY", "1", "50000")
    exchange.trade(3, "BUY", "10", "3000", "ETH-PERP")
    return exchange


def ladder(exchange: Exchange, symbol: str = "BTC-PERP") -> Any:
    return exchange.get("/risk/ladder", symbol=symbol)


def shock(exchange: Exchange, *shocks: Any) -> Reply:
    return exchange.call("POST", "/risk/shocks", {"shocks": list(shocks)})


def test_ladder_names_each_price_and_what_it_comes_to(filled: Exchange) -> None:
    answer = ladder(filled)
    assert set(answer) == {"as_of", "symbol", "mark_price", "accounts", "fund_balance", "steps"}
    assert (answer["symbol"], answer["mark_price"], answer["accounts"]) == ("BTC-PERP", "50000", 4)
    assert all(set(step) == {"move", "price"} | LOSSES for step in answer["steps"])
    assert [step["move"] for step in answer["steps"]] == [
        *("-0.5", "-0.4", "-0.3", "-0.25", "-0.2", "-0.15", "-0.1", "-0.075", "-0.05", "-0.025", "-0.01"),
        "0",
        *("0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.25", "0.3", "0.4", "0.5"),
    ]
    # Of account 3, 1050 short of 1.1 times its margin, 9545.45457 of ETH-PERP is closed, in whole lots.
    assert answer["steps"][0] == {
        "move": "-0.5",
        "price": "25000",
        "accounts_liquidated": 2,
        "notional_closed": "34545.45457",
        "shortfall": "10000",
        "fees": "0",
        "fund_suffices": False,
        "fund_missing": "10000",
    }
    assert answer["steps"][11] == {
        "move": "0",
        "price": "50000",
        "accounts_liquidated": 0,
        "notional_closed": "0",
        "shortfall": "0",
        "fees": "0",
        "fund_suffices": True,
        "fund_missing": "0",
    }


@pytest.mark.parametrize("number", [0, 2, 11, 18, 22])
def test_step_of_the_ladder_is_what_the_price_does_when_it_is_set(filled: Exchange, number: int) -> None:
    step = ladder(filled)["steps"][number]
    assert filled.mark("BTC-PERP", step["price"])["at_risk"] >= step["accounts_liquidated"]
    assert_is_what_happened(filled, step)


def test_shock_is_what_the_prices_do_when_they_are_set_together(filled: Exchange) -> None:
    reply = shock(filled, CRASH)
    assert reply.status == 200, reply.text
    assert set(reply.json) == {"as_of", "accounts", "fund_balance", "shocks"}
    (answer,) = reply.json["shocks"]
    assert set(answer) == {"name", "prices"} | LOSSES
    assert (answer["name"], answer["prices"]) == (
        "crash",
        [
            {"symbol": "BTC-PERP", "move": "-0.3", "price": "35000"},
            {"symbol": "ETH-PERP", "move": "-0.4", "price": "1800"},
        ],
    )
    prices = [{"symbol": price["symbol"], "price": price["price"]} for price in answer["prices"]]
    filled.post("/mark-prices", prices=prices)
    assert_is_what_happened(filled, answer)


def assert_is_what_happened(exchange: Exchange, losses: Any) -> None:
    liquidations = exchange.get("/liquidations")["liquidations"]
    closed = [position for liquidation in liquidations for position in liquidation["positions"]]
    assert losses["accounts_liquidated"] == len(liquidations)
    assert Decimal(losses["notional_closed"]) == sum(
        abs(Decimal(one["quantity"])) * Decimal(one["price"]) for one in closed
    )
    assert Decimal(losses["shortfall"]) == sum(Decimal(liquidation["shortfall"]) for liquidation in liquidations)


def test_fund_is_the_sum_of_its_ledger_lines(filled: Exchange) -> None:
    filled.stores.postgres.execute(
        "insert into ledger_lines (account_id, event_id, line, ledger_account, amount) values"
        " (1, 1, 100, 'insurance', 7000.50), (2, 1, 101, 'insurance', -2000.25), (2, 1, 102, 'fees', 7)"
    )
    answer = ladder(filled)
    assert answer["fund_balance"] == "5000.25"
    for step in answer["steps"]:
        missing = Decimal(step["shortfall"]) - Decimal(step["fees"]) - Decimal("5000.25")
        assert (step["fund_suffices"], Decimal(step["fund_missing"])) == (missing <= 0, max(Decimal(0), missing))
    assert {step["fund_suffices"] for step in answer["steps"]} == {True, False}


def test_stale_position_is_no_liquidation_risk_and_its_account_no_candidate(exchange: Exchange) -> None:
    exchange.restart(crossed_inline_max=0, crossed_queued_max=0)
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "15000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.mark("BTC-PERP", "38000")
    assert exchange.get("/positions/1")["liquidation_risk"] is True
    # A mark that was put back from history: nobody knows how old it is.
    exchange.stores.redis.hset("mark_stamps", "BTC-PERP", "0")
    positions = exchange.get("/positions/1")
    report = exchange.get("/margin-report")
    assert (positions["liquidation_risk"], positions["margin_utilisation_pct"]) == (False, "126.67")
    assert (report["liquidation_candidates"], report["accounts_detail"][0]["liquidation_risk"]) == ([], False)
    assert ladder(exchange)["steps"][11]["accounts_liquidated"] == 1


def test_stress_tests_change_nothing(filled: Exchange) -> None:
    before = filled.stores.contents()
    ladder(filled)
    shock(filled, CRASH)
    assert filled.stores.contents() == before


def test_more_accounts_than_are_covered_are_refused(filled: Exchange) -> None:
    filled.restart(report_accounts_max=3)
    reply = filled.call("GET", "/risk/ladder", query={"symbol": "BTC-PERP"})
    assert "more than 3 accounts" in assert_problem(reply, 400, "LIMIT_EXCEEDED")
    assert_problem(shock(filled, CRASH), 400, "LIMIT_EXCEEDED")


def test_symbol_without_a_mark_price_is_refused(filled: Exchange) -> None:
    assert_problem(filled.call("GET", "/risk/ladder", query={"symbol": "SOL-PERP"}), 400, "NO_MARK_PRICE")
    unknown = {"name": "x", "moves": [{"symbol": "SOL-PERP", "move": "0.1"}]}
    assert_problem(shock(filled, unknown), 400, "NO_MARK_PRICE")


@pytest.mark.parametrize("query", ["", "symbol=", "symbol=btc", "symbol=BTC PERP", "symbol=" + "A" * 33])
def test_ladder_without_a_right_symbol_is_refused_by_name(exchange: Exchange, query: str) -> None:
    assert_problem(exchange.call("GET", "/risk/ladder", query=query), 422, "INVALID_REQUEST", "query.symbol")


BAD_MOVES = ["-1", "-0.99000001", "10.00000001", "1e3", "0.000000001", '"ten"', '"+0.1"', '"1e1"', "true", "null", "[]"]


@pytest.mark.parametrize("text", BAD_MOVES)
def test_what_is_no_move_is_refused_by_name(exchange: Exchange, text: str) -> None:
    body = f'{{"shocks": [{{"name": "x", "moves": [{{"symbol": "BTC-PERP", "move": {text}}}]}}]}}'
    reply = exchange.call("POST", "/risk/shocks", body)
    assert_problem(reply, 422, "INVALID_REQUEST", "shocks.0.moves.0.move")


@pytest.mark.parametrize("text", ["-0.99", '"-0.99"', "10", "0", "-0.0", '"-0.30000000"', "0.00000001"])
def test_move_is_a_number_or_a_string_up_to_its_limits(filled: Exchange, text: str) -> None:
    body = f'{{"shocks": [{{"name": "x", "moves": [{{"symbol": "BTC-PERP", "move": {text}}}]}}]}}'
    reply = filled.call("POST", "/risk/shocks", body)
    assert reply.status == 200, reply.text
    (price,) = reply.json["shocks"][0]["prices"]
    assert Decimal(price["move"]) == Decimal(text.strip('"'))
    assert Decimal(price["price"]) == 50000 * (1 + Decimal(text.strip('"')))


MOVE = {"symbol": "BTC-PERP", "move": "0.1"}


@pytest.mark.parametrize(
    ("shocks", "field"),
    [
        ([], "shocks"),
        ([{"name": "x", "moves": []}], "shocks.0.moves"),
        ([{"name": str(number), "moves": [MOVE]} for number in range(11)], "shocks"),
        ([{"name": "x", "moves": [{"symbol": f"S{number}", "move": "0"} for number in range(101)]}], "shocks.0.moves"),
        ([{"name": "x", "moves": [MOVE, MOVE]}], "shocks.0.moves"),
        ([{"name": "x", "moves": [MOVE]}] * 2, "shocks"),
        ([{"name": "", "moves": [MOVE]}], "shocks.0.name"),
        ([{"name": "two\nlines", "moves": [MOVE]}], "shocks.0.name"),
        ([{"name": "x" * 65, "moves": [MOVE]}], "shocks.0.name"),
        ([{"moves": [MOVE]}], "shocks.0.name"),
        ([{"name": "x", "moves": [MOVE], "price": "1"}], "shocks.0.price"),
        ([{"name": "x", "moves": [{**MOVE, "symbol": "btc"}]}], "shocks.0.moves.0.symbol"),
    ],
)
def test_shocks_beyond_their_limits_are_refused_by_name(exchange: Exchange, shocks: list[Any], field: str) -> None:
    assert_problem(shock(exchange, *shocks), 422, "INVALID_REQUEST", field)


@pytest.mark.parametrize("indent", [None, 4])
def test_ten_shocks_of_a_hundred_symbols_with_the_longest_names_are_answered(
    exchange: Exchange, indent: int | None
) -> None:
    symbols = [f"{number:03}-{'X' * 28}" for number in range(100)]
    exchange.post("/mark-prices", prices=[{"symbol": symbol, "price": "100"} for symbol in symbols])
    moves = [{"symbol": symbol, "move": "-0.05123456"} for symbol in symbols]
    names = ["\u00e4" * 63 + str(number) for number in range(10)]
    body = json.dumps({"shocks": [{"name": name, "moves": moves} for name in names]}, indent=indent)
    reply = exchange.call("POST", "/risk/shocks", body)
    assert reply.status == 200, reply.text
    assert [(one["name"], len(one["prices"])) for one in reply.json["shocks"]] == [(name, 100) for name in names]


def test_test_that_would_outlast_the_function_is_refused(filled: Exchange) -> None:
    body = {"shocks": [CRASH]}
    # Less than what is left for a store that is slow, and for the answer.
    context = LambdaContext(timeout_s=2.4)
    for event in (
        api_gateway_event("GET", "/risk/ladder", query={"symbol": "BTC-PERP"}),
        api_gateway_event("POST", "/risk/shocks", body),
    ):
        answer = risk_api.handler(event, context)
        reply = Reply(answer["statusCode"], answer["headers"], answer["body"])
        assert "ran out after 0 accounts" in assert_problem(reply, 400, "LIMIT_EXCEEDED")
