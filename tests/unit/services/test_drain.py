"""The drain: what dead functions and outages left behind gets into history."""

from __future__ import annotations

import pytest

from margin.domain.controls import ControlState, account_control
from margin.errors import HistoryForkError, PostgresUnavailableError, RedisUnavailableError, UnavailableError
from margin.services.drain import BLOCKED_TRIES_MAX, DrainReport
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
    # The commit of all three takes too long, and so does that of account 3 alone.
    exchange.faults.fail("history.append.before", NO_HISTORY, times=2)
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (2, 1)
    assert list(exchange.history_store.chains) == [1, 2]


async def test_commit_that_failed_once_is_tried_again_in_the_same_drain(exchange: Exchange) -> None:
    for account_id in (1, 2):
        await _leave_behind(exchange, account_id, 1)
    exchange.faults.fail("history.append.before", NO_HISTORY)
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (2, 0)


async def test_history_that_fails_again_and_again_ends_the_drain(exchange: Exchange) -> None:
    for account_id in range(1, 6):
        await _leave_behind(exchange, account_id, 1)
    appends = exchange.faults.calls["history.append"]
    exchange.faults.take_down("history.append", NO_HISTORY)
    with pytest.raises(PostgresUnavailableError):
        await exchange.drain.drain()
    assert exchange.faults.calls["history.append"] == appends + 3
    exchange.faults.bring_up("history.append")
    assert (await exchange.drain.drain()).stored == 5


async def test_hundreds_of_events_of_many_accounts_go_in_one_commit(exchange: Exchange) -> None:
    for account_id in range(1, 91):
        await _leave_behind(exchange, account_id, 5)
    appends = exchange.faults.calls["history.append"]
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (450, 0)
    assert exchange.faults.calls["history.append"] == appends + 1


async def test_no_commit_is_begun_after_it_has_enough_events(exchange: Exchange) -> None:
    for account_id in range(1, 5):
        await _leave_behind(exchange, account_id, 200)
    appends = exchange.faults.calls["history.append"]
    assert (await exchange.drain.drain()).stored == 800
    assert exchange.faults.calls["history.append"] == appends + 2


async def test_event_that_history_refuses_pauses_its_account_after_some_drains(exchange: Exchange) -> None:
    exchange.history_store.rejected_keys.add("bad")
    await deposit(exchange, 1, "1", key="bad")
    switch = account_control(1)
    for _ in range(BLOCKED_TRIES_MAX - 1):
        await exchange.drain.drain()
        assert exchange.redis.controls.get(switch, "") == ""
    await exchange.drain.drain()
    assert exchange.redis.controls[switch] == ControlState.PAUSED
    (change,) = (await exchange.controls.list()).changes
    assert "cannot be stored in history (rejected)" in change.reason
    for _ in range(3):
        assert (await exchange.drain.drain()).set_aside == 1
    assert (await exchange.controls.list()).changes == [change]


async def test_event_that_was_set_aside_is_stored_when_nothing_stands_in_its_way_any_more(exchange: Exchange) -> None:
    exchange.history_store.rejected_keys.add("bad")
    left = [(await deposit(exchange, 1, "1", key="bad")).event_id, (await deposit(exchange, 1, "1")).event_id]
    for _ in range(BLOCKED_TRIES_MAX + 1):
        await exchange.drain.drain()
    exchange.history_store.rejected_keys.clear()
    report = await exchange.drain.drain()
    assert (report.stored, report.waiting_accounts) == (2, 0)
    assert exchange.history_store.event_ids(1) == left
    assert (await exchange.drain.drain()).set_aside == 0


async def test_next_event_that_history_refuses_has_as_many_tries_as_the_first(exchange: Exchange) -> None:
    exchange.history_store.rejected_keys |= {"bad", "worse"}
    await deposit(exchange, 1, "1", key="bad")
    await deposit(exchange, 1, "1", key="worse")
    for _ in range(BLOCKED_TRIES_MAX - 1):
        await exchange.drain.drain()
    exchange.history_store.rejected_keys.remove("bad")
    await exchange.drain.drain()
    assert exchange.redis.blocked[1] == 1
    assert exchange.redis.controls.get(account_control(1), "") == ""


async def test_pause_that_fails_is_tried_again_at_the_next_drain(exchange: Exchange) -> None:
    exchange.history_store.rejected_keys.add("bad")
    await deposit(exchange, 1, "1", key="bad")
    for _ in range(BLOCKED_TRIES_MAX - 1):
        await exchange.drain.drain()
    exchange.faults.take_down("controls.record", NO_HISTORY)
    await exchange.drain.drain()
    exchange.faults.bring_up("controls.record")
    assert exchange.redis.controls.get(account_control(1), "") == ""
    await exchange.drain.drain()
    assert exchange.redis.controls[account_control(1)] == ControlState.PAUSED


async def test_account_put_back_to_an_older_state_unnoticed_is_healed_by_the_comparison(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1")
    saved = exchange.redis.save()
    await deposit(exchange, 1, "10", key="later")
    exchange.redis.restore(saved)
    report = DrainReport()
    await exchange.drain.compare_recent(report)
    assert report.healed == 1
    assert exchange.redis.accounts[1].account.balance == 11
    assert (await deposit(exchange, 1, "10", key="later")).replayed


async def test_late_clean_up_leaves_an_event_alone_that_has_the_id_of_the_one_it_is_about(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1")
    saved = exchange.redis.save()
    exchange.faults.fail("accounts.forget_pending.before", RedisUnavailableError("Redis is down."))
    stored = await deposit(exchange, 1, "10")
    (late,) = exchange.redis.pending[1]
    # Redis comes back older, as the same server: its sequence goes back as well.
    exchange.redis.restore(saved)
    exchange.faults.take_down("history.append", NO_HISTORY)
    other = await deposit(exchange, 1, "100", key="other")
    exchange.faults.bring_up("history.append")
    assert (other.event_id, other.final) == (stored.event_id, False)
    await exchange.accounts.forget_pending({1: [late]})
    assert [event.event_id for event in exchange.redis.pending[1]] == [other.event_id]
    with pytest.raises(HistoryForkError):
        await deposit(exchange, 1, "100", key="other")
    assert exchange.redis.accounts[1].account.balance == 11


async def test_event_whose_id_history_has_for_another_is_undone(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1")
    await deposit(exchange, 1, "10")
    exchange.redis.sequences[0] -= 1
    with pytest.raises(HistoryForkError):
        await deposit(exchange, 1, "100")
    assert exchange.redis.accounts[1].account.balance == 11
    assert (await exchange.drain.drain()).waiting_accounts == 0


async def test_comparison_leaves_what_is_ahead_of_history_or_equal_alone(exchange: Exchange) -> None:
    await deposit(exchange, 1, "1")
    await deposit(exchange, 2, "1")
    await _leave_behind(exchange, 2, 1)
    before = exchange.redis.save()
    report = DrainReport()
    await exchange.drain.compare_recent(report)
    assert report.healed == 0
    assert exchange.redis.save() == before


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
