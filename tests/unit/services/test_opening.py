"""Opening: what Redis holds is compared with history, put right, and only then vouched for."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from margin.errors import (
    HistoryLostError,
    OpeningUnderWayError,
    PostgresUnavailableError,
    RedisUnavailableError,
    StateNotLoadedError,
    UnavailableError,
)
from tests.actions import buy, deposit, mark
from tests.fakes import Exchange

NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


@pytest.fixture
async def used() -> Exchange:
    """Return an exchange of two partitions with four accounts, two of which hold positions."""
    exchange = await Exchange(partitions=2).open()
    await mark(exchange, "50000")
    for account_id in range(1, 5):
        await deposit(exchange, account_id, "10000", key=f"deposit-{account_id}")
    for account_id in (1, 2):
        await buy(exchange, account_id, "0.1", "50000", key="mine")
    return exchange


def _state(exchange: Exchange) -> dict[int, tuple[object, str, str]]:
    return {
        account_id: (hot.account, hot.version, hot.chain_hash) for account_id, hot in exchange.redis.accounts.items()
    }


async def test_new_exchange_is_opened_in_every_partition_with_epochs_of_their_own() -> None:
    exchange = Exchange(partitions=3)
    assert await exchange.opening.needed() == [0, 1, 2]
    with pytest.raises(StateNotLoadedError):
        await deposit(exchange, 1, "1")
    report = await exchange.opening.open()
    assert (report.opened, report.accounts, report.loaded, report.drained) == ([0, 1, 2], 0, 0, 0)
    assert {marker.epoch for marker in exchange.redis.markers.values()} == {"1", "2", "3"}
    assert await exchange.opening.needed() == []


async def test_open_exchange_is_left_alone(used: Exchange) -> None:
    before = used.redis.save()
    assert (await used.opening.open()).opened == []
    assert used.redis.save() == before


async def test_empty_redis_is_rebuilt_equal(used: Exchange) -> None:
    before = _state(used)
    keys = dict(used.redis.keys)
    used.redis.flush()
    report = await used.opening.open()
    assert (report.opened, report.accounts, report.loaded) == ([0, 1], 4, 4)
    assert _state(used) == before
    assert set(used.redis.keys) == set(keys)
    await mark(used, "50000")
    assert (await buy(used, 1, "0.1", "50000", key="mine")).replayed
    assert (await buy(used, 1, "0.1", "50000")).final


async def test_positions_without_a_mark_are_brought_to_evaluation_by_the_first_price(used: Exchange) -> None:
    used.redis.flush()
    await used.opening.open()
    assert (await mark(used, "1000000")).at_risk == 2
    assert (await mark(used, "1000000")).at_risk == 0


async def test_keys_that_have_expired_are_not_put_back(used: Exchange) -> None:
    used.clock.advance(3600)
    used.redis.flush()
    await used.opening.open()
    assert used.redis.keys == {}


async def test_older_redis_on_another_server_is_brought_up_to_history(used: Exchange) -> None:
    saved = used.redis.save()
    await buy(used, 1, "0.2", "50000", key="later")
    await deposit(used, 5, "1")
    before = _state(used)
    used.redis.restore(saved)
    used.redis.run_id = "run-2"
    report = await used.opening.open()
    assert (report.opened, report.accounts, report.loaded) == ([0, 1], 5, 2)
    assert _state(used) == before
    assert (await buy(used, 1, "0.2", "50000", key="later")).replayed


async def test_restarted_redis_with_the_same_state_is_only_compared(used: Exchange) -> None:
    before = _state(used)
    used.redis.run_id = "run-2"
    with pytest.raises(StateNotLoadedError):
        await deposit(used, 1, "1")
    report = await used.opening.open()
    assert (report.opened, report.loaded) == ([0, 1], 0)
    assert _state(used) == before


async def test_events_that_waited_are_stored_before_anything_is_compared(used: Exchange) -> None:
    used.faults.fail("history.append.before", NO_HISTORY)
    outcome = await buy(used, 1, "0.2", "50000", key="later")
    assert not outcome.final
    used.redis.run_id = "run-2"
    report = await used.opening.open()
    assert (report.drained, report.loaded) == (1, 0)
    assert used.history_store.event_ids(1)[-1] == outcome.event_id
    replay = await buy(used, 1, "0.2", "50000", key="later")
    assert (replay.replayed, replay.final) == (True, True)


async def test_events_that_history_refuses_are_dropped_with_their_keys(used: Exchange) -> None:
    saved = used.redis.save()
    kept = await buy(used, 1, "0.2", "50000")
    used.redis.restore(saved)
    used.redis.sequences[1] += 7
    used.faults.fail("history.append.before", NO_HISTORY)
    dropped = await buy(used, 1, "0.3", "50000", key="dropped")
    assert not dropped.final
    used.redis.run_id = "run-2"
    await used.opening.open()
    assert used.redis.accounts[1].version.endswith(f":{kept.event_id}")
    assert used.redis.pending == {}
    assert not (await buy(used, 1, "0.3", "50000", key="dropped")).replayed


async def test_other_number_of_partitions_needs_an_opening(used: Exchange) -> None:
    for number, marker in used.redis.markers.items():
        used.redis.markers[number] = type(marker)(marker.epoch, "5", marker.run_id, marker.server_run_id)
    assert await used.opening.needed() == [0, 1]


async def test_other_process_that_is_opening_is_waited_for_by_the_caller(used: Exchange) -> None:
    used.redis.flush()
    used.history_store.opening = True
    with pytest.raises(StateNotLoadedError, match="Another process"):
        await used.opening.open()
    assert used.redis.accounts == {}
    used.history_store.opening = False
    assert (await used.opening.open()).loaded == 4


async def test_openings_at_once_open_once(used: Exchange) -> None:
    used.redis.flush()
    answers = await asyncio.gather(*(used.opening.open() for _ in range(5)), return_exceptions=True)
    opened = [answer for answer in answers if not isinstance(answer, BaseException) and answer.opened]
    assert len(opened) == 1
    assert {type(answer) for answer in answers if isinstance(answer, BaseException)} <= {OpeningUnderWayError}


async def test_history_that_lost_an_event_is_refused_and_nothing_overwritten(used: Exchange) -> None:
    used.history_store.chains[1].pop()
    used.redis.run_id = "run-2"
    before = _state(used)
    with pytest.raises(HistoryLostError, match="history has lost events"):
        await used.opening.open()
    assert _state(used) == before
    with pytest.raises(StateNotLoadedError):
        await deposit(used, 1, "1")


async def test_history_that_lost_accounts_is_refused_and_nothing_overwritten(used: Exchange) -> None:
    used.history_store.chains.clear()
    used.redis.run_id = "run-2"
    before = _state(used)
    with pytest.raises(HistoryLostError, match="history has lost it"):
        await used.opening.open()
    assert _state(used) == before


async def test_other_event_of_the_same_number_is_replaced_by_that_of_history(used: Exchange) -> None:
    hot = used.redis.accounts[1]
    hot.version = "2:999"
    hot.account = hot.account.with_balance_change(Decimal(5))
    used.redis.run_id = "run-2"
    assert (await used.opening.open()).loaded == 1
    assert used.redis.accounts[1].account.balance == 10000


async def test_more_accounts_than_a_page_are_all_loaded(exchange: Exchange) -> None:
    for account_id in range(1, 1003):
        await deposit(exchange, account_id, "1")
    exchange.redis.flush()
    report = await exchange.opening.open()
    assert (report.accounts, report.loaded) == (1002, 1002)
    assert len(exchange.redis.accounts) == 1002


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        ("history", NO_HISTORY),
        ("history.accounts", NO_HISTORY),
        ("history.next_epoch", NO_HISTORY),
        ("partitions", RedisUnavailableError("Redis is down.")),
        ("accounts.load", RedisUnavailableError("Redis is down.")),
    ],
)
async def test_opening_with_a_store_down_leaves_the_state_closed_and_can_be_repeated(
    used: Exchange, prefix: str, error: UnavailableError
) -> None:
    before = _state(used)
    used.redis.flush()
    used.faults.take_down(prefix, error)
    with pytest.raises(type(error)):
        await used.opening.open()
    used.faults.bring_up(prefix)
    with pytest.raises(StateNotLoadedError):
        await deposit(used, 1, "1")
    await used.opening.open()
    assert _state(used) == before
