"""POST /funding, GET /funding/{account_id} and GET /funding-rates over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import journal_drain_handler
from margin.domain.instrument import Instrument
from margin.domain.instrument_terms import terms_of
from margin.errors import PostgresUnavailableError
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange, Reply

NOON = "2025-01-31T12:00:00Z"


@pytest.fixture
def exchange(exchange: Exchange) -> Exchange:
    """Yield an engine where account 1 is long 1 at 50000 and account 2 short 1, each with 14000."""
    exchange.mark("BTC-PERP", "50000")
    for account_id, side in ((1, "BUY"), (2, "SELL")):
        exchange.deposit(account_id, "14000")
        exchange.trade(account_id, side, "1", "50000")
    return exchange


def pay(exchange: Exchange, rate: Any, *, key: str | None = None, **fields: Any) -> Reply:
    headers = {} if key is None else {"idempotency-key": key}
    return exchange.call("POST", "/funding", {"symbol": "BTC-PERP", "rate": rate, **fields}, headers=headers)


def test_payment_is_answered_with_the_index_after_it(exchange: Exchange) -> None:
    reply = pay(exchange, "0.0001", key="k", timestamp=NOON)
    assert reply.status == 200
    expected = {
        "success": True,
        "message": "Funding paid",
        "symbol": "BTC-PERP",
        "rate": "0.0001",
        "mark_price": "50000",
        "funding_index": "5",
        "n": 1,
        "at_risk": 0,
        "effective": True,
        "timestamp": "2025-01-31T12:00:00.000000Z",
    }
    assert reply.json == expected
    assert "idempotent-replayed" not in reply.headers
    again = pay(exchange, 0.0001, key="k", timestamp=NOON)
    assert (again.status, again.json, again.headers["idempotent-replayed"]) == (200, expected, "true")
    rates = exchange.get("/funding-rates", symbol="BTC-PERP")
    shown = {name: expected[name] for name in expected if name not in {"success", "message", "at_risk"}}
    assert rates == {"rates": [shown], "next_cursor": None}


def test_account_sees_what_it_owes_then_what_it_paid(exchange: Exchange) -> None:
    pay(exchange, "-0.00025")
    positions = exchange.get("/positions/1")
    assert positions["positions"][0]["pending_funding"] == "12.5"
    assert (positions["balance"], positions["equity"]) == ("14000", "14012.5")
    pending = [{"symbol": "BTC-PERP", "quantity": "1", "amount": "12.5"}]
    assert exchange.get("/funding/1") == {"payments": [], "pending": pending, "next_cursor": None}
    exchange.deposit(1, "1")
    answer = exchange.get("/funding/1", symbol="BTC-PERP", limit=1)
    (payment,) = answer["payments"]
    assert (payment["amount"], payment["funding_index"], payment["quantity"]) == ("12.5", "-12.5", "1")
    assert (answer["pending"], answer["next_cursor"]) == ([], None)
    assert exchange.get("/positions/1")["balance"] == "14013.5"
    assert exchange.get("/funding/1", until="2020-01-01T00:00:00Z")["payments"] == []


def test_payment_liquidates_and_the_liquidation_tells_the_index(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "40100")
    reply = pay(exchange, "0.01")
    assert (reply.status, reply.json["at_risk"]) == (200, 1)
    (liquidation,) = exchange.get("/liquidations")["liquidations"]
    assert (liquidation["account_id"], liquidation["inputs"]["funding_indexes"]) == (1, {"BTC-PERP": "401"})
    assert [one["amount"] for one in exchange.get("/funding/1")["payments"]] == ["-401"]


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ("1.00000001", "must be from -1 to 1"),
        (-2, "must be from -1 to 1"),
        ("0.000000001", "must have at most 8 decimals"),
        ("much", "must be a number, or a string that holds a decimal number"),
        ("NaN", "must be a number, or a string that holds a decimal number"),
        ("1e1000000", "must be a number, or a string that holds a decimal number"),
        ("1e99", "must be from -1 to 1"),
        ("1e-99", "must have at most 8 decimals"),
        (None, "must be a number, or a string that holds a decimal number"),
        (True, "must be a number, or a string that holds a decimal number"),
        ([], "must be a number, or a string that holds a decimal number"),
    ],
)
def test_rate_that_is_none_is_malformed(exchange: Exchange, rate: Any, message: str) -> None:
    assert assert_problem(pay(exchange, rate), 422, "INVALID_REQUEST", "rate") == f"rate: {message}."


@pytest.mark.parametrize(("rate", "shown"), [("1e-4", "0.0001"), (0, "0"), ("-0", "0"), (-1, "-1"), ("0.10", "0.1")])
def test_rate_is_taken_digit_by_digit(exchange: Exchange, rate: Any, shown: str) -> None:
    assert pay(exchange, rate).json["rate"] == shown


def test_other_payment_under_the_same_key_is_refused(exchange: Exchange) -> None:
    pay(exchange, "0.0001", key="k")
    for changed in ({"rate": "0.0002"}, {"rate": "0.0001", "timestamp": NOON}):
        assert_problem(pay(exchange, key="k", **changed), 409, "IDEMPOTENCY_KEY_REUSED")


def test_payment_that_waits_is_completed_by_the_drain_though_changes_of_rules_cannot_be(exchange: Exchange) -> None:
    assert pay(exchange, "0.0001").json["effective"]
    exchange.stores.redis.hdel("funding", "BTC-PERP")
    exchange.stores.postgres.execute("alter table instruments rename to elsewhere")
    try:
        with pytest.raises(PostgresUnavailableError):
            journal_drain_handler.handler(SCHEDULE, LambdaContext())
    finally:
        exchange.stores.postgres.execute("alter table elsewhere rename to instruments")
    assert [one["amount"] for one in exchange.get("/funding/1")["pending"]] == ["-5"]


def test_symbol_without_a_mark_is_refused(exchange: Exchange) -> None:
    detail = assert_problem(pay(exchange, "0.0001", symbol="ETH-PERP"), 400, "NO_MARK_PRICE")
    assert "post one to /mark-price first" in detail


def test_rate_beyond_the_cap_and_a_stale_mark_are_refused(exchange: Exchange) -> None:
    terms = terms_of(Instrument("BTC-PERP", funding_rate_cap=Decimal("0.0075"), mark_max_age_s=1, version=1))
    exchange.stores.redis.hset("instruments", "BTC-PERP", json.dumps(terms))
    detail = assert_problem(pay(exchange, "-0.0076"), 400, "FUNDING_RATE_CAP")
    assert detail.endswith("allows: from -0.0075 to 0.0075.")
    exchange.stores.redis.hset("mark_stamps", "BTC-PERP", "0")
    detail = assert_problem(pay(exchange, "0.0001"), 400, "STALE_MARK_PRICE")
    assert detail == "The mark price of BTC-PERP is stale; no funding is paid until a new one."


def test_moment_in_the_future_is_malformed(exchange: Exchange) -> None:
    ahead = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    detail = assert_problem(pay(exchange, "0.0001", timestamp=ahead), 422, "INVALID_REQUEST", "timestamp")
    assert "timestamp lies in the future" in detail
    assert exchange.get("/funding-rates")["rates"] == []


def test_lists_of_nothing_and_of_nobody(exchange: Exchange) -> None:
    assert exchange.get("/funding-rates") == {"rates": [], "next_cursor": None}
    assert exchange.get("/funding/1") == {"payments": [], "pending": [], "next_cursor": None}
    assert_problem(exchange.call("GET", "/funding/77"), 404, "UNKNOWN_ACCOUNT")
    assert_problem(exchange.call("GET", "/funding/1", query={"cursor": "e30"}), 400, "CURSOR_INVALID")
    assert_problem(exchange.call("GET", "/funding-rates", query={"cursor": "e30"}), 400, "CURSOR_INVALID")
