"""Deposits, withdrawals and contributions."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.caller import NOBODY
from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control
from margin.domain.instrument import Instrument
from margin.errors import (
    IdempotencyKeyReusedError,
    InsufficientWithdrawableError,
    NoMarkPriceError,
    NotActiveError,
    PostgresUnavailableError,
    StaleMarkPriceError,
    UnknownAccountError,
)
from tests.actions import BTC, buy, contribute, deposit, mark, withdraw

if TYPE_CHECKING:
    from tests.fakes import Exchange


def _balance(exchange: Exchange, account_id: int = 1) -> Decimal:
    return exchange.redis.accounts[account_id].account.balance


async def test_first_deposit_opens_the_account(exchange: Exchange) -> None:
    with pytest.raises(UnknownAccountError):
        await exchange.margin.account_margin(1)
    outcome = await deposit(exchange, 1, "100.5")
    assert outcome.final
    assert outcome.result == {"account_id": 1, "balance": "100.5", "equity": "100.5", "withdrawable": "100.5"}
    margin = await exchange.margin.account_margin(1)
    assert (margin.account.balance, margin.positions) == (Decimal("100.5"), ())


async def test_deposits_add_up_exactly(exchange: Exchange) -> None:
    for amount in ("999999999999.99999999", "0.00000001", "0.1"):
        await deposit(exchange, 1, amount)
    assert _balance(exchange) == Decimal("1000000000000.1")


async def test_deposit_needs_no_mark_price_and_then_has_no_equity_to_answer(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.1", "50000")
    exchange.redis.marks.clear()
    outcome = await deposit(exchange, 1, "1")
    assert outcome.result == {"account_id": 1, "balance": "10001", "equity": None, "withdrawable": None}


async def test_withdrawal_is_limited_to_what_margin_leaves(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.5", "50000")
    with pytest.raises(InsufficientWithdrawableError, match=r"Withdrawable: 5000, requested: 5000\.00000001"):
        await withdraw(exchange, 1, "5000.00000001")
    outcome = await withdraw(exchange, 1, "5000")
    assert outcome.result == {"account_id": 1, "balance": "5000", "equity": "5000", "withdrawable": "0"}


async def test_unrealised_gain_cannot_be_withdrawn(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.1", "50000")
    await mark(exchange, "200000")
    with pytest.raises(InsufficientWithdrawableError, match="Withdrawable: 10000"):
        await withdraw(exchange, 1, "10000.1")


async def test_withdrawal_of_an_unknown_account_is_not_found(exchange: Exchange) -> None:
    with pytest.raises(UnknownAccountError):
        await withdraw(exchange, 1, "1")


async def test_withdrawal_without_a_mark_price_is_refused(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.1", "50000")
    exchange.redis.marks.clear()
    with pytest.raises(NoMarkPriceError):
        await withdraw(exchange, 1, "1")


async def test_withdrawal_on_a_stale_mark_price_is_refused(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.1", "50000")
    exchange.clock.advance(10)
    await withdraw(exchange, 1, "1")
    exchange.clock.advance(0.000_001)
    with pytest.raises(StaleMarkPriceError):
        await withdraw(exchange, 1, "1")


async def test_mark_that_moves_before_the_withdrawal_commits_is_decided_on_anew(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.5", "50000")
    exchange.faults.call("accounts.commit.before", lambda: mark(exchange, "48000"))
    with pytest.raises(InsufficientWithdrawableError):
        await withdraw(exchange, 1, "5000")
    assert _balance(exchange) == 10000


@pytest.mark.parametrize("switch", [ENGINE_CONTROL, account_control(1)])
async def test_paused_switch_stops_withdrawals_but_not_deposits(exchange: Exchange, switch: str) -> None:
    await deposit(exchange, 1, "10")
    exchange.redis.controls[switch] = ControlState.PAUSED
    with pytest.raises(NotActiveError):
        await withdraw(exchange, 1, "1")
    assert (await deposit(exchange, 1, "1")).final


@pytest.mark.parametrize("switch", [ENGINE_CONTROL, account_control(1)])
async def test_reduce_only_switch_stops_no_withdrawal(exchange: Exchange, switch: str) -> None:
    await deposit(exchange, 1, "10")
    exchange.redis.controls[switch] = ControlState.REDUCE_ONLY
    assert (await withdraw(exchange, 1, "1")).final


async def test_retry_with_the_same_key_moves_the_money_once(exchange: Exchange) -> None:
    first = await deposit(exchange, 1, "10", key="in")
    assert (await deposit(exchange, 1, "10", key="in")).event_id == first.event_id
    second = await withdraw(exchange, 1, "4", key="out")
    replay = await withdraw(exchange, 1, "4", key="out")
    assert (replay.event_id, replay.replayed) == (second.event_id, True)
    assert _balance(exchange) == 6


async def test_key_of_a_deposit_is_no_key_for_a_withdrawal_of_the_same_amount(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10", key="mine")
    with pytest.raises(IdempotencyKeyReusedError):
        await withdraw(exchange, 1, "10", key="mine")


async def test_withdrawal_that_history_has_not_taken_is_not_final(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10")
    exchange.faults.fail("history.append.before", PostgresUnavailableError("PostgreSQL is down."))
    assert not (await withdraw(exchange, 1, "1")).final


async def test_deposit_whose_triggers_are_crossed_at_the_commit_is_evaluated(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "1", "50000")
    exchange.faults.call(
        "accounts.commit.before", lambda: exchange.market.set_marks({BTC: Decimal(40000)}, crossed_max=0)
    )
    outcome = await deposit(exchange, 1, "1")
    assert outcome.crossed
    assert exchange.redis.accounts[1].account.positions == {}


async def test_contribution_is_booked_to_the_fund_once_and_stopped_as_a_withdrawal_is(exchange: Exchange) -> None:
    await deposit(exchange, 1, "100")
    first = await contribute(exchange, 1, "40", key="gift")
    again = await contribute(exchange, 1, "40", key="gift")
    assert (first.event_id, again.replayed) == (again.event_id, True)
    assert first.result == {"account_id": 1, "balance": "60", "equity": "60", "withdrawable": "60"}
    body = exchange.history_store.chains[1][-1].body
    assert (body["type"], body["ledger"]) == ("CONTRIBUTION", [["cash", "-40"], ["insurance", "40"]])
    with pytest.raises(InsufficientWithdrawableError):
        await contribute(exchange, 1, "60.00000001")
    with pytest.raises(UnknownAccountError):
        await contribute(exchange, 2, "1")
    await exchange.controls.set(account_control(1), ControlState.PAUSED, "a test", NOBODY)
    with pytest.raises(NotActiveError):
        await contribute(exchange, 1, "1")
