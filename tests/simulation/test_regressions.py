"""What the simulation has found, each made as small as it goes, so that it stays found however the seeds run later."""

from __future__ import annotations

import asyncio

import pytest

from margin.domain.controls import ControlState, account_control
from margin.domain.event import AcknowledgedBy
from margin.errors import PostgresUnavailableError, RedisUnavailableError, StateNotLoadedError
from tests.actions import deposit
from tests.fakes import Exchange

ACCOUNT = 1


async def test_nothing_is_opened_over_an_account_that_the_drain_failed_to_store() -> None:
    """It was taken for one whose events history refuses, and opened although history was ahead of it."""
    exchange = await Exchange().open()
    exchange.faults.fail("accounts.forget_pending.before", RedisUnavailableError("a moment"))
    await deposit(exchange, ACCOUNT, "100")
    saved = exchange.redis.save()
    await deposit(exchange, ACCOUNT, "50")
    exchange.redis.restore(saved)
    exchange.redis.run_id = "run-2"
    exchange.faults.fail("history.append.before", PostgresUnavailableError("a moment"), times=2)
    with pytest.raises(StateNotLoadedError):
        await exchange.opening.open()
    with pytest.raises(StateNotLoadedError):
        await deposit(exchange, ACCOUNT, "7")
    await exchange.opening.open()
    await deposit(exchange, ACCOUNT, "7")
    assert exchange.history_store.state_of(ACCOUNT).account.balance == 157


async def test_what_redis_acknowledged_after_an_opening_survives_an_append_that_began_before() -> None:
    """A drain held events that Redis then lost; it stored them after the opening had compared all accounts."""
    exchange = await Exchange(acknowledged_by=AcknowledgedBy.REDIS).open()
    await deposit(exchange, ACCOUNT, "100")
    await exchange.drain.drain()
    saved = exchange.redis.save()
    await deposit(exchange, ACCOUNT, "50")

    async def fail_over() -> None:
        exchange.redis.restore(saved)
        exchange.redis.run_id = "run-2"
        await exchange.opening.open()
        assert (await deposit(exchange, ACCOUNT, "7")).final

    exchange.faults.call("history.append.before", fail_over)
    await exchange.drain.drain()
    await exchange.drain.drain()
    assert exchange.history_store.state_of(ACCOUNT).account.balance == 107
    assert exchange.redis.pending == {}


async def test_an_account_whose_event_is_rejected_is_paused_although_two_drains_tried_at_once() -> None:
    """Both counted the same try, so that the count jumped over the number at which the account was to be paused."""
    exchange = await Exchange().open()
    await deposit(exchange, ACCOUNT, "100")
    exchange.history_store.rejected_keys.add("bad")
    assert not (await deposit(exchange, ACCOUNT, "50", key="bad")).final
    await exchange.drain.drain()
    await asyncio.gather(exchange.drain.drain(), exchange.drain.drain())
    for _ in range(5):
        await exchange.drain.drain()
    assert exchange.redis.controls[account_control(ACCOUNT)] == ControlState.PAUSED
