"""Stores that are down, or not loaded, give a clear 503 from every route that needs them; the others go on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from margin_local.servers import ports
from tests.integration.api.exchange import assert_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.api.exchange import Exchange

ORDER = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}
STATE: dict[str, tuple[str, str, Any]] = {
    "positions": ("GET", "/positions/1", None),
    "preview": ("POST", "/trade/preview", ORDER),
    "mark price": ("POST", "/mark-price", {"symbol": "BTC-PERP", "price": "50000"}),
    "mark prices": ("POST", "/mark-prices", {"prices": [{"symbol": "BTC-PERP", "price": "50000"}]}),
    "marks": ("GET", "/mark-prices", None),
    "report": ("GET", "/margin-report", None),
}
HISTORY: dict[str, tuple[str, str, Any]] = {
    "trades": ("GET", "/trades/1", None),
    "liquidations": ("GET", "/liquidations", None),
    "insurance fund": ("GET", "/insurance-fund", None),
    "controls": ("GET", "/controls", None),
    "past marks": ("GET", "/mark-prices/BTC-PERP/history", None),
    "instruments": ("GET", "/instruments", None),
    "rules of a symbol": ("GET", "/instruments/BTC-PERP", None),
    "funding rates": ("GET", "/funding-rates", None),
}
BOTH: dict[str, tuple[str, str, Any]] = {
    "trade": ("POST", "/trade", ORDER),
    "deposit": ("POST", "/accounts/1/deposits", {"amount": "1"}),
    "withdrawal": ("POST", "/accounts/1/withdrawals", {"amount": "1"}),
    "contribution": ("POST", "/accounts/1/insurance-contributions", {"amount": "1"}),
    "funding of an account": ("GET", "/funding/1", None),
    "funding": ("POST", "/funding", {"symbol": "BTC-PERP", "rate": "0.0001"}),
    "instrument": ("PUT", "/instruments/BTC-PERP", {"tick_size": "0.5"}),
    "shocks": (
        "POST",
        "/risk/shocks",
        {"shocks": [{"name": "crash", "moves": [{"symbol": "BTC-PERP", "move": "-0.3"}]}]},
    ),
    "health": ("GET", "/health", None),
}


def refused(exchange: Exchange, request: tuple[str, str, Any], code: str) -> str:
    before = exchange.stores.contents()
    reply = exchange.call(*request)
    detail = assert_problem(reply, 503, code)
    assert int(reply.headers["retry-after"]) >= 1
    assert exchange.stores.contents() == before
    return detail


@pytest.fixture(autouse=True)
def _open_account(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")


@pytest.mark.parametrize("route", STATE | BOTH)
def test_without_redis_state_is_503(exchange: Exchange, route: str) -> None:
    exchange.restart(redis_port=ports.choose_port())
    assert "Redis" in refused(exchange, (STATE | BOTH)[route], "REDIS_UNAVAILABLE")


@pytest.mark.parametrize("route", HISTORY)
def test_without_redis_history_is_answered(exchange: Exchange, route: str) -> None:
    exchange.restart(redis_port=ports.choose_port())
    assert exchange.call(*HISTORY[route]).status == 200


@pytest.mark.parametrize("route", HISTORY | BOTH)
def test_without_postgres_history_is_503_and_nothing_is_executed(exchange: Exchange, route: str) -> None:
    exchange.restart(postgres_port=ports.choose_port())
    assert "PostgreSQL" in refused(exchange, (HISTORY | BOTH)[route], "POSTGRES_UNAVAILABLE")


@pytest.mark.parametrize("route", STATE)
def test_without_postgres_state_is_answered(exchange: Exchange, route: str) -> None:
    exchange.restart(postgres_port=ports.choose_port())
    assert exchange.call(*STATE[route]).status == 200


@pytest.mark.parametrize("kept_connection", [True, False])
@pytest.mark.parametrize("route", STATE | BOTH)
def test_an_emptied_redis_is_not_an_empty_exchange(exchange: Exchange, route: str, kept_connection: bool) -> None:
    if not kept_connection:
        exchange.restart()
    exchange.stores.redis.flushdb()
    refused(exchange, (STATE | BOTH)[route], "STATE_NOT_LOADED")


def test_health_names_both_stores_when_both_are_down(exchange: Exchange) -> None:
    exchange.restart(redis_port=ports.choose_port(), postgres_port=ports.choose_port())
    detail = refused(exchange, BOTH["health"], "REDIS_UNAVAILABLE")
    assert "Redis" in detail
    assert "PostgreSQL" in detail


@contextlib.contextmanager
def read_only_postgres(exchange: Exchange) -> Iterator[None]:
    """Go on with an engine whose connections are those to a replica."""
    name = exchange.settings.postgres_database
    exchange.stores.postgres.execute(f"alter database {name} set default_transaction_read_only = on")
    try:
        exchange.restart()
        yield
    finally:
        exchange.stores.postgres.execute(f"alter database {name} reset default_transaction_read_only")


def test_with_a_read_only_postgres_a_trade_is_refused_and_nothing_is_executed(exchange: Exchange) -> None:
    call = ("POST", "/trade", ORDER)
    with read_only_postgres(exchange):
        assert "read-only" in refused(exchange, call, "POSTGRES_UNAVAILABLE")
    exchange.restart()
    assert exchange.call(*call).status == 200
    assert exchange.stores.rows()["trades"] == 1


def test_health_names_a_postgres_that_is_read_only(exchange: Exchange) -> None:
    with read_only_postgres(exchange):
        assert "read-only" in refused(exchange, BOTH["health"], "POSTGRES_UNAVAILABLE")


@pytest.mark.parametrize("name", ["trade", "deposit", "withdrawal", "mark price", "mark prices"])
def test_with_a_redis_that_refuses_to_write_nothing_is_executed(exchange: Exchange, name: str) -> None:
    exchange.stores.redis.config_set("min-replicas-to-write", 1)
    try:
        assert "Redis" in refused(exchange, (STATE | BOTH)[name], "REDIS_UNAVAILABLE")
    finally:
        exchange.stores.redis.config_set("min-replicas-to-write", 0)
