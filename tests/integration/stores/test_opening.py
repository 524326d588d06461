"""Opening: Redis that was emptied, restarted or put back is made equal to history before anything relies on it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest
import redis

from margin.clients import postgres
from margin.clients.postgres import PostgresClient
from margin.clients.postgres_pool import PostgresPool
from margin.errors import (
    HistoryForkError,
    HistoryLostError,
    IdempotencyKeyReusedError,
    OpeningUnderWayError,
    StateNotLoadedError,
)
from margin.runtime import Engine
from margin_local.servers import EmbeddedValkey
from tests import acl
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.database import connect
from tests.integration.stores.dying import DyingFunction, FunctionDiedError
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from margin.config import Settings
    from margin.ports.history import HistoryAccount
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

_OF_THE_OPENING = {"marker", "event_seq"}
# What history does not hold, and what another epoch changes.
OUTSIDE_HISTORY = ("mark_", "triggers:", "warnings:", "marker", "event_seq")


async def _trade_a_while(engine: Engine) -> None:
    """Leave three accounts behind: two with positions, one without; the marks are where the trades were."""
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    for account_id in (1, 2, 3):
        await deposit(engine, account_id, "20000", key=f"deposit-{account_id}")
    await buy(engine, 1, "0.3", "50000", key="trade-1")
    await sell(engine, 1, "1.5", "2000", symbol=ETH)
    await sell(engine, 2, "0.1", "50000.00000001", key="trade-2")
    await buy(engine, 2, "0.3", "49999.5")
    await buy(engine, 3, "0.1", "50000")
    await sell(engine, 3, "0.1", "50010")
    await withdraw(engine, 3, "5.5")


async def _assert_not_loaded(engine: Engine) -> None:
    with pytest.raises(StateNotLoadedError):
        await deposit(engine, 1, "1")
    with pytest.raises(StateNotLoadedError):
        await engine.margin.account_margin(1)
    with pytest.raises(StateNotLoadedError):
        await engine.health.check()


@pytest.fixture
def own_valkey(server_directory: Path) -> Iterator[EmbeddedValkey]:
    """Yield a running, empty Valkey that a test may kill."""
    directory = server_directory / "valkey-killed"
    server = EmbeddedValkey(directory, fsync="no", options=acl.server_options(directory))
    server.start()
    with _client(server) as client:
        client.flushall()
    yield server
    server.stop()


async def test_empty_redis_is_not_an_empty_exchange(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "1000")
    store.flushall()
    await _assert_not_loaded(engine)
    with pytest.raises(StateNotLoadedError):
        await mark(engine, "50000")
    assert hot_state(store) == {}


async def test_emptied_redis_is_rebuilt_equal_from_history(engine: Engine, store: redis.Redis) -> None:
    await _trade_a_while(engine)
    before = hot_state(store, without=OUTSIDE_HISTORY)
    store.flushall()
    report = await engine.opening.open()
    assert (report.opened, report.accounts, report.loaded, report.drained) == ([0], 3, 3, 0)
    assert hot_state(store, without=OUTSIDE_HISTORY) == before


async def test_triggers_after_a_rebuild_are_those_from_before_once_the_marks_are_back(
    engine: Engine, store: redis.Redis
) -> None:
    await _trade_a_while(engine)
    indexes = [f"{index}:{symbol}" for index in ("triggers", "warnings") for symbol in (BTC, ETH)]
    names = [f"{index}:{side}" for index in indexes for side in ("floor", "ceiling")]
    before = {name: store.zrange(name, 0, -1, withscores=True) for name in names}
    store.flushall()
    await engine.opening.open()
    # Without marks nothing can be promised, so every price brings every holder to evaluation.
    assert store.zrange("triggers:BTC-PERP:floor", 0, -1, withscores=True) == [
        ("1", float("inf")),
        ("2", float("inf")),
    ]
    # Account 1 holds both symbols: while one has no mark it cannot be valued, and stays to be looked at.
    assert (await mark(engine, "2000", ETH)).at_risk == 1
    assert (await mark(engine, "50000")).at_risk == 2
    assert {name: store.zrange(name, 0, -1, withscores=True) for name in names} == before


async def test_idempotency_keys_live_on_after_a_rebuild(engine: Engine, store: redis.Redis, query: Query) -> None:
    await _trade_a_while(engine)
    first = await buy(engine, 2, "0.2", "50000", key="mine")
    events = query("select count(*) from events")
    store.flushall()
    await engine.opening.open()
    replay = await buy(engine, 2, "0.2", "50000", key="mine")
    assert (replay.event_id, replay.result, replay.replayed) == (first.event_id, first.result, True)
    with pytest.raises(IdempotencyKeyReusedError):
        await buy(engine, 2, "0.3", "50000", key="mine")
    assert query("select count(*) from events") == events
    assert 0 < store.ttl("idempotency:2:mine") <= engine.settings.idempotency_ttl_s


async def test_epoch_after_each_opening_is_new_so_that_event_ids_are_never_used_twice(
    engine: Engine, store: redis.Redis
) -> None:
    first = await deposit(engine, 1, "1")
    store.flushall()
    await engine.opening.open()
    second = await deposit(engine, 1, "1")
    assert (first.event_id, second.event_id) == (2**32 + 1, 2 * 2**32 + 1)


async def test_open_state_is_left_alone(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "1")
    before = hot_state(store)
    report = await engine.opening.open()
    assert (report.opened, report.loaded) == ([], 0)
    assert hot_state(store) == before


async def test_restarted_redis_is_refused_until_it_was_opened_and_then_equal(
    make_engine: MakeEngine, own_valkey: EmbeddedValkey
) -> None:
    engine = await make_engine(redis_port=own_valkey.port)
    await _trade_a_while(engine)
    with _client(own_valkey) as client:
        before = hot_state(client, without=("marker", "event_seq"))
    _kill_and_restart(own_valkey)
    await _assert_not_loaded(engine)
    report = await engine.opening.open()
    assert (report.opened, report.accounts, report.loaded) == ([0], 3, 0)
    with _client(own_valkey) as client:
        assert hot_state(client, without=("marker", "event_seq")) == before
    assert (await buy(engine, 1, "0.1", "50000")).final
    await engine.health.check()
    await engine.close()


async def test_all_partitions_are_rebuilt_and_each_takes_an_epoch(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=4)
    await _trade_a_while(engine)
    outside = tuple(f"{{p{number}}}:{name}" for number in range(4) for name in OUTSIDE_HISTORY)
    before = hot_state(store, without=outside)
    store.flushall()
    report = await engine.opening.open()
    assert (report.opened, report.loaded) == ([0, 1, 2, 3], 3)
    assert hot_state(store, without=outside) == before


async def test_partition_without_a_marker_alone_refuses_its_accounts_only(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=4)
    await _trade_a_while(engine)
    store.delete("{p1}:marker")
    with pytest.raises(StateNotLoadedError):
        await buy(engine, 1, "0.1", "50000")
    assert (await buy(engine, 2, "0.1", "50000")).final
    assert (await engine.opening.open()).opened == [1]
    assert (await buy(engine, 1, "0.1", "50000")).final


async def test_other_number_of_partitions_is_refused(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=1)
    await deposit(engine, 1, "1")
    store.hset("marker", "partitions", "2")
    with pytest.raises(StateNotLoadedError):
        await deposit(engine, 1, "1")


class _WatchedHistory(PostgresClient):
    """Does something else while accounts are compared."""

    watch: Callable[[], Awaitable[object]]

    async def accounts(
        self, after_account_id: int, limit: int, *, partition: int = 0, partitions: int = 1
    ) -> list[HistoryAccount]:
        await self.watch()
        return await super().accounts(after_account_id, limit, partition=partition, partitions=partitions)


class _WatchedEngine(Engine):
    @cached_property
    def _opening_history(self) -> _WatchedHistory:
        return _WatchedHistory(self.settings)


async def test_nothing_is_committed_while_an_opening_is_under_way_even_on_connections_from_before(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "1")
    store.hset("marker", "run_id", "that of a server before")
    assert (await deposit(engine, 1, "1")).final  # kept connections do not look at the marker's run_id
    tried: list[int] = []

    async def try_to_commit() -> None:
        with pytest.raises(StateNotLoadedError):
            await deposit(engine, 1, "1")
        tried.append(1)

    opener = await make_engine(opened=False, kind=_WatchedEngine)
    opener._opening_history.watch = try_to_commit
    assert (await opener.opening.open()).opened == [0]
    assert tried
    assert store.hget("balances", "1") == "2"


async def test_server_that_is_replaced_by_an_empty_one_while_it_is_opened_is_not_vouched_for(
    make_engine: MakeEngine, own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await make_engine(redis_port=own_valkey.port)
    await _trade_a_while(engine)
    with _client(own_valkey) as client:
        client.delete("marker")
    counted = engine.opening._accounts.size

    async def count_and_replace(partition: int) -> int:
        """Count what is compared; then, all being well, another server takes its place."""
        held = await counted(partition)
        with _client(own_valkey) as client:
            client.flushall()
        _kill_and_restart(own_valkey)
        await engine._opening_redis.connection_pool.disconnect()
        return held

    monkeypatch.setattr(engine.opening._accounts, "size", count_and_replace)
    with pytest.raises(StateNotLoadedError, match="taken over"):
        await engine.opening.open()
    monkeypatch.undo()
    assert await engine.opening.needed() == [0]
    await _assert_not_loaded(engine)
    report = await engine.opening.open()
    assert (report.opened, report.accounts, report.loaded) == ([0], 3, 3)
    assert await engine.opening.needed() == []
    await engine.close()


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """Return a list that fills with the accounts whose live keys are read from history, and the keys."""
    read: list[tuple[int, list[str]]] = []
    execute = PostgresPool.execute

    async def watched(self: PostgresPool, connection: Any, query: str, parameters: Any) -> Any:
        rows = await execute(self, connection, query, parameters)
        if query == postgres._LIVE_KEYS:
            read.extend(
                (account_id, [row["key"] for row in rows if row["account_id"] == account_id])
                for account_id in parameters["account_ids"]
            )
        return rows

    monkeypatch.setattr(PostgresPool, "execute", watched)
    return read


async def test_live_keys_are_read_for_accounts_that_differ_only(
    engine: Engine, store: redis.Redis, keys_read: list[tuple[int, list[str]]]
) -> None:
    for account_id in range(1, 6):
        await deposit(engine, account_id, "10", key=f"first-{account_id}")
        await deposit(engine, account_id, "10", key=f"second-{account_id}")
    store.delete("marker")
    assert (await engine.opening.open()).loaded == 0
    assert keys_read == []
    store.delete("marker")
    store.hdel("versions", "3")
    assert (await engine.opening.open()).loaded == 1
    assert keys_read == [(3, ["second-3", "first-3"])]


async def test_newest_live_keys_alone_are_put_back_and_the_others_are_recalled_when_they_come(
    engine: Engine,
    store: redis.Redis,
    query: Query,
    keys_read: list[tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "LIVE_KEYS_MAX", 2)
    outcomes = {key: await deposit(engine, 1, "10", key=key) for key in ("a", "b", "c", "d")}
    store.flushall()
    await engine.opening.open()
    assert keys_read == [(1, ["d", "c"])]
    assert set(store.scan_iter("idempotency:*")) == {"idempotency:1:c", "idempotency:1:d"}
    for key, outcome in outcomes.items():
        again = await deposit(engine, 1, "10", key=key)
        assert (again.event_id, again.final, again.replayed) == (outcome.event_id, True, True)
    assert store.hget("balances", "1") == "40"
    assert query("select count(*) from events") == [(4,)]


async def test_two_openings_at_once_open_once(make_engine: MakeEngine, query: Query) -> None:
    engines = [await make_engine(opened=False) for _ in range(4)]
    reports = await asyncio.gather(*(each.opening.open() for each in engines), return_exceptions=True)
    opened = [report for report in reports if not isinstance(report, BaseException) and report.opened]
    assert len(opened) == 1
    assert {type(report) for report in reports if isinstance(report, BaseException)} <= {OpeningUnderWayError}
    assert query("select last_value, is_called from epochs") == [(1, True)]


async def test_history_that_lost_an_event_is_refused_and_nothing_is_overwritten(
    engine: Engine, store: redis.Redis, settings: Settings
) -> None:
    await deposit(engine, 1, "10")
    version = store.hget("versions", "1")
    await deposit(engine, 1, "20")
    with connect(settings) as connection:
        connection.execute("delete from events where n = 2")
        connection.execute(
            "update accounts set n = 1, event_id = %s, balance = 10, chain_hash = (select hash from events)",
            [version.partition(":")[2]],
        )
    store.delete("marker")
    with pytest.raises(HistoryLostError, match="history has lost events"):
        await engine.opening.open()
    assert store.hget("balances", "1") == "30"
    with pytest.raises(StateNotLoadedError):
        await deposit(engine, 1, "1")


async def test_history_that_lost_an_account_is_refused(engine: Engine, store: redis.Redis, settings: Settings) -> None:
    await deposit(engine, 1, "10")
    await deposit(engine, 2, "10")
    with connect(settings) as connection:
        connection.execute("truncate accounts, events, ledger_lines")
    store.delete("marker")
    with pytest.raises(HistoryLostError, match="history has lost it"):
        await engine.opening.open()
    assert store.hgetall("balances") == {"1": "10", "2": "10"}


async def test_older_state_of_an_account_is_healed_at_its_next_trade_and_the_retry_executes_once(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await deposit(engine, 1, "20000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000", key="old")
    saved = _save_account(store)
    second = await buy(engine, 1, "0.2", "50000", key="lost")
    after_second = hot_state(store, without=("event_seq",))
    _restore_account(store, saved)
    assert store.hget("position:1:BTC-PERP", "quantity") == "0.1"

    with pytest.raises(HistoryForkError):
        await buy(engine, 1, "0.5", "50000", key="new")
    assert hot_state(store, without=("event_seq",)) == after_second
    assert query("select max(event_id), count(*) from events") == [(second.event_id, 3)]

    executed = await buy(engine, 1, "0.5", "50000", key="new")
    assert (executed.final, executed.replayed) == (True, False)
    assert query("select quantity from trades order by id") == [(Decimal("0.1"),), (Decimal("0.2"),), (Decimal("0.5"),)]
    assert store.hget("position:1:BTC-PERP", "quantity") == "0.8"
    for key, quantity in (("old", "0.1"), ("lost", "0.2"), ("new", "0.5")):
        assert (await buy(engine, 1, quantity, "50000", key=key)).replayed
    assert query("select count(*) from trades") == [(3,)]


async def test_retry_of_a_trade_that_only_history_remembers_is_never_executed_twice(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await deposit(engine, 1, "20000")
    await mark(engine, "50000")
    saved = _save_account(store)
    first = await buy(engine, 1, "0.2", "50000", key="lost")
    _restore_account(store, saved)
    store.delete("idempotency:1:lost")

    # The caller never got the answer and sends the same again.
    replay = await buy(engine, 1, "0.2", "50000", key="lost")
    assert (replay.event_id, replay.replayed, replay.final) == (first.event_id, True, True)
    assert query("select id from trades") == [(first.event_id,)]


async def test_key_that_redis_forgot_after_its_time_is_recalled_from_history_and_executes_nothing(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine(idempotency_ttl_s=1)
    first = await deposit(engine, 1, "10", key="mine")
    store.delete("idempotency:1:mine")
    with connect(engine.settings) as connection:
        connection.execute("update events set occurred_at = occurred_at - interval '2 seconds'")
    again = await deposit(engine, 1, "10", key="mine")
    assert (again.event_id, again.replayed, again.final) == (first.event_id, True, True)
    store.delete("idempotency:1:mine")
    with pytest.raises(IdempotencyKeyReusedError):
        await deposit(engine, 1, "11", key="mine")
    assert query("select event_id from events") == [(first.event_id,)]
    assert store.hget("balances", "1") == "10"


async def test_events_of_functions_that_died_after_the_commit_are_drained_in_order(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await mark(engine, "50000")
    for account_id in (1, 2):
        await deposit(engine, account_id, "20000")
        for quantity in ("0.1", "0.2", "0.3"):
            with pytest.raises(FunctionDiedError):
                await buy(DyingFunction(engine), account_id, quantity, "50000")
    assert query("select count(*) from trades") == [(0,)]
    assert store.zrange("pending", 0, -1) == ["1", "2"]

    report = await engine.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts, report.oldest_s) == (6, 2, 0, 0.0)
    rows = query(
        "select account_id, array_agg(quantity order by id) from trades group by account_id order by account_id"
    )
    assert rows == [
        (1, [Decimal("0.1"), Decimal("0.2"), Decimal("0.3")]),
        (2, [Decimal("0.1"), Decimal("0.2"), Decimal("0.3")]),
    ]
    assert not store.exists("pending", "pending:1", "pending:2")


async def test_next_trade_of_the_account_stores_what_dead_functions_left_before_it(
    engine: Engine, query: Query
) -> None:
    await mark(engine, "50000")
    await deposit(engine, 1, "20000")
    with pytest.raises(FunctionDiedError):
        await buy(DyingFunction(engine), 1, "0.1", "50000")
    assert (await buy(engine, 1, "0.2", "50000")).final
    assert query("select n, quantity from trades join events on id = event_id order by n") == [
        (2, Decimal("0.1")),
        (3, Decimal("0.2")),
    ]


async def test_replay_of_an_event_behind_two_hundred_pending_ones_is_not_final_before_it_is_stored(
    engine: Engine, query: Query
) -> None:
    await mark(engine, "50000")
    await deposit(engine, 1, "20000")
    for number in range(203):
        with pytest.raises(FunctionDiedError):
            await buy(DyingFunction(engine), 1, "0.001", "50000", key=f"k{number}")
    replays = [await buy(engine, 1, "0.001", "50000", key="k202") for _ in range(2)]
    assert [replay.final for replay in replays] == [False, True]
    assert query("select count(*), max(id) from trades") == [(203, replays[0].event_id)]


async def test_pending_events_survive_a_restart_and_are_drained_by_the_opening(
    make_engine: MakeEngine, own_valkey: EmbeddedValkey, query: Query
) -> None:
    engine = await make_engine(redis_port=own_valkey.port)
    await mark(engine, "50000")
    await deposit(engine, 1, "20000")
    with pytest.raises(FunctionDiedError):
        await buy(DyingFunction(engine), 1, "0.1", "50000", key="mine")
    _kill_and_restart(own_valkey)
    await _assert_not_loaded(engine)
    report = await engine.opening.open()
    assert (report.drained, report.loaded) == (1, 0)
    assert query("select quantity from trades") == [(Decimal("0.1"),)]
    assert (await buy(engine, 1, "0.1", "50000", key="mine")).replayed
    await engine.close()


async def test_drains_at_once_store_each_event_once(make_engine: MakeEngine, engine: Engine, query: Query) -> None:
    await mark(engine, "50000")
    for account_id in range(1, 9):
        await deposit(engine, account_id, "20000")
        for _ in range(3):
            with pytest.raises(FunctionDiedError):
                await buy(DyingFunction(engine), account_id, "0.1", "50000")
    drains = [(await make_engine()).drain.drain() for _ in range(4)]
    reports = await asyncio.gather(*drains)
    assert query("select count(*), count(distinct id) from trades") == [(24, 24)]
    assert all(report.waiting_accounts == 0 for report in reports)


def _kill_and_restart(server: EmbeddedValkey) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while not server.restart_if_dead():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def _client(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis(host=server.host, port=server.port, decode_responses=True)


def _save_account(store: redis.Redis) -> dict[str, Any]:
    """Take everything but what an opening sets, to be put back by `_restore_account`."""
    where = store.connection_pool.connection_kwargs
    with redis.Redis(host=where["host"], port=where["port"]) as raw:
        names = [name for name in store.scan_iter() if name not in _OF_THE_OPENING]
        return {name: raw.dump(name) for name in names}


def _restore_account(store: redis.Redis, saved: dict[str, Any]) -> None:
    for name in store.scan_iter():
        if name not in {*_OF_THE_OPENING, *saved}:
            store.delete(name)
    for name, value in saved.items():
        store.restore(name, 0, value, replace=True)
