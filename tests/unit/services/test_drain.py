"""The drain: what dead functions and outages left behind gets into history."""

from __future__ import annotations

import pytest

from margin.errors import PostgresUnavailableError, RedisUnavailableError, UnavailableError
from tests.actions import deposit
from tests.fakes import Exchange

NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


async def _leave_behind(exchange: Exchange, account_id: int, count: int) -> list[int]:
    """Deposit while history is down; the ids of the events that wait."""
    exchange.faults.take_down("history.append", NO_HISTORY)
    ids = [(await deposit(exchange, account_id, "1")).event_id for _ in range(count)]
    exchange.faults.bring_up("history.append")
    return ids


@pytest.mark.parametrize("partitions", [1, 3])
async def test_pending_events_of_all_accounts_are_stored_in_order(partitions: int) -> None:
    exchange = await Exchange(partitions=partitions).open()
    left = {account_id: await _leave_behind(exchange, account_id, 3) for account_id in range(1, 6)}
    report = await exchange.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts, report.oldest_s) == (15, 5, 0, 0.0)
    assert {account_id: exchange.history_store.event_ids(account_id) for account_id in left} == left
    assert exchange.redis.pending == {}


async def test_nothing_pending_is_nothing_to_do(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1")
    reservations = exchange.faults.calls["history.reserve"]
    report = await exchange.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts) == (0, 0, 0)
    assert exchange.faults.calls["history.reserve"] == reservations


async def test_longest_waiting_account_comes_first(exchange: Exchange) -> None:
    for account_id in (3, 1, 2):
        await _leave_behind(exchange, account_id, 1)
        exchange.clock.advance(1)
    await exchange.drain.drain()
    assert list(exchange.history_store.chains) == [3, 1, 2]


async def test_account_that_history_takes_too_long_over_does_not_hinder_the_others(exchange: Exchange) -> None:
    for account_id in (3, 1, 2):
        await _leave_behind(exchange, account_id, 1)
        exchange.clock.advance(1)
    exchange.faults.fail("history.append.before", NO_HISTORY)
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (2, 1)
    assert list(exchange.history_store.chains) == [1, 2]


async def test_account_that_cannot_be_healed_now_does_not_hinder_the_others(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1", key="old")
    del exchange.redis.keys[1, "old"]
    exchange.faults.take_down("history.append", NO_HISTORY)
    await deposit(exchange, 1, "1", key="old")
    exchange.faults.bring_up("history.append")
    left = {account_id: await _leave_behind(exchange, account_id, 1) for account_id in (2, 3)}

    def disturb() -> None:
        exchange.redis.accounts[1].version += "0"

    exchange.faults.call("accounts.load.before", disturb, times=5)
    report = await exchange.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts) == (2, 3, 1)
    assert {account_id: exchange.history_store.event_ids(account_id) for account_id in left} == left
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (0, 0)
    assert exchange.redis.accounts[1].account.balance == 1


async def test_more_events_than_are_shown_at_once_are_all_stored(exchange: Exchange) -> None:
    left = await _leave_behind(exchange, 1, 450)
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (450, 0)
    assert exchange.history_store.event_ids(1) == left


async def test_stuck_accounts_do_not_block_the_others(exchange: Exchange) -> None:
    for account_id in range(1, 131):
        await deposit(exchange, account_id, "1")
    for account_id in range(1, 121):
        exchange.history_store.chains[account_id].clear()  # what follows stands behind a gap
        await _leave_behind(exchange, account_id, 1)
    exchange.clock.advance(60)
    for account_id in range(121, 131):
        await _leave_behind(exchange, account_id, 2)
    report = await exchange.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts) == (20, 130, 120)
    assert report.oldest_s == 60.0
    assert set(exchange.redis.pending) == set(range(1, 121))


async def test_rejected_event_holds_up_its_own_account_only(exchange: Exchange) -> None:
    exchange.history_store.rejected_keys.add("bad")
    kept = [(await deposit(exchange, 1, "1")).event_id]
    kept += await _leave_behind(exchange, 1, 2)
    await deposit(exchange, 1, "1", key="bad")
    await deposit(exchange, 1, "1")
    left = await _leave_behind(exchange, 2, 2)
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (len(left), 1)
    assert exchange.history_store.event_ids(1) == kept
    assert exchange.history_store.event_ids(2) == left


async def test_events_that_history_has_already_only_leave_the_list(exchange: Exchange) -> None:
    exchange.faults.fail("accounts.forget_pending.before", RedisUnavailableError("Redis is down."))
    outcome = await deposit(exchange, 1, "1")
    assert list(exchange.redis.pending) == [1]
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (1, 0)
    assert exchange.history_store.event_ids(1) == [outcome.event_id]


async def test_drain_stops_when_its_time_is_up_and_says_what_waits(exchange: Exchange) -> None:
    await _leave_behind(exchange, 1, 1)
    exchange.clock.advance(5)
    report = await exchange.drain.drain(keep_going=lambda: False)
    assert (report.stored, report.waiting_accounts, report.oldest_s) == (0, 1, 5.0)


@pytest.mark.parametrize(
    ("prefix", "error"),
    [("history.reserve", NO_HISTORY), ("accounts", RedisUnavailableError("Down."))],
)
async def test_drain_with_a_store_down_fails_and_loses_nothing(
    exchange: Exchange, prefix: str, error: UnavailableError
) -> None:
    left = await _leave_behind(exchange, 1, 2)
    exchange.faults.take_down(prefix, error)
    with pytest.raises(type(error)):
        await exchange.drain.drain()
    exchange.faults.bring_up(prefix)
    assert (await exchange.drain.drain()).stored == 2
    assert exchange.history_store.event_ids(1) == left
