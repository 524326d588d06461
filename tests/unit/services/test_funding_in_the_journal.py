"""Pending funding: it counts everywhere from the moment of the payment on, and moves with the next event."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.chain import Link, account_of
from margin.domain.funding import funding_rise
from margin.domain.ledger import LedgerAccount
from margin.domain.liquidation_record import verify_liquidation
from margin.errors import InsufficientWithdrawableError
from margin.services.liquidation import Verdict
from tests.actions import BTC, ETH, buy, contribute, deposit, mark, sell, withdraw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fakes import Exchange

WARNING_PCT = Decimal(80)


def pay(exchange: Exchange, rate: str, symbol: str = BTC) -> None:
    """Let longs of a symbol pay shorts a rate of its mark, as the store does it."""
    market = exchange.redis.live_market()
    rise = funding_rise(Decimal(rate), market.mark_price(symbol))
    exchange.redis.funding[symbol] = market.funding_of(symbol).after(rise, market.guarded_lines(symbol), WARNING_PCT)


def body(exchange: Exchange, account_id: int = 1) -> dict[str, Any]:
    """Last event of an account, as history has it."""
    chain: list[Link] = exchange.history_store.chains[account_id]
    return chain[-1].body


def ledger(exchange: Exchange, account_id: int = 1) -> dict[str, str]:
    return dict(body(exchange, account_id)["ledger"])


@pytest.fixture
async def long_and_short(exchange: Exchange) -> Exchange:
    """Account 1 is long 0.3, account 2 short 0.3, and longs have paid 0.01 % of 50000: 1.5 each way."""
    await mark(exchange, "50000")
    for account_id, trade in ((1, buy), (2, sell)):
        await deposit(exchange, account_id, "10000")
        await trade(exchange, account_id, "0.3", "50000")
    pay(exchange, "0.0001")
    return exchange


async def test_payment_counts_in_equity_at_once_and_touches_no_account(long_and_short: Exchange) -> None:
    for account_id, equity in ((1, "9998.5"), (2, "10001.5")):
        margin = await long_and_short.margin.account_margin(account_id)
        assert (margin.account.balance, margin.risk.equity) == (Decimal(10000), Decimal(equity))
        assert margin.positions[0].pending_funding == Decimal(equity) - 10000


@pytest.mark.parametrize(
    "happens",
    [
        lambda exchange: deposit(exchange, 1, "1"),
        lambda exchange: withdraw(exchange, 1, "1"),
        lambda exchange: contribute(exchange, 1, "1"),
        lambda exchange: buy(exchange, 1, "0.1", "50000"),
        lambda exchange: sell(exchange, 1, "0.1", "50000"),
        lambda exchange: sell(exchange, 1, "0.3", "50000"),
        lambda exchange: sell(exchange, 1, "0.4", "50000"),
    ],
    ids=["deposit", "withdrawal", "contribution", "increase", "reduction", "close", "flip"],
)
async def test_next_event_settles_it_whatever_that_is(
    long_and_short: Exchange, happens: Callable[[Exchange], Awaitable[object]]
) -> None:
    await happens(long_and_short)
    assert body(long_and_short)["funding"] == [{"symbol": BTC, "quantity": "0.3", "index": "5", "amount": "-1.5"}]
    assert ledger(long_and_short)[LedgerAccount.FUNDING] == "1.5"
    assert sum(map(Decimal, ledger(long_and_short).values())) == 0
    margin = await long_and_short.margin.account_margin(1)
    assert sum(position.pending_funding for position in margin.positions) == 0
    await deposit(long_and_short, 1, "1")
    assert body(long_and_short)["funding"] == []
    assert LedgerAccount.FUNDING not in ledger(long_and_short)


async def test_position_opened_after_a_payment_does_not_owe_it(long_and_short: Exchange) -> None:
    await deposit(long_and_short, 3, "10000")
    await buy(long_and_short, 3, "0.3", "50000")
    margin = await long_and_short.margin.account_margin(3)
    assert (margin.risk.equity, margin.positions[0].pending_funding) == (10000, 0)
    assert body(long_and_short, 3)["positions"] == {
        BTC: {"quantity": "0.3", "entry_cost": "15000", "entry_funding": "1.5"}
    }


async def test_dust_of_a_settlement_stays_owed_so_that_equity_is_what_it_was(exchange: Exchange) -> None:
    await mark(exchange, "0.00000003")
    for account_id, trade in ((1, buy), (2, sell)):
        await deposit(exchange, account_id, "10")
        await trade(exchange, account_id, "0.1", "0.00000003")
    pay(exchange, "0.1")
    for account_id, equity, settled in ((1, "9.9999999997", "-0.00000001"), (2, "10.0000000003", "0")):
        before = (await exchange.margin.account_margin(account_id)).risk.equity
        await deposit(exchange, account_id, "1")
        assert before == Decimal(equity)
        assert (await exchange.margin.account_margin(account_id)).risk.equity == before + 1
        assert sum(Decimal(entry["amount"]) for entry in body(exchange, account_id)["funding"]) == Decimal(settled)
    await sell(exchange, 1, "0.1", "0.00000003")
    # What was charged too much comes back when the position is closed, but for what is less than a unit of cash.
    assert exchange.redis.accounts[1].account.balance == Decimal("10.99999999")
    assert ledger(exchange) == {LedgerAccount.HOUSE_PNL: "-0.0000000097", LedgerAccount.ROUNDING: "0.0000000097"}


async def test_payment_between_reading_and_committing_is_decided_on_anew(long_and_short: Exchange) -> None:
    long_and_short.faults.call("accounts.read.after", lambda: pay(long_and_short, "0.0001"))
    await sell(long_and_short, 1, "0.3", "50000")
    assert [entry["amount"] for entry in body(long_and_short)["funding"]] == ["-3"]


async def test_withdrawable_is_what_is_left_when_the_funding_is_settled(long_and_short: Exchange) -> None:
    await mark(long_and_short, "90000")
    margin = await long_and_short.margin.account_margin(1)
    # Equity has grown beyond all margin, so the balance is what limits: 10000, of which 1.5 is owed.
    assert (margin.account.balance, margin.withdrawable) == (10000, Decimal("9998.5"))
    with pytest.raises(InsufficientWithdrawableError, match=r"Withdrawable: 9998\.5, requested: 9999"):
        await withdraw(long_and_short, 1, "9999")
    assert (await withdraw(long_and_short, 1, "9998.5")).final


async def test_liquidation_settles_first_and_its_record_can_be_recomputed(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    await mark(exchange, "2000", ETH)
    await deposit(exchange, 1, "11000")
    await buy(exchange, 1, "1", "50000")
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    pay(exchange, "-0.001", ETH)
    # 0.12 of 50000 is 6000: 11000 less that and the 0.2 received is below the 5020 of maintenance margin.
    pay(exchange, "0.12")
    assert (await exchange.scans.scan()).liquidated == [1]
    event = body(exchange)
    assert [(entry["symbol"], entry["amount"]) for entry in event["funding"]] == [(BTC, "-6000"), (ETH, "0.2")]
    assert event["detail"]["equity"] == "5000.2"
    assert sum(Decimal(amount) for _, amount in event["ledger"]) == 0
    *_, previous, _ = exchange.history_store.chains[1]
    before = account_of(1, previous.body["balance"], _positions(exchange))
    lines = [(name, Decimal(amount)) for name, amount in event["ledger"]]
    assert verify_liquidation(event["detail"], before, None, lines) == []
    tampered = {**event["detail"]["inputs"], "funding_indexes": {BTC: "5999", ETH: "-2"}}
    assert verify_liquidation({**event["detail"], "inputs": tampered}, before) != []


def _positions(exchange: Exchange) -> dict[str, Any]:
    """Positions of account 1 as the events before its last one left them."""
    held: dict[str, Any] = {}
    for link in exchange.history_store.chains[1][:-1]:
        held |= link.body["positions"]
    return json.loads(json.dumps(held))


async def test_account_that_a_payment_brings_below_margin_is_crossed_without_being_touched(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    for account_id, balance in ((1, "10100"), (2, "12000")):
        await deposit(exchange, account_id, balance)
        await buy(exchange, account_id, "1", "50000")
    triggers = {account_id: dict(exchange.redis.accounts[account_id].triggers) for account_id in (1, 2)}
    pay(exchange, "0.102")
    assert exchange.redis.crossed_by(BTC) == [1]
    assert {account_id: exchange.redis.accounts[account_id].triggers for account_id in (1, 2)} == triggers
    assert (await exchange.scans.scan()).missed == []


async def test_payment_that_comes_while_an_account_is_anchored_is_looked_at_in_the_same_evaluation(
    exchange: Exchange,
) -> None:
    await mark(exchange, "50000")
    await deposit(exchange, 1, "10100")
    await buy(exchange, 1, "1", "50000")
    exchange.faults.call("accounts.anchor.before", lambda: pay(exchange, "0.1021"))
    assert await exchange.liquidations.evaluate(1) is Verdict.LIQUIDATED
