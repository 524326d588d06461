"""The drain on real stores: hundreds of events per commit, and no account that hinders another."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import NOBODY
from margin.domain.controls import ControlState, account_control
from margin.domain.event import digest
from margin.errors import NotActiveError
from margin.services.drain import BLOCKED_TRIES_MAX, DrainReport
from tests.actions import buy, deposit, mark
from tests.chains import READ_AT, chain
from tests.database import connect
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import redis

    from margin.config import Settings
    from margin.domain.event import StoredEvent
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

UNSTORABLE = "no text in PostgreSQL holds \0"


def _leave(store: redis.Redis, events: Iterable[StoredEvent]) -> None:
    """Leave events of accounts pending, as commits would have whose functions died."""
    with store.pipeline(transaction=False) as pipeline:
        for event in events:
            body = json.loads(event.body)
            account_id = str(body["account_id"])
            pipeline.rpush(f"pending:{account_id}", f"{event.event_id} {event.body}")
            pipeline.zadd("pending", {account_id: body["at_us"]}, nx=True)
            pipeline.hset("balances", account_id, body["balance"])
            pipeline.hset("versions", account_id, f"{body['n']}:{event.event_id}")
            pipeline.hset("chain_hashes", account_id, digest(event.body))
        pipeline.execute()


def _left_nothing(store: redis.Redis) -> bool:
    return not list(store.scan_iter("pending*"))


async def test_five_hundred_events_go_in_one_statement(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        _leave(store, (event for account_id in range(1, 101) for event in chain(account_id, 5)))
        await engine.history_store.check()
        before = proxy.round_trips
        report = await engine.drain.drain()
        assert (report.stored, report.accounts, report.waiting_accounts) == (500, 100, 0)
        assert proxy.round_trips - before == 1
    assert query("select count(*), count(distinct xmin::text) from events") == [(500, 1)]
    assert _left_nothing(store)


async def test_hundreds_of_events_go_in_each_commit_of_a_long_drain(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        _leave(store, (event for account_id in range(1, 21) for event in chain(account_id, 250)))
        await engine.history_store.check()
        before = proxy.round_trips
        assert (await engine.drain.drain()).stored == 5000
        assert proxy.round_trips - before <= 5000 / 200
    assert query("select count(*) from events") == [(5000,)]
    assert query("select min(n), max(n) from accounts") == [(250, 250)]


async def test_one_poisonous_account_among_a_hundred_costs_few_statements(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        for account_id in range(1, 101):
            _leave(store, chain(account_id, 2, subject=UNSTORABLE if account_id == 37 else None))
        await engine.history_store.check()
        before = proxy.round_trips
        report = await engine.drain.drain()
        assert (report.stored, report.waiting_accounts) == (198, 1)
        first = proxy.round_trips - before
        # Halves until it stands alone, and a few more to look at it.
        assert first <= 2 * math.ceil(math.log2(100)) + 6
        # From then on it is tried alone.
        _leave(store, (event for account_id in range(101, 201) for event in chain(account_id, 1)))
        before = proxy.round_trips
        assert (await engine.drain.drain()).stored == 100
        assert proxy.round_trips - before <= 8
    assert query("select count(*) from events") == [(298,)]


async def test_poisonous_event_pauses_its_account_and_everything_goes_on_when_its_cause_is_gone(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    await mark(engine, "50000")
    switch = account_control(1)
    with_cause = "alter table events add constraint no_third check (account_id <> 1 or n <> 3)"
    await deposit(engine, 1, "10000")
    await deposit(engine, 2, "10000")
    await _execute(engine, with_cause)
    try:
        await deposit(engine, 1, "1", key="second")
        poison = await deposit(engine, 1, "1", key="third")
        after_it = await deposit(engine, 1, "1", key="fourth")
        assert (poison.final, after_it.final) == (False, False)
        for number in range(BLOCKED_TRIES_MAX):
            assert store.hget("controls", switch) is None
            _leave(store, chain(10 + number, 3))
            report = await engine.drain.drain()
            assert (report.stored, report.waiting_accounts, report.set_aside) == (3, 1, 0)
        assert store.hget("controls", switch) == ControlState.PAUSED
        assert (await engine.drain.drain()).set_aside == 1
        with pytest.raises(NotActiveError):
            await buy(engine, 1, "0.01", "50000")
        assert (await buy(engine, 2, "0.01", "50000")).final
        assert query("select max(n) from events where account_id = 1") == [(2,)]
        assert query("select count(*) from control_changes") == [(1,)]
    finally:
        await _execute(engine, "alter table events drop constraint no_third")
    report = await engine.drain.drain()
    assert (report.stored, report.waiting_accounts) == (2, 0)
    assert (await engine.drain.drain()).set_aside == 0
    assert (await deposit(engine, 1, "1", key="third")).replayed
    # The switch is lifted by those who set things right.
    with pytest.raises(NotActiveError):
        await buy(engine, 1, "0.01", "50000")
    await engine.controls.set(switch, ControlState.ACTIVE, "put right", NOBODY)
    assert (await buy(engine, 1, "0.01", "50000")).final
    assert query("select array_agg(key order by n) from events where account_id = 1 and n between 2 and 4") == [
        (["second", "third", "fourth"],)
    ]


@pytest.mark.parametrize("round_number", range(3))
async def test_drains_at_once_on_the_same_accounts_store_each_event_once_and_never_lock_in_a_circle(
    make_engine: MakeEngine, store: redis.Redis, query: Query, round_number: int
) -> None:
    engine = await make_engine()
    deadlocks = query("select deadlocks from pg_stat_database where datname = current_database()")
    # Some accounts are new, others advance; the longest waiting first is another order than that of the ids.
    known = [event for account_id in range(1, 301, 2) for event in chain(account_id, 2)]
    async with engine.history_store.reserve() as writer:
        await writer.append(known, READ_AT)
    for account_id in range(1, 301):
        events = chain(account_id, 7)
        _leave(store, events[2:] if account_id % 2 else events)
        store.zadd("pending", {str(account_id): account_id * 7919 % 1000})
    others = [await make_engine(opened=False) for _ in range(1 + round_number)]
    reports = await asyncio.gather(*(each.drain.drain() for each in (engine, *others)))
    assert query("select count(*), count(distinct (account_id, n)), count(distinct event_id) from events") == [
        (2100, 2100, 2100)
    ]
    assert query("select count(*), sum(amount) from ledger_lines") == [(4200, 0)]
    assert query("select min(n), max(n) from accounts") == [(7, 7)]
    assert all(report.waiting_accounts == 0 for report in reports)
    assert _left_nothing(store)
    query("select pg_stat_force_next_flush()")
    assert query("select deadlocks from pg_stat_database where datname = current_database()") == deadlocks


async def test_account_put_back_to_an_older_state_of_the_same_server_is_healed_by_the_comparison(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    await mark(engine, "50000")
    for account_id in (1, 2):
        await deposit(engine, account_id, "10000", key="first")
    older = {name: store.hget(name, "1") for name in ("balances", "versions", "chain_hashes")}
    await buy(engine, 1, "0.1", "50000", key="lost")
    whole = hot_state(store)
    _put_back(store, older, account_id=1)
    assert store.hget("versions", "1") != whole["versions"]["1"]
    report = DrainReport()
    await engine.drain.compare_recent(report)
    assert report.healed == 1
    assert hot_state(store) == whole
    assert (await buy(engine, 1, "0.1", "50000", key="lost")).replayed
    again = DrainReport()
    await engine.drain.compare_recent(again)
    assert again.healed == 0
    assert query("select count(*) from events") == [(3,)]


async def test_account_that_vanished_from_redis_is_healed_by_the_comparison(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    for account_id in range(1, 7):
        await deposit(engine, account_id, "10", key="k")
    whole = hot_state(store)
    for number in (0, 1):
        for name in ("balances", "versions", "chain_hashes"):
            store.delete(f"{{p{number}}}:{name}")
    report = DrainReport()
    await engine.drain.compare_recent(report)
    assert report.healed == 4
    assert hot_state(store) == whole


def _put_back(store: redis.Redis, older: dict[str, str], account_id: int) -> None:
    """Give an account the fields that it had before its first position."""
    for name, value in older.items():
        store.hset(name, str(account_id), value)
    for symbol in store.smembers(f"positions:{account_id}"):
        store.delete(f"position:{account_id}:{symbol}")
        for side in ("floor", "ceiling"):
            store.zrem(f"triggers:{symbol}:{side}", str(account_id))
    store.delete(f"positions:{account_id}", f"idempotency:{account_id}:lost")


async def _execute(engine: Any, statement: str) -> None:
    with connect(engine.settings) as connection:
        connection.execute(statement.encode())


async def test_accounts_that_history_takes_too_long_over_do_not_hinder_other_partitions(
    make_engine: MakeEngine, store: redis.Redis, settings: Settings
) -> None:
    lean = await make_engine(history="drain", partitions=2, postgres_timeout_s=0.3)
    for account_id in (2, 4, 6, 1, 3, 5):
        await deposit(lean, account_id, "1")
    await lean.drain.drain()
    for account_id in (2, 4, 6, 1, 3, 5):
        await deposit(lean, account_id, "1")
    with connect(settings, autocommit=False) as blocker:
        blocker.execute("select * from accounts where account_id in (2, 4, 6) for update")
        report = await lean.drain.drain()
    assert report.stored == 3
    assert store.zrange("{p1}:pending", 0, -1) == []
    assert (await lean.drain.drain()).stored == 3
