"""Every digit that goes in comes out: account ids and amounts, as numbers and as strings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.api.exchange import Exchange

DIGITS = "123456789.12345678"
ACCOUNT = 2**63 - 1


@pytest.mark.parametrize("text", [DIGITS, f'"{DIGITS}"', "12345678912345678e-8", f'"{DIGITS}00"'])
def test_an_amount_keeps_all_its_digits(exchange: Exchange, text: str) -> None:
    reply = exchange.call("POST", "/accounts/1/deposits", f'{{"amount": {text}}}')
    assert (reply.status, reply.json["balance"], reply.json["equity"]) == (200, DIGITS, DIGITS)
    assert exchange.stores.redis.hget("balances", "1") == DIGITS.encode()
    row = exchange.stores.postgres.execute("select balance::text from accounts").fetchone()
    assert row == (DIGITS,)
    reply = exchange.call("POST", "/accounts/1/withdrawals", f'{{"amount": {text}}}')
    assert (reply.status, reply.json["balance"]) == (200, "0")


def test_amounts_that_doubles_cannot_hold_add_up_exactly(exchange: Exchange) -> None:
    for text in ("999999999999.99999999", "0.00000001", '"0.00000002"'):
        reply = exchange.call("POST", "/accounts/1/deposits", f'{{"amount": {text}}}')
    assert reply.json["balance"] == "1000000000000.00000002"


@pytest.mark.parametrize("text", [DIGITS, f'"{DIGITS}"'])
def test_a_price_keeps_all_its_digits(exchange: Exchange, text: str) -> None:
    reply = exchange.call("POST", "/mark-price", f'{{"symbol": "X", "price": {text}}}')
    assert (reply.status, reply.json["price"]) == (200, DIGITS)
    exchange.deposit(1, "999999999999")
    order = f'{{"account_id": 1, "symbol": "X", "side": "SELL", "quantity": 0.00000003, "price": {text}}}'
    traded = exchange.call("POST", "/trade", order).json
    assert (traded["price"], traded["quantity"], traded["notional"]) == (DIGITS, "0.00000003", "3.7037036737037034")
    (trade,) = exchange.get("/trades/1")["trades"]
    assert (trade["price"], trade["quantity"], trade["notional"]) == (DIGITS, "0.00000003", "3.7037036737037034")
    (position,) = exchange.get("/positions/1")["positions"]
    assert (position["entry_price"], position["mark_price"]) == (DIGITS, DIGITS)
    assert position["maintenance_margin"] == "0.37037036737037034"


@pytest.mark.parametrize("account", [1, ACCOUNT])
@pytest.mark.parametrize("spell", [json.dumps, lambda number: f'"{number}"'], ids=["number", "string"])
def test_an_account_id_may_be_a_number_or_a_string(
    exchange: Exchange, account: int, spell: Callable[[int], str]
) -> None:
    exchange.mark("BTC-PERP", "50000")
    exchange.deposit(account, "15000")
    order = f'{{"account_id": {spell(account)}, "symbol": "BTC-PERP", "side": "BUY", "quantity": 1, "price": 50000}}'
    reply = exchange.call("POST", "/trade", order)
    assert (reply.status, reply.json["account_id"]) == (200, account)
    assert exchange.get(f"/trades/{account}")["trades"][0]["account_id"] == account
    assert exchange.get(f"/positions/{account}")["account_id"] == account
    assert exchange.get("/margin-report")["accounts_detail"][0]["account_id"] == account
    exchange.mark("BTC-PERP", "38000")
    assert exchange.get("/liquidations", account_id=account)["liquidations"][0]["account_id"] == account
