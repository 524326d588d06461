"""Rules of an instrument through the handlers: a code of its own for each, and a sentence that says what is allowed."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.instrument import Instrument, InstrumentStatus
from margin.domain.instrument_terms import terms_of
from tests.integration.api.exchange import assert_problem

if TYPE_CHECKING:
    from tests.integration.api.exchange import Exchange, Reply

BTC = "BTC-PERP"
ORDER = {"account_id": 1, "symbol": BTC, "side": "BUY", "quantity": "1", "price": "50000"}
FEES = {"taker_fee": Decimal("0.0005"), "maker_fee": Decimal("-0.0001")}


def configure(exchange: Exchange, **terms: Any) -> None:
    configured = json.dumps(terms_of(Instrument(BTC, **terms, version=1)))
    exchange.stores.redis.hset("instruments", BTC, configured)


def trade(exchange: Exchange, **changes: Any) -> Reply:
    return exchange.call("POST", "/trade", ORDER | changes)


@pytest.fixture
def long(exchange: Exchange) -> Exchange:
    """Return an engine whose account 1 is 1 BTC long at 50000 and has 100000."""
    exchange.mark(BTC, "50000")
    exchange.deposit(1, "100000")
    exchange.trade(1, "BUY", "1", "50000")
    return exchange


@pytest.mark.parametrize(
    ("terms", "changes", "code", "detail"),
    [
        (
            {"tick_size": Decimal("0.5")},
            {"price": "50000.3"},
            "PRICE_OFF_TICK",
            "Price 50000.3 is no multiple of the tick size 0.5; nearest allowed: 50000 and 50000.5.",
        ),
        (
            {"lot_size": Decimal("0.001")},
            {"quantity": "0.0015"},
            "QUANTITY_OFF_LOT",
            "Quantity 0.0015 is no multiple of the lot size 0.001; nearest allowed: 0.001 and 0.002.",
        ),
        (
            {"min_quantity": Decimal("0.01")},
            {"quantity": "0.001"},
            "QUANTITY_TOO_SMALL",
            "Quantity 0.001 is too small: at least 0.01 is allowed.",
        ),
        (
            {"max_quantity": Decimal(5)},
            {"quantity": "6"},
            "QUANTITY_TOO_LARGE",
            "Quantity 6 is too large for one trade: a BUY of at most 5 is allowed.",
        ),
        (
            {"position_limit": Decimal("1.5")},
            {},
            "POSITION_LIMIT",
            "The position would be 2 long and may be at most 1.5 either way: a BUY of at most 0.5 is allowed.",
        ),
        (
            {},
            {"reduce_only": True},
            "REDUCE_ONLY",
            "The position is 1 long: with reduce_only a SELL of at most 1 is allowed.",
        ),
        (
            {"status": InstrumentStatus.REDUCE_ONLY},
            {},
            "INSTRUMENT_STATUS",
            "BTC-PERP is reduce-only: only a SELL of at most 1 is accepted.",
        ),
        (
            {"status": InstrumentStatus.SETTLING},
            {"side": "SELL", "price": "50001"},
            "INSTRUMENT_STATUS",
            "BTC-PERP is settling: trades are accepted at exactly the mark price 50000.",
        ),
        (
            {"status": InstrumentStatus.CLOSED},
            {"side": "BUY"},
            "INSTRUMENT_STATUS",
            "BTC-PERP is closed: only a SELL of at most 1 is accepted.",
        ),
        (
            {"tick_size": Decimal(7), "price_band": Decimal("0.01")},
            {"price": "50505"},
            "OUTSIDE_PRICE_BAND",
            "Price 50505 is too far from the mark price 50000; allowed is 49504 to 50498.",
        ),
    ],
)
def test_order_that_a_rule_refuses_is_400_and_writes_nothing(
    long: Exchange, terms: dict[str, Any], changes: dict[str, Any], code: str, detail: str
) -> None:
    configure(long, **terms)
    before = long.stores.contents()
    assert assert_problem(trade(long, **changes), 400, code) == detail
    assert long.stores.contents() == before


@pytest.mark.parametrize(
    ("terms", "changes"),
    [
        ({"tick_size": Decimal("0.5")}, {"price": "50000.5"}),
        ({"lot_size": Decimal("0.001")}, {"quantity": "0.002"}),
        ({"lot_size": Decimal("0.3")}, {"side": "SELL"}),
        ({"min_quantity": Decimal(2)}, {"side": "SELL"}),
        ({"position_limit": Decimal("1.5")}, {"quantity": "0.5"}),
        ({"position_limit": Decimal("0.5")}, {"side": "SELL", "quantity": "0.1"}),
        ({}, {"reduce_only": True, "side": "SELL"}),
        ({"status": InstrumentStatus.REDUCE_ONLY}, {"side": "SELL", "quantity": "0.5"}),
        ({"status": InstrumentStatus.SETTLING, "tick_size": Decimal(7)}, {"side": "SELL"}),
    ],
)
def test_order_that_the_rules_let_through_is_executed(
    long: Exchange, terms: dict[str, Any], changes: dict[str, Any]
) -> None:
    configure(long, **terms)
    assert trade(long, **changes).status == 200


def test_fees_and_rebates_are_answered_and_in_history_and_ledger(long: Exchange) -> None:
    configure(long, **FEES)
    taken = trade(long).json
    made = trade(long, side="SELL", reduce_only=True, liquidity="MAKER", client_order_id="mine").json
    assert (taken["fee"], taken["liquidity"], taken["client_order_id"]) == ("25", "TAKER", None)
    assert (made["fee"], made["liquidity"], made["client_order_id"]) == ("-5", "MAKER", "mine")
    assert (taken["reduce_only"], made["reduce_only"], made["balance"]) == (False, True, "99980")
    trades = long.get("/trades/1")["trades"]
    assert [(row["fee"], row["reduce_only"], row["liquidity"], row["client_order_id"]) for row in trades] == [
        ("-5", True, "MAKER", "mine"),
        ("25", False, "TAKER", None),
        ("0", False, "TAKER", None),
    ]
    booked = long.stores.postgres.execute("select ledger_account, sum(amount) from ledger_lines group by 1")
    assert dict(booked.fetchall()) == {"cash": 99980, "external": -100000, "fees": 20}
