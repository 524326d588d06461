"""Instruments through the API: given, seen, obeyed, refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import journal_drain_handler
from margin.domain.instrument import default_instrument
from margin.domain.instrument_terms import terms_of
from margin_local.servers import ports
from tests.events import LambdaContext
from tests.integration.api.exchange import SCHEDULE, assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange, Reply

PATH = "/instruments/BTC-PERP"
ONE_TIER = [{"notional_cap": None, "initial_rate": "0.1", "maintenance_rate": "0.05"}]
TERMS: dict[str, Any] = {
    "tick_size": "0.5",
    "lot_size": "0.001",
    "min_quantity": "0.002",
    "max_quantity": "100",
    "position_limit": "500",
    "tiers": [
        {"notional_cap": "50000", "initial_rate": "0.01", "maintenance_rate": "0.004"},
        {"notional_cap": "250000.5", "initial_rate": "0.02", "maintenance_rate": "0.01"},
        {"notional_cap": None, "initial_rate": "0.1", "maintenance_rate": "0.05"},
    ],
    "taker_fee": "0.0005",
    "maker_fee": "-0.0001",
    "liquidation_fee_cap": "0.003",
    "price_band": "0.05",
    "mark_max_age_s": 60,
    "mark_jump_max": "0.1",
    "funding_rate_cap": "0.0075",
    "status": "active",
}
AMOUNTS = [("0", "0"), ("500", "300"), ("20500.04", "10300.02")]


def put(exchange: Exchange, path: str = PATH, **terms: Any) -> Reply:
    return exchange.call("PUT", path, terms)


def accepted(exchange: Exchange, path: str = PATH, **terms: Any) -> Any:
    reply = put(exchange, path, **terms)
    assert reply.status == 200, reply.text
    return reply.json


def as_answered(terms: dict[str, Any], amounts: list[tuple[str, str]]) -> dict[str, Any]:
    tiers = [
        {**tier, "initial_amount": initial, "maintenance_amount": maintenance}
        for tier, (initial, maintenance) in zip(terms["tiers"], amounts, strict=True)
    ]
    return {**terms, "tiers": tiers}


def test_terms_are_given_answered_kept_and_listed(exchange: Exchange) -> None:
    answer = accepted(exchange, **TERMS)
    changed_at = answer.pop("changed_at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", changed_at)
    kept = {"symbol": "BTC-PERP", "version": 1, "changed_by": "operator", **as_answered(TERMS, AMOUNTS)}
    assert answer == {**kept, "effective": True}

    read = exchange.get(PATH)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", read.pop("effective_at"))
    assert read == {**kept, "changed_at": changed_at, "pending": None}
    listed = exchange.get("/instruments")
    assert [one["version"] for one in listed["instruments"]] == [1]
    assert listed["next_cursor"] is None


def test_symbol_that_was_never_configured_has_the_default_rules(exchange: Exchange) -> None:
    read = exchange.get("/instruments/DOGE-PERP")
    terms = terms_of(default_instrument("DOGE-PERP"))
    assert read == {
        **as_answered(terms, [("0", "0")]),
        **dict.fromkeys(("changed_at", "changed_by", "effective_at", "pending")),
    }
    assert exchange.get("/instruments") == {"instruments": [], "next_cursor": None}


def test_what_is_left_out_takes_its_default_and_not_what_it_was(exchange: Exchange) -> None:
    accepted(exchange, **TERMS)
    answer = accepted(exchange, tick_size=1)
    defaults = terms_of(default_instrument("BTC-PERP"))
    assert answer["version"] == 2
    assert {name: answer[name] for name in TERMS if name != "tiers"} == {
        **{name: defaults[name] for name in TERMS if name != "tiers"},
        "tick_size": "1",
    }
    assert [tier["initial_rate"] for tier in answer["tiers"]] == ["0.2"]


def test_same_terms_again_write_nothing(exchange: Exchange) -> None:
    first = accepted(exchange, **TERMS)
    before = exchange.stores.contents()
    assert accepted(exchange, **{**TERMS, "tick_size": 0.50}) == first
    assert exchange.stores.contents() == before


def test_default_terms_of_a_symbol_that_was_never_configured_write_nothing(exchange: Exchange) -> None:
    before = exchange.stores.contents()
    answer = accepted(exchange)
    assert (answer["version"], answer["effective"], answer["changed_at"]) == (0, True, None)
    assert exchange.stores.contents() == before


def test_positions_and_trades_obey_new_terms(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "100000")
    exchange.trade(1, "BUY", "1", "50000")
    accepted(exchange, **TERMS)
    read = exchange.get("/positions/1")
    # 50000 * 0.01, and 50000 * 0.004: the first bracket ends there.
    assert (read["initial_margin_required"], read["maintenance_margin_required"]) == ("500", "200")
    trade = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.01", "price": "50000.25"}
    assert_problem(exchange.call("POST", "/trade", trade), 400, "PRICE_OFF_TICK")
    assert exchange.trade(1, "BUY", "1", "50000")["fee"] == "25"


def test_holders_whom_new_terms_make_liquidatable_are_liquidated(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(1, "15000")
    exchange.deposit(2, "100000")
    exchange.trade(1, "BUY", "1", "50000")
    exchange.trade(2, "SELL", "1", "50000")
    strict = [{"notional_cap": None, "initial_rate": "0.5", "maintenance_rate": "0.4"}]
    accepted(exchange, tiers=strict)
    assert [row["account_id"] for row in exchange.get("/liquidations")["liquidations"]] == [1]
    assert exchange.get("/positions/2")["maintenance_margin_required"] == "20000"


_LEAST = "the least that min_quantity and lot_size allow"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tick_size", "0", "greater than 0"),
        ("tick_size", "0.000000001", "at most 8 decimals"),
        ("lot_size", -1, "greater than 0"),
        ("min_quantity", True, "number"),
        ("max_quantity", "1e12", "less than 1000000000000"),
        ("position_limit", "x", "number"),
        ("taker_fee", "-0.1", "at least 0 and less than 1"),
        ("taker_fee", 1, "at least 0 and less than 1"),
        ("maker_fee", "-1", "greater than -1 and less than 1"),
        ("maker_fee", "0.000000001", "at most 8 decimals"),
        ("liquidation_fee_cap", "NaN", "number"),
        ("price_band", "0", "greater than 0 and at most 1"),
        ("price_band", "1.1", "greater than 0 and at most 1"),
        ("mark_max_age_s", 0, "greater than or equal to 1"),
        ("mark_max_age_s", 1.5, "integer"),
        ("mark_max_age_s", "60", "integer"),
        ("mark_jump_max", 0, "greater than 0"),
        ("funding_rate_cap", 2, "at most 1"),
        ("status", "open", "active"),
        ("tiers", [], "at least 1"),
        ("tiers", None, "array"),
        ("tiers.0.initial_rate", "1.5", "greater than 0 and at most 1"),
        ("tiers.0.maintenance_rate", None, "number"),
        ("tiers.0.notional_cap", "1e24", "less than 1000000000000000000000000"),
        ("tiers.0.amount", "1", "is not a field of this request"),
        ("version", 3, "is not a field of this request"),
        ("symbol", "BTC-PERP", "is not a field of this request"),
    ],
)
def test_malformed_field_is_refused_by_name_and_nothing_is_written(
    exchange: Exchange, field: str, value: Any, message: str
) -> None:
    terms: dict[str, Any] = {}
    if field.startswith("tiers."):
        terms = {"tiers": [{**ONE_TIER[0], field.removeprefix("tiers.0."): value}]}
    else:
        terms = {field: value}
    before = exchange.stores.contents()
    detail = assert_problem(put(exchange, **terms), 422, "INVALID_REQUEST", field)
    assert message in detail
    assert exchange.stores.contents() == before


CAPPED = {"notional_cap": "1000", "initial_rate": "0.1", "maintenance_rate": "0.05"}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"tiers": [CAPPED]}, "the last tier, and only it, has no notional cap"),
        ({"tiers": [*ONE_TIER, *ONE_TIER]}, "the last tier, and only it, has no notional cap"),
        ({"tiers": [CAPPED, CAPPED, *ONE_TIER]}, "notional caps must rise from tier to tier"),
        (
            {"tiers": [{**CAPPED, "initial_rate": "0.2"}, *ONE_TIER]},
            "margin rates must not fall from tier to tier",
        ),
        (
            {"tiers": [{**ONE_TIER[0], "maintenance_rate": "0.1"}]},
            "margin rates must satisfy 0 < maintenance < initial <= 1",
        ),
        ({"liquidation_fee_cap": "0.1"}, "liquidation_fee_cap must be at least 0, below every maintenance rate"),
        ({"maker_fee": "-0.0001"}, "maker_fee must be at least -taker_fee"),
        ({"max_quantity": "0.5", "min_quantity": "1"}, f"max_quantity must be at least 1, {_LEAST}"),
        ({"position_limit": "0.5", "lot_size": "1"}, f"position_limit must be at least 1, {_LEAST}"),
    ],
)
def test_terms_that_contradict_each_other_are_refused_with_the_rule(
    exchange: Exchange, terms: dict[str, Any], message: str
) -> None:
    before = exchange.stores.contents()
    assert message in assert_problem(put(exchange, **terms), 400, "INVALID_INSTRUMENT")
    assert exchange.stores.contents() == before


@pytest.mark.parametrize("symbol", ["btc", "A" * 33, "%20"])
def test_malformed_symbol_is_refused(exchange: Exchange, symbol: str) -> None:
    assert_problem(put(exchange, f"/instruments/{symbol}"), 422, "INVALID_REQUEST", "path.symbol")
    assert_problem(exchange.call("GET", f"/instruments/{symbol}"), 422, "INVALID_REQUEST", "path.symbol")


def test_what_trades_cannot_be_closed(exchange: Exchange) -> None:
    detail = assert_problem(put(exchange, status="closed"), 400, "INSTRUMENT_NOT_CLOSABLE")
    assert detail == "BTC-PERP is active; make it reduce-only or settling before you close it."


def test_what_is_held_cannot_be_closed_until_nobody_holds_it(exchange: Exchange) -> None:
    exchange.mark("BTC-PERP", "50000")
    for account_id, side in ((1, "BUY"), (2, "SELL")):
        exchange.deposit(account_id, "100000")
        exchange.trade(account_id, side, "1", "50000")
    accepted(exchange, status="settling")
    detail = assert_problem(put(exchange, status="closed"), 400, "INSTRUMENT_NOT_CLOSABLE")
    assert detail == "2 accounts hold BTC-PERP; it can be closed when none does."
    exchange.trade(1, "SELL", "1", "50000")
    exchange.trade(2, "BUY", "1", "50000")
    assert accepted(exchange, status="closed")["status"] == "closed"
    order = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "1", "price": "50000"}
    assert_problem(exchange.call("POST", "/trade", order), 400, "INSTRUMENT_STATUS")


def test_pages_have_each_symbol_once(exchange: Exchange) -> None:
    for number in range(1, 6):
        accepted(exchange, f"/instruments/X{number}", tick_size="0.1")
    symbols, query = [], {}
    while True:
        page = exchange.get("/instruments", limit=2, **query)
        symbols += [one["symbol"] for one in page["instruments"]]
        if page["next_cursor"] is None:
            break
        query = {"cursor": page["next_cursor"]}
    assert symbols == [f"X{number}" for number in range(1, 6)]


def test_cursor_of_another_endpoint_is_refused(exchange: Exchange) -> None:
    for account_id in (1, 2):
        exchange.call("PUT", f"/controls/accounts/{account_id}", {"state": "paused", "reason": "a test"})
    cursor = exchange.get("/controls", limit=1)["next_cursor"]
    reply = exchange.call("GET", "/instruments", query={"cursor": cursor})
    assert "was not made by this endpoint" in assert_problem(reply, 400, "CURSOR_INVALID")


def test_without_redis_nothing_is_changed(exchange: Exchange) -> None:
    before = exchange.stores.contents()
    exchange.restart(redis_port=ports.choose_port())
    assert_problem(put(exchange, tick_size="0.1"), 503, "REDIS_UNAVAILABLE")
    assert exchange.stores.contents() == before


def test_without_postgres_nothing_is_changed(exchange: Exchange) -> None:
    before = exchange.stores.contents()
    exchange.restart(postgres_port=ports.choose_port())
    assert_problem(put(exchange, tick_size="0.1"), 503, "POSTGRES_UNAVAILABLE")
    assert_problem(exchange.call("GET", PATH), 503, "POSTGRES_UNAVAILABLE")
    assert exchange.stores.contents() == before


def test_with_a_postgres_that_takes_no_writes_the_outcome_is_unknown(exchange: Exchange) -> None:
    with exchange.stores.connect() as other:
        other.execute("begin")
        other.execute("lock table instruments in share mode")
        reply = put(exchange, tick_size="0.1")
        other.execute("rollback")
    assert "Send the terms again" in assert_problem(reply, 503, "OUTCOME_UNKNOWN")
    assert accepted(exchange, tick_size="0.1")["version"] == 1


def test_change_that_was_left_behind_is_pending_until_the_schedule_completes_it(exchange: Exchange) -> None:
    accepted(exchange, **TERMS)
    # As after a death before the last step.
    with exchange.stores.connect() as other:
        other.execute("update instruments set effective_at = null")
    read = exchange.get(PATH)
    assert (read["version"], read["effective_at"]) == (0, None)
    assert (read["pending"]["version"], read["pending"]["tick_size"], read["pending"]["changed_by"]) == (
        *(1, "0.5"),
        "operator",
    )
    journal_drain_handler.handler(SCHEDULE, LambdaContext())
    read = exchange.get(PATH)
    assert (read["version"], read["pending"]) == (1, None)
    assert read["effective_at"] is not None


def test_symbols_have_a_bound(exchange: Exchange) -> None:
    with exchange.stores.connect() as other:
        # What is inserted is chained by a trigger.
        other.execute("set session_replication_role = origin")
        other.execute(
            "insert into instruments (symbol, version, terms, effective_at)"
            " select 'S' || n, 1, %s::jsonb, now() from generate_series(1, 1000) as n",
            [json.dumps({**terms_of(default_instrument("S")), "version": 1})],
        )
    detail = assert_problem(put(exchange, tick_size="0.1"), 400, "LIMIT_EXCEEDED")
    assert detail == "There are 1000 configured symbols already; that is the most."
    assert accepted(exchange, "/instruments/S7", tick_size="0.1")["version"] == 2


def test_another_change_under_way_is_409(exchange: Exchange) -> None:
    accepted(exchange, **TERMS)
    with exchange.stores.connect() as other:
        other.execute("update instruments set effective_at = null")
    # Redis refuses to work on what it takes for something else: the change cannot be completed.
    exchange.stores.redis.set("instrument_progress", "x")
    detail = assert_problem(put(exchange, tick_size="0.1"), 409, "INSTRUMENT_CHANGE_UNDER_WAY")
    assert detail == (
        "An earlier change of BTC-PERP is not in force everywhere yet; it will be within minutes. Try again."
    )
    again = put(exchange, **TERMS)
    assert (again.status, again.json["version"], again.json["effective"]) == (202, 1, False)


def test_state_that_is_not_loaded_is_503_and_nothing_is_changed(exchange: Exchange) -> None:
    exchange.stores.redis.delete("marker")
    before = exchange.stores.contents()
    assert_problem(put(exchange, tick_size="0.1"), 503, "STATE_NOT_LOADED")
    assert exchange.stores.contents() == before
