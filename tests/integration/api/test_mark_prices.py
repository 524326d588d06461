"""POST /mark-price and /mark-prices over HTTP: answers, times, and what is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from margin.contract.mark_price import SYMBOLS_PER_CALL_MAX
from tests.integration.api.exchange import assert_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.api.exchange import Exchange, Reply

NOON = "2025-01-31T12:00:00Z"
BEFORE_NOON = "2025-01-31T11:59:59.999999Z"
NOON_US = 1_738_324_800_000_000


@pytest.fixture
def untouched(exchange: Exchange) -> Iterator[Exchange]:
    """Yield an engine with a price, and see to it that the test writes nothing to either store."""
    exchange.mark("BTC-PERP", "50000")
    before = exchange.stores.contents()
    yield exchange
    assert exchange.stores.contents() == before


def price(symbol: str, value: Any, timestamp: str | None = None) -> dict[str, Any]:
    return {"symbol": symbol, "price": value} | ({} if timestamp is None else {"timestamp": timestamp})


def post(exchange: Exchange, *prices: dict[str, Any]) -> Reply:
    return exchange.call("POST", "/mark-prices", {"prices": list(prices)})


def test_prices_of_one_call_are_answered_each_with_whom_it_crossed(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.mark("ETH-PERP", "50000")
    exchange.deposit(1, "20000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.trade(1, "BUY", "1", "50000", "ETH-PERP")
    reply = post(exchange, price("ETH-PERP", 40000), price("BTC-PERP", "40000.50"), price("SOL-PERP", 100))
    assert reply.status == 200
    assert reply.json == {
        "success": True,
        "message": "Mark prices updated",
        "prices": [
            {"symbol": "ETH-PERP", "price": "40000", "at_risk": 1},
            {"symbol": "BTC-PERP", "price": "40000.5", "at_risk": 1},
            {"symbol": "SOL-PERP", "price": "100", "at_risk": 0},
        ],
        "at_risk": 1,
    }
    assert [row["account_id"] for row in exchange.get("/liquidations")["liquidations"]] == [1]


def test_hedged_account_is_not_judged_between_two_prices_of_a_call(exchange: Exchange) -> None:
    for symbol in ("BTC-PERP", "ETH-PERP"):
        exchange.mark(symbol, "50000")
    exchange.deposit(1, "24000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.trade(1, "SELL", "1", "50000", "ETH-PERP")
    assert post(exchange, price("ETH-PERP", 90000), price("BTC-PERP", 90000)).json["at_risk"] == 1
    assert exchange.get("/liquidations")["liquidations"] == []
    assert post(exchange, price("ETH-PERP", 50000), price("BTC-PERP", 50000)).status == 200
    assert exchange.mark("ETH-PERP", "90000")["at_risk"] == 1
    assert [row["account_id"] for row in exchange.get("/liquidations")["liquidations"]] == [1]


def test_a_hundred_symbols_are_taken_and_no_more(exchange: Exchange) -> None:
    many = [price(f"S{number}", "1.00000001") for number in range(SYMBOLS_PER_CALL_MAX)]
    assert len(post(exchange, *many).json["prices"]) == SYMBOLS_PER_CALL_MAX
    before = exchange.stores.contents()
    detail = assert_problem(post(exchange, *many, price("ONE-MORE", 1)), 422, "INVALID_REQUEST", "prices")
    assert "at most 100" in detail
    assert exchange.stores.contents() == before


def test_no_price_and_a_symbol_twice_are_refused(untouched: Exchange) -> None:
    assert "at least 1" in assert_problem(post(untouched), 422, "INVALID_REQUEST", "prices")
    twice = (price("BTC-PERP", 50000), price("ETH-PERP", 3000), price("BTC-PERP", 50000))
    assert "each symbol once" in assert_problem(post(untouched, *twice), 422, "INVALID_REQUEST", "prices")


@pytest.mark.parametrize("text", ["{}", "null", '"BTC-PERP"', '[["BTC-PERP", 50000]]', "[null]"])
def test_what_is_no_list_of_prices_is_refused(untouched: Exchange, text: str) -> None:
    reply = untouched.call("POST", "/mark-prices", f'{{"prices": {text}}}')
    field = "prices.0" if text.startswith("[") else "prices"
    assert_problem(reply, 422, "INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"symbol": "btc"}, "symbol"),
        ({"price": 0}, "price"),
        ({"price": "0.123456789"}, "price"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"at": NOON}, "at"),
    ],
)
def test_a_bad_field_of_one_price_is_refused_by_its_place(untouched: Exchange, bad: dict[str, Any], field: str) -> None:
    reply = post(untouched, price("ETH-PERP", 3000), price("BTC-PERP", 50000) | bad)
    assert_problem(reply, 422, "INVALID_REQUEST", f"prices.1.{field}")


NOT_A_TIME = {
    "no offset": '"2025-01-31T12:00:00"',
    "a date": '"2025-01-31"',
    "nanoseconds": '"2025-01-31T12:00:00.123456789Z"',
    "the 32nd": '"2025-01-32T12:00:00Z"',
    "a number": "1738324800",
    "null": "null",
    "empty": '""',
    "a year without an hour that exists": '"0001-01-01T00:00:00+23:59"',
}


@pytest.mark.parametrize("text", NOT_A_TIME.values(), ids=NOT_A_TIME)
def test_what_is_no_time_with_an_offset_is_refused_by_name(untouched: Exchange, text: str) -> None:
    body = f'{{"symbol": "BTC-PERP", "price": 50000, "timestamp": {text}}}'
    assert_problem(untouched.call("POST", "/mark-price", body), 422, "INVALID_REQUEST", "timestamp")
    reply = untouched.call("POST", "/mark-prices", f'{{"prices": [{body}]}}')
    assert_problem(reply, 422, "INVALID_REQUEST", "prices.0.timestamp")


@pytest.mark.parametrize(
    "text", [NOON, "2025-01-31T14:00:00+02:00", "2025-01-31T12:00Z", "2025-01-31T06:30:00.000-05:30"]
)
def test_time_of_a_price_is_kept_whatever_its_offset(exchange: Exchange, text: str) -> None:
    assert exchange.call("POST", "/mark-price", price("BTC-PERP", 50000, text)).status == 200
    stamp = exchange.stores.redis.hget("mark_stamps", "BTC-PERP")
    assert exchange.stores.redis.hget("mark_times", "BTC-PERP") == stamp + f":{NOON_US}".encode()


def test_price_older_than_the_stored_one_is_409_and_an_equal_one_corrects_it(exchange: Exchange) -> None:
    assert exchange.call("POST", "/mark-price", price("BTC-PERP", 50000, NOON)).status == 200
    before = exchange.stores.contents()
    refused = exchange.call("POST", "/mark-price", price("BTC-PERP", 49000, BEFORE_NOON))
    detail = assert_problem(refused, 409, "OLDER_MARK_PRICE")
    assert detail == (
        "BTC-PERP of 2025-01-31T11:59:59.999999Z is older than the stored price of 2025-01-31T12:00:00.000000Z. "
        "No price of this call was stored."
    )
    assert exchange.stores.contents() == before
    for value in ("50000", "50001"):
        assert exchange.call("POST", "/mark-price", price("BTC-PERP", value, NOON)).json["price"] == value
    assert exchange.stores.redis.hget("mark_prices", "BTC-PERP") == b"50001"
    assert exchange.mark("BTC-PERP", "48000")["price"] == "48000"
    # What said nothing was of now.
    assert_problem(exchange.call("POST", "/mark-price", price("BTC-PERP", 1, NOON)), 409, "OLDER_MARK_PRICE")


def test_one_older_price_refuses_the_whole_call(exchange: Exchange) -> None:
    assert post(exchange, price("BTC-PERP", 50000, NOON), price("ETH-PERP", 3000, NOON)).status == 200
    before = exchange.stores.contents()
    reply = post(exchange, price("BTC-PERP", 51000), price("ETH-PERP", 3100, BEFORE_NOON), price("SOL-PERP", 1))
    assert "ETH-PERP" in assert_problem(reply, 409, "OLDER_MARK_PRICE")
    assert exchange.stores.contents() == before


def test_price_from_the_future_is_refused_by_its_place(untouched: Exchange) -> None:
    later = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()
    single = untouched.call("POST", "/mark-price", price("BTC-PERP", 50000, later))
    assert "at most 10 s ahead" in assert_problem(single, 422, "INVALID_REQUEST", "timestamp")
    reply = post(untouched, price("ETH-PERP", 3000), price("BTC-PERP", 50000, later))
    assert "BTC-PERP" in assert_problem(reply, 422, "INVALID_REQUEST", "prices.1.timestamp")


def test_stale_price_stops_added_risk_and_withdrawals_and_never_a_reduction(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    exchange.trade(1, "BUY", "1", "50000")
    tier = {"notional_cap": None, "initial_rate": "0.20", "maintenance_rate": "0.10"}
    terms = {"symbol": "BTC-PERP", "tiers": [tier], "mark_max_age_s": 60, "version": 1}
    exchange.stores.redis.hset("instruments", "BTC-PERP", json.dumps(terms))
    stamp = int(exchange.stores.redis.hget("mark_stamps", "BTC-PERP")) - 61_000_000
    exchange.stores.redis.hset("mark_stamps", "BTC-PERP", str(stamp))
    order = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}
    withdrawal = exchange.call("POST", "/accounts/1/withdrawals", {"amount": "1"})
    for reply in (exchange.call("POST", "/trade", order), withdrawal):
        assert "BTC-PERP" in assert_problem(reply, 400, "STALE_MARK_PRICE")
    # Through zero is a position of its own on the other side.
    flip = exchange.call("POST", "/trade", order | {"side": "SELL", "quantity": "1.5"})
    assert_problem(flip, 400, "STALE_MARK_PRICE")
    assert exchange.trade(1, "SELL", "0.25", "50000")["position"]["quantity"] == "0.75"
    assert exchange.get("/mark-prices")["mark_prices"][0]["stale"] is True
    exchange.mark("BTC-PERP", "50000")
    assert exchange.call("POST", "/trade", order).status == 200
    assert exchange.call("POST", "/accounts/1/withdrawals", {"amount": "1"}).status == 200


def test_old_observation_that_arrives_now_is_stale_where_the_instrument_limits_age(exchange: Exchange) -> None:
    tier = {"notional_cap": None, "initial_rate": "0.20", "maintenance_rate": "0.10"}
    terms = {"symbol": "BTC-PERP", "tiers": [tier], "taker_fee": "0", "price_band": "0.20", "lot_size": "0.00000001"}
    limited = json.dumps({**terms, "mark_max_age_s": 60, "version": 1})
    exchange.stores.redis.hset("instruments", "BTC-PERP", limited)
    exchange.deposit(1, "100000")
    order = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}
    old = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    assert post(exchange, price("BTC-PERP", 50000, old)).status == 200
    assert_problem(exchange.call("POST", "/trade", order), 400, "STALE_MARK_PRICE")
    assert post(exchange, price("BTC-PERP", 50000, datetime.now(UTC).isoformat())).status == 200
    assert exchange.call("POST", "/trade", order).status == 200
