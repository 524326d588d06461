"""Pause switches through the API: set, seen, obeyed, lifted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from margin_local.servers import ports
from tests.integration.api.exchange import assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange, Reply

ORDER = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}
SELL = {**ORDER, "side": "SELL"}
PATHS = {
    "/controls/engine": "engine",
    "/controls/symbols/BTC-PERP": "symbol:BTC-PERP",
    "/controls/accounts/1": "account:1",
}
ANSWER_FIELDS = {"name", "state", "reason", "change_id", "changed_at", "effective"}


def put(exchange: Exchange, path: str, state: str, reason: str = "a test") -> Reply:
    return exchange.call("PUT", path, {"state": state, "reason": reason})


@pytest.fixture(autouse=True)
def _open_account(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    exchange.trade(1, "BUY", "0.2", "50000")


@pytest.mark.parametrize("path", PATHS)
def test_a_switch_is_set_seen_obeyed_and_lifted(exchange: Exchange, path: str) -> None:
    reply = put(exchange, path, "paused", "the oracle sends wrong prices")
    assert reply.status == 200, reply.text
    answer = reply.json
    assert set(answer) == ANSWER_FIELDS
    assert (answer["name"], answer["state"], answer["effective"]) == (PATHS[path], "paused", True)
    assert answer["reason"] == "the oracle sends wrong prices"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answer["changed_at"])

    listed = exchange.get("/controls")
    del answer["effective"]
    assert listed == {"controls": [{**answer, "changed_by": "operator"}], "next_cursor": None}

    for order in (ORDER, SELL):
        detail = assert_problem(exchange.call("POST", "/trade", order), 400, "NOT_ACTIVE")
        assert PATHS[path] in detail
    withdrawal = exchange.call("POST", "/accounts/1/withdrawals", {"amount": "1"})
    assert PATHS[path] in assert_problem(withdrawal, 400, "NOT_ACTIVE")
    exchange.deposit(1, "1")

    assert put(exchange, path, "active").json["state"] == "active"
    assert exchange.get("/controls") == {"controls": [], "next_cursor": None}
    assert exchange.call("POST", "/trade", ORDER).status == 200


@pytest.mark.parametrize("path", PATHS)
def test_reduce_only_accepts_what_reduces_and_withdrawals(exchange: Exchange, path: str) -> None:
    assert put(exchange, path, "reduce-only").status == 200
    detail = assert_problem(exchange.call("POST", "/trade", ORDER), 400, "NOT_ACTIVE")
    assert f"{PATHS[path]} is reduce-only" in detail
    assert exchange.call("POST", "/trade", SELL).status == 200
    assert exchange.call("POST", "/accounts/1/withdrawals", {"amount": "1"}).status == 200


def test_a_price_of_a_paused_symbol_liquidates_nobody_until_it_goes_on(exchange: Exchange) -> None:
    exchange.deposit(2, "15000")
    exchange.trade(2, "BUY", "1", "50000")
    put(exchange, "/controls/symbols/BTC-PERP", "paused")
    assert exchange.mark("BTC-PERP", "36000")["at_risk"] == 1
    assert exchange.get("/liquidations")["liquidations"] == []
    put(exchange, "/controls/symbols/BTC-PERP", "active")
    exchange.mark("BTC-PERP", "36000")
    assert [row["account_id"] for row in exchange.get("/liquidations")["liquidations"]] == [2]


def test_a_retry_of_an_executed_trade_is_answered_although_trading_is_paused(exchange: Exchange) -> None:
    first = exchange.call("POST", "/trade", ORDER, headers={"Idempotency-Key": "mine"})
    put(exchange, "/controls/engine", "paused")
    again = exchange.call("POST", "/trade", ORDER, headers={"Idempotency-Key": "mine"})
    assert (again.status, again.text) == (200, first.text)


def test_pages_have_each_switch_once(exchange: Exchange) -> None:
    for account_id in range(1, 6):
        put(exchange, f"/controls/accounts/{account_id}", "paused")
    names, query = [], {}
    while True:
        page = exchange.get("/controls", limit=2, **query)
        names += [control["name"] for control in page["controls"]]
        if page["next_cursor"] is None:
            break
        query = {"cursor": page["next_cursor"]}
    assert names == [f"account:{account_id}" for account_id in range(1, 6)]


def test_a_switch_can_be_set_for_what_does_not_exist_yet(exchange: Exchange) -> None:
    put(exchange, "/controls/accounts/9", "paused")
    exchange.deposit(9, "10")
    assert_problem(exchange.call("POST", "/accounts/9/withdrawals", {"amount": "1"}), 400, "NOT_ACTIVE")


def test_without_redis_it_is_202_and_in_history(exchange: Exchange) -> None:
    exchange.restart(redis_port=ports.choose_port())
    reply = put(exchange, "/controls/engine", "paused")
    assert (reply.status, reply.json["effective"]) == (202, False)
    assert [control["name"] for control in exchange.get("/controls")["controls"]] == ["engine"]


def test_without_postgres_it_is_503_and_nothing_is_set(exchange: Exchange) -> None:
    before = exchange.stores.contents()
    exchange.restart(postgres_port=ports.choose_port())
    assert_problem(put(exchange, "/controls/engine", "paused"), 503, "POSTGRES_UNAVAILABLE")
    assert exchange.stores.contents() == before


def test_with_a_postgres_that_takes_no_writes_the_outcome_is_unknown(exchange: Exchange) -> None:
    with exchange.stores.connect() as other:
        other.execute("begin")
        other.execute("lock table control_changes in access exclusive mode")
        reply = put(exchange, "/controls/engine", "paused")
        other.execute("rollback")
    assert "Set the switch again" in assert_problem(reply, 503, "OUTCOME_UNKNOWN")
    assert put(exchange, "/controls/engine", "paused").status == 200


@pytest.mark.parametrize("opened", [True, False])
def test_a_switch_is_set_although_the_state_is_not_loaded(exchange: Exchange, opened: bool) -> None:
    if not opened:
        exchange.restart()
    exchange.stores.redis.delete("marker")
    assert put(exchange, "/controls/engine", "paused").status == 200
    assert exchange.stores.redis.hgetall("controls") == {b"engine": b"paused"}
