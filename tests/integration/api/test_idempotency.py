"""One execution for one Idempotency-Key, whatever is repeated, and what a repetition answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import journal_drain_handler
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, assert_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.api.exchange import Exchange, Reply

KEY = {"Idempotency-Key": "3f0a2a52-8c1e-4b57-9b1e-0d9f3f6f2b11"}
ORDER = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}
ROUTES = {
    "trade": ("/trade", ORDER, {"quantity": "0.2"}),
    "deposit": ("/accounts/1/deposits", {"amount": "100"}, {"amount": "101"}),
    "withdrawal": ("/accounts/1/withdrawals", {"amount": "100"}, {"amount": "101"}),
}
REPLAYED = "idempotent-replayed"
POSTGRES_TIMEOUT_S = 0.2


@pytest.fixture(autouse=True)
def _open_account(exchange: Exchange) -> None:
    exchange.restart(postgres_timeout_s=POSTGRES_TIMEOUT_S)
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")


@pytest.fixture
def slow_history(exchange: Exchange) -> Iterator[Any]:
    """Yield a function that ends it: until then PostgreSQL gives connections and takes no insertion in time."""
    with exchange.stores.connect() as connection:
        connection.autocommit = False
        connection.execute("lock table events in share mode")

        def end() -> None:
            # Statements that were given up by the engine still wait for the lock; they must not store what is left to
            # others.
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'"
            )
            connection.rollback()

        yield end
        connection.rollback()


def send(exchange: Exchange, route: str, **changes: str) -> Reply:
    path, body, _ = ROUTES[route]
    return exchange.call("POST", path, body | changes, headers=KEY)


@pytest.mark.parametrize("route", ROUTES)
def test_a_repetition_gets_the_same_answer_byte_for_byte_and_changes_nothing(exchange: Exchange, route: str) -> None:
    first = send(exchange, route)
    assert (first.status, REPLAYED in first.headers) == (200, False)
    # The answer stays that of the first execution even when the account has changed since.
    exchange.deposit(1, "7")
    before = exchange.stores.contents()

    second = send(exchange, route)

    assert (second.status, second.headers[REPLAYED]) == (200, "true")
    assert second.text == first.text
    assert exchange.stores.contents() == before


@pytest.mark.parametrize("route", ROUTES)
def test_a_key_with_another_body_is_409_and_changes_nothing(exchange: Exchange, route: str) -> None:
    assert send(exchange, route).status == 200
    before = exchange.stores.contents()
    assert_problem(send(exchange, route, **ROUTES[route][2]), 409, "IDEMPOTENCY_KEY_REUSED")
    assert exchange.stores.contents() == before


def test_a_key_with_another_operation_is_409(exchange: Exchange) -> None:
    assert send(exchange, "deposit").status == 200
    assert_problem(send(exchange, "withdrawal"), 409, "IDEMPOTENCY_KEY_REUSED")
    assert_problem(send(exchange, "trade"), 409, "IDEMPOTENCY_KEY_REUSED")


def test_the_same_request_in_another_spelling_is_the_same_request(exchange: Exchange) -> None:
    first = send(exchange, "trade")
    text = '{"price":50000.00,"quantity":1e-1,"side":"BUY","symbol":"BTC-PERP","account_id":"1"}'
    second = exchange.call("POST", "/trade", text, headers=KEY)
    assert (second.text, second.headers.get(REPLAYED)) == (first.text, "true")


def test_a_key_is_its_accounts_own(exchange: Exchange) -> None:
    exchange.deposit(2, "100000")
    first = send(exchange, "trade")
    other = exchange.call("POST", "/trade", ORDER | {"account_id": 2}, headers=KEY)
    assert (other.status, REPLAYED in other.headers) == (200, False)
    assert other.json["trade_id"] != first.json["trade_id"]


def test_a_key_of_a_refused_request_is_free_for_the_corrected_one(exchange: Exchange) -> None:
    assert_problem(send(exchange, "trade", quantity="1000"), 400, "INSUFFICIENT_MARGIN")
    assert send(exchange, "trade").status == 200


def test_without_a_key_every_request_is_executed(exchange: Exchange) -> None:
    for _ in range(2):
        assert exchange.call("POST", "/trade", ORDER).status == 200
    assert exchange.get("/positions/1")["positions"][0]["quantity"] == "0.2"


@pytest.mark.parametrize("route", ROUTES)
def test_pending_history_is_202_until_a_repetition_finds_it_stored(
    exchange: Exchange, slow_history: Any, route: str
) -> None:
    first = send(exchange, route)
    assert (first.status, REPLAYED in first.headers) == (202, False)
    again = send(exchange, route)
    assert (again.status, again.headers[REPLAYED], again.text) == (202, "true", first.text)
    assert exchange.stores.keys().keys() >= {"pending", "pending:1"}

    slow_history()

    last = send(exchange, route)
    assert (last.status, last.headers[REPLAYED], last.text) == (200, "true", first.text)
    assert exchange.stores.rows()["events"] == 2
    assert not [name for name in exchange.stores.keys() if name.startswith("pending")]  # noqa: SIM118 - not a dict


def test_what_is_pending_is_executed_and_the_drain_stores_it(exchange: Exchange, slow_history: Any) -> None:
    pending = exchange.call("POST", "/trade", ORDER)
    assert pending.status == 202
    assert exchange.get("/positions/1")["positions"][0]["quantity"] == "0.1"
    assert exchange.stores.rows()["trades"] == 0

    slow_history()

    drained = journal_drain_handler.handler(SCHEDULE, LambdaContext())
    assert (drained["stored"], drained["accounts"], drained["waiting_accounts"]) == (1, 1, 0)
    assert [trade["id"] for trade in exchange.get("/trades/1")["trades"]] == [pending.json["trade_id"]]


def test_the_next_event_of_the_account_stores_what_is_pending_before_it(exchange: Exchange, slow_history: Any) -> None:
    ids = [exchange.call("POST", "/trade", ORDER).json["trade_id"] for _ in range(2)]
    slow_history()
    ids.append(exchange.trade(1, "SELL", "0.05", "50000")["trade_id"])
    assert [trade["id"] for trade in exchange.get("/trades/1")["trades"]] == ids[::-1]
