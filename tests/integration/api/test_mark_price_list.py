"""GET /mark-prices and /mark-prices/{symbol}/history over HTTP, and what is said of a price that moves too far."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import journal_drain_handler
from margin.clients.market_redis import SYMBOLS_MAX
from margin.domain.instrument import Instrument
from margin.domain.instrument_terms import terms_of
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange

NOON = "2025-01-31T12:00:00Z"


def configure(exchange: Exchange, symbol: str = "BTC-PERP", **terms: Any) -> None:
    instrument = Instrument(symbol, version=1, **terms)
    exchange.stores.redis.hset("instruments", symbol, json.dumps(terms_of(instrument)))
    if instrument.mark_jump_max is not None:
        exchange.stores.redis.hset("mark_jump_max", symbol, str(instrument.mark_jump_max))


def drain(exchange: Exchange) -> None:
    assert "left_out" not in journal_drain_handler.handler(SCHEDULE, LambdaContext()), exchange


def listed(exchange: Exchange, **query: str) -> list[dict[str, Any]]:
    prices: list[dict[str, Any]] = exchange.get("/mark-prices", **query)["mark_prices"]
    return prices


def post(exchange: Exchange, price: str, **fields: Any) -> Any:
    return exchange.call("POST", "/mark-price", {"symbol": "BTC-PERP", "price": price, **fields})


# --- the list ---


def test_price_is_listed_with_its_times_age_and_source(exchange: Exchange) -> None:
    configure(exchange, mark_max_age_s=86_400)
    observed = datetime.now(UTC) - timedelta(minutes=10)
    assert post(exchange, "50000.50", timestamp=observed.isoformat(), source="index-1").status == 200
    answer = exchange.get("/mark-prices")
    (price,) = answer["mark_prices"]
    as_of, stored_at = (datetime.fromisoformat(text) for text in (answer["as_of"], price["stored_at"]))
    assert datetime.fromisoformat(price.pop("timestamp")) == observed
    assert Decimal(price.pop("age_s")) == Decimal((as_of - observed) // timedelta(microseconds=1)).scaleb(-6)
    assert observed < stored_at <= as_of
    assert price == {
        "symbol": "BTC-PERP",
        "price": "50000.5",
        "stored_at": price["stored_at"],
        "source": "index-1",
        "stale": False,
        "max_age_s": 86_400,
        "set_aside": None,
    }


def test_price_is_stale_beyond_the_age_that_its_instrument_allows(exchange: Exchange) -> None:
    configure(exchange, mark_max_age_s=60)
    configure(exchange, "ETH-PERP", mark_max_age_s=3600)
    old = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    for symbol in ("BTC-PERP", "ETH-PERP", "SOL-PERP"):
        exchange.post("/mark-price", symbol=symbol, price="1", timestamp=old)
    assert [(price["symbol"], price["stale"], price["max_age_s"]) for price in listed(exchange)] == [
        ("BTC-PERP", True, 60),
        ("ETH-PERP", False, 3600),
        ("SOL-PERP", False, None),
    ]


def test_price_that_was_put_back_from_history_is_stale_and_of_no_age(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    drain(exchange)
    exchange.stores.redis.flushdb()
    drain(exchange)
    (price,) = listed(exchange)
    assert (price["price"], price["stale"], price["age_s"], price["stored_at"]) == ("50000", True, None, None)
    assert exchange.mark("BTC-PERP", "50001")["at_risk"] == 0
    (price,) = listed(exchange)
    assert (price["stale"], price["age_s"] is None) == (False, False)


def test_one_symbol_can_be_asked_for(exchange: Exchange) -> None:
    for symbol in ("BTC-PERP", "ETH-PERP"):
        exchange.mark(symbol, "1")
    assert [price["symbol"] for price in listed(exchange, symbol="ETH-PERP")] == ["ETH-PERP"]
    assert listed(exchange, symbol="SOL-PERP") == []
    assert_problem(exchange.call("GET", "/mark-prices", query="symbol=btc"), 422, "INVALID_REQUEST", "query.symbol")


def test_all_the_symbols_that_there_can_be_are_one_answer(exchange: Exchange) -> None:
    symbols = [f"S{number:04}" for number in range(SYMBOLS_MAX)]
    for start in range(0, SYMBOLS_MAX, 100):
        prices = [{"symbol": symbol, "price": 1, "source": "x" * 64} for symbol in symbols[start : start + 100]]
        exchange.post("/mark-prices", prices=prices)
    reply = exchange.call("GET", "/mark-prices")
    assert [price["symbol"] for price in reply.json["mark_prices"]] == symbols
    # Lambda answers 6 MB at most, in which each quotation mark counts twice.
    assert len(json.dumps(reply.text)) < 1_000_000


# --- the guard ---


def test_sender_of_a_price_that_moves_too_far_hears_what_is_in_force_and_what_confirms_it(exchange: Exchange) -> None:
    configure(exchange, mark_jump_max=Decimal("0.1"))
    assert post(exchange, "50000", timestamp=NOON).status == 200
    reply = post(exchange, "5000.0", timestamp="2025-01-31T12:00:01Z", source="index-1")
    assert reply.status == 202
    assert reply.json == {
        "success": True,
        "message": (
            "Set aside: 5000 is 90 % away from the mark price 50000. "
            "More than 10 % at once takes a second, later price within 10 % of this one."
        ),
        "symbol": "BTC-PERP",
        "price": "50000",
        "set_aside": "5000",
        "at_risk": 0,
    }
    (price,) = listed(exchange)
    assert (price["price"], price["set_aside"]) == (
        "50000",
        {"price": "5000", "timestamp": "2025-01-31T12:00:01.000000Z", "source": "index-1", "move_pct": "-90"},
    )
    confirmed = post(exchange, "5001", timestamp="2025-01-31T12:00:02Z")
    assert (confirmed.status, confirmed.json) == (
        200,
        {"success": True, "message": "Mark price updated", "symbol": "BTC-PERP", "price": "5001", "at_risk": 0},
    )
    (price,) = listed(exchange)
    assert (price["price"], price["set_aside"], price["source"]) == ("5001", None, None)


def test_of_several_prices_those_that_move_too_far_are_answered_one_by_one(exchange: Exchange) -> None:
    configure(exchange, mark_jump_max=Decimal("0.1"))
    exchange.mark("BTC-PERP", "50000")
    exchange.mark("ETH-PERP", "3000")
    prices = [{"symbol": "ETH-PERP", "price": 1000}, {"symbol": "BTC-PERP", "price": 60000}]
    reply = exchange.call("POST", "/mark-prices", {"prices": prices})
    assert reply.status == 202
    answer = reply.json
    message = answer["prices"][1].pop("message")
    assert message.startswith("Set aside: 60000 is 20 % away from the mark price 50000.")
    assert answer == {
        "success": True,
        "message": "Mark prices updated, but those set aside: 1",
        "prices": [
            {"symbol": "ETH-PERP", "price": "1000", "at_risk": 0},
            {"symbol": "BTC-PERP", "price": "50000", "set_aside": "60000", "at_risk": 0},
        ],
        "at_risk": 0,
    }


# --- the history ---


def test_history_is_sampled_by_the_drain_and_read_newest_first(exchange: Exchange) -> None:
    for price, source in (("50000", "index-1"), ("50001.50", None), ("50002", "index-2")):
        assert post(exchange, price, **({} if source is None else {"source": source})).status == 200
        drain(exchange)
        drain(exchange)
    exchange.mark("ETH-PERP", "3000")
    drain(exchange)
    first = exchange.get("/mark-prices/BTC-PERP/history", limit=2)
    second = exchange.get("/mark-prices/BTC-PERP/history", limit=2, cursor=first["next_cursor"])
    rows = [*first["mark_prices"], *second["mark_prices"]]
    assert [(row["symbol"], row["price"], row["source"]) for row in rows] == [
        ("BTC-PERP", "50002", "index-2"),
        ("BTC-PERP", "50001.5", None),
        ("BTC-PERP", "50000", "index-1"),
    ]
    assert second["next_cursor"] is None
    (price,) = listed(exchange, symbol="BTC-PERP")
    assert rows[0]["timestamp"] == price["stored_at"]
    since = exchange.get("/mark-prices/BTC-PERP/history", since=rows[1]["timestamp"], until=rows[0]["timestamp"])
    assert since["mark_prices"] == [rows[1]]


def test_history_of_a_symbol_that_never_had_a_price_is_empty(exchange: Exchange) -> None:
    assert exchange.get("/mark-prices/SOL-PERP/history") == {"mark_prices": [], "next_cursor": None}


@pytest.mark.parametrize("symbol", ["btc", "BTC PERP", "X" * 33, "%00", "*"])
def test_what_is_no_symbol_is_refused_by_name(exchange: Exchange, symbol: str) -> None:
    path = f"/mark-prices/{symbol.replace(' ', '%20')}/history"
    assert_problem(exchange.call("GET", path), 422, "INVALID_REQUEST", "path.symbol")
