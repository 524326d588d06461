"""Requests that are too many or too much: refused with what would be right, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from margin.http import BODY_BYTES_MAX
from tests.events import OPERATOR
from tests.integration.api.exchange import assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange

TRADE = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.01", "price": "50000"}
COUNTED: dict[str, tuple[str, str, Any]] = {
    "trade": ("POST", "/trade", TRADE),
    "preview": ("POST", "/trade/preview", TRADE),
    "deposit": ("POST", "/accounts/1/deposits", {"amount": "1"}),
    "withdrawal": ("POST", "/accounts/1/withdrawals", {"amount": "1"}),
    "contribution": ("POST", "/accounts/1/insurance-contributions", {"amount": "1"}),
    "positions": ("GET", "/positions/1", None),
    "funding": ("GET", "/funding/1", None),
    "mark price": ("POST", "/mark-price", {"symbol": "BTC-PERP", "price": "50000"}),
    "mark prices": ("POST", "/mark-prices", {"prices": [{"symbol": "BTC-PERP", "price": "50000"}]}),
}


@pytest.mark.parametrize("asked", COUNTED)
def test_too_many_requests_are_429_with_the_time_to_wait(exchange: Exchange, asked: str) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    exchange.restart(rate_limit_token_per_s=1, rate_limit_token_burst=3600)
    (seconds, _) = exchange.stores.redis.time()
    exchange.call(*COUNTED["positions"])
    (name,) = exchange.stores.redis.keys("rate:token:*")
    exchange.stores.redis.set(name, str((seconds + 3600) * 1_000_000))
    reply = exchange.call(*COUNTED[asked])
    detail = assert_problem(reply, 429, "RATE_LIMITED")
    assert detail == (
        "The limit of this token is 1 requests a second, and 3600 at once. "
        "This request was not looked at: send it again, with the same key."
    )
    assert reply.headers["retry-after"] == "1"
    other = exchange.call(*COUNTED[asked], claims=OPERATOR | {"sub": "another"})
    assert other.status == 200, other.text


def test_an_account_with_too_many_keys_is_429(exchange: Exchange) -> None:
    exchange.start(idempotency_keys_max=1)
    first = exchange.call("POST", "/accounts/1/deposits", {"amount": "1"}, headers={"Idempotency-Key": "one"})
    assert first.status == 200
    reply = exchange.call("POST", "/accounts/1/withdrawals", {"amount": "1"}, headers={"Idempotency-Key": "two"})
    assert_problem(reply, 429, "RATE_LIMITED")
    assert int(reply.headers["retry-after"]) > 86_000


def test_a_body_beyond_the_bound_is_413(exchange: Exchange) -> None:
    body = '{"amount": "1"' + " " * BODY_BYTES_MAX + "}"
    assert_problem(exchange.call("POST", "/accounts/1/deposits", body), 413, "BODY_TOO_LARGE")


def test_a_body_that_is_nested_too_deep_is_422(exchange: Exchange) -> None:
    body = '{"amount": ' + "[" * 100 + "]" * 100 + "}"
    assert "nested deeper than" in assert_problem(
        exchange.call("POST", "/accounts/1/deposits", body), 422, "INVALID_REQUEST", "body"
    )


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1e3", ""])
def test_a_page_beyond_the_bound_is_422(exchange: Exchange, limit: str) -> None:
    assert_problem(exchange.call("GET", "/trades/1", query={"limit": limit}), 422, "INVALID_REQUEST", "query.limit")


def test_an_account_holds_no_more_symbols_than_it_may(exchange: Exchange) -> None:
    exchange.deposit(1, "100000")
    for n in range(101):
        exchange.mark(f"S{n}", "1")
    for n in range(100):
        exchange.trade(1, "BUY", "1", "1", f"S{n}")
    reply = exchange.call("POST", "/trade", TRADE | {"symbol": "S100", "quantity": "1", "price": "1"})
    assert_problem(reply, 400, "LIMIT_EXCEEDED")
