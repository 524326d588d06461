"""Who, what, when and from where of every change that the API makes, in history; and that no route is left out."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from margin import runtime
from margin.lambda_entry import LOOP
from margin_local.application import make_application
from tests.events import OPERATOR

if TYPE_CHECKING:
    from margin.services.verification import Break
    from tests.integration.api.exchange import Exchange

WHO = {**OPERATOR, "sub": "5f0c-the-subject"}
FROM = "198.51.100.9"
INSTRUMENT = {
    "tiers": [{"notional_cap": None, "initial_rate": "0.1", "maintenance_rate": "0.05"}],
    "mark_jump_max": "0.5",
}
TRADE = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.1", "price": "50000"}


@dataclasses.dataclass(frozen=True)
class Change:
    """A request that changes something, and the row of history that has to say so: what, and when, are its columns."""

    method: str
    path: str
    body: dict[str, Any]
    table: str
    what: dict[str, str]
    at: str
    drains: bool = False

    @property
    def route(self) -> tuple[str, str]:
        parts = self.path.split("/")
        named = {"BTC-PERP": "{symbol}", "1": "{account_id}"}
        return self.method, "/".join(named.get(part, part) for part in parts)


EVENT = {"table": "events", "at": "occurred_at"}
CONTROL = {"table": "control_changes", "at": "changed_at"}
SAMPLE = {"table": "mark_price_samples", "at": "at", "drains": True}
PAUSE = {"state": "reduce-only", "reason": "a test"}
CHANGES = [
    Change("POST", "/trade", TRADE, what={"type": "TRADE", "account_id": "1"}, **EVENT),
    Change("POST", "/accounts/1/deposits", {"amount": "5"}, what={"type": "DEPOSIT", "account_id": "1"}, **EVENT),
    Change("POST", "/accounts/1/withdrawals", {"amount": "5"}, what={"type": "WITHDRAWAL", "account_id": "1"}, **EVENT),
    Change(
        *("POST", "/accounts/1/insurance-contributions", {"amount": "5"}),
        what={"type": "CONTRIBUTION", "account_id": "1"},
        **EVENT,
    ),
    Change("PUT", "/controls/engine", PAUSE, what={"name": "engine", "state": "reduce-only"}, **CONTROL),
    Change("PUT", "/controls/symbols/BTC-PERP", PAUSE, what={"name": "symbol:BTC-PERP"}, **CONTROL),
    Change("PUT", "/controls/accounts/1", PAUSE, what={"name": "account:1"}, **CONTROL),
    Change(
        *("PUT", "/instruments/BTC-PERP", INSTRUMENT, "instruments"),
        what={"symbol": "BTC-PERP", "version": "1"},
        at="changed_at",
    ),
    Change(
        *("POST", "/funding", {"symbol": "BTC-PERP", "rate": "0.0001"}, "funding_rates"),
        what={"symbol": "BTC-PERP", "n": "1", "rate": "0.0001"},
        at="occurred_at",
    ),
    Change(
        *("POST", "/mark-price", {"symbol": "BTC-PERP", "price": "50001"}),
        what={"symbol": "BTC-PERP", "price": "50001"},
        **SAMPLE,
    ),
    Change(
        *("POST", "/mark-prices", {"prices": [{"symbol": "BTC-PERP", "price": "50002"}]}),
        what={"symbol": "BTC-PERP", "price": "50002"},
        **SAMPLE,
    ),
]
READ_ONLY = {("POST", "/trade/preview"), ("POST", "/risk/shocks")}
"""They ask with a body, and change nothing."""


def test_every_route_that_changes_something_is_in_this_table() -> None:
    changing = {
        (method, route.path)
        for route in make_application().state.routes
        for method in route.methods
        if method not in {"GET", "HEAD"}
    }
    assert {change.route for change in CHANGES} == changing - READ_ONLY


@pytest.fixture
def traded(exchange: Exchange) -> Exchange:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    return exchange


def verify(**wanted: Any) -> list[Break]:
    found: list[Break] = []
    LOOP.run_until_complete(runtime.engine().verification.verify(found=found.append, **wanted))
    return found


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.method} {change.path}")
def test_change_says_in_history_who_what_when_and_from_where(traded: Exchange, change: Change) -> None:
    before = dt.datetime.now(dt.UTC)
    reply = traded.call(change.method, change.path, change.body, claims=WHO, source_ip=FROM)
    assert reply.status == 200, reply.text
    if change.drains:
        LOOP.run_until_complete(runtime.engine().mark_records.save())
    wanted = " and ".join(f"{column}::text = %({column})s" for column in change.what)
    rows = traded.stores.postgres.execute(
        f"select subject, source_ip, {change.at} from {change.table} where {wanted}",  # noqa: S608 - of this table
        change.what,
    ).fetchall()
    ((subject, source_ip, at),) = [row for row in rows if row[0] == WHO["sub"]]
    assert (subject, source_ip) == (WHO["sub"], FROM)
    # The stores have clocks of their own, on this machine the same one.
    slack = dt.timedelta(seconds=1)
    assert before - slack <= at <= dt.datetime.now(dt.UTC) + slack
    assert verify() == []


def test_what_a_token_did_to_an_account_is_verified_and_what_is_changed_afterwards_found(traded: Exchange) -> None:
    assert traded.call("POST", "/trade", TRADE, claims=WHO, source_ip=FROM).status == 200
    assert verify(account_id=1) == []
    traded.stores.postgres.execute("update events set subject = 'somebody else' where type = 'TRADE'")
    (one,) = verify(account_id=1)
    assert (one.account_id, one.n, one.expected, one.found) == (1, 2, WHO["sub"], "somebody else")
    assert one.what == "column subject of event 2 is not what its body says"
