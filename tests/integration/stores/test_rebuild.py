"""Rebuilding on real stores: an account, a partition or everything is made equal to what history holds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.postgres import PostgresClient
from margin.domain.safe_zone import triggers
from margin.errors import (
    ContentionError,
    EventsBlockedError,
    HistoryLostError,
    InsufficientMarginError,
    MarginError,
    StaleMarkPriceError,
    StateNotLoadedError,
)
from margin.ports import Anchor, Loaded
from margin.runtime import Engine
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.chains import READ_AT, chain
from tests.database import connect
from tests.integration.stores.hot_state import hot_state
from tests.integration.stores.interrupted import InterruptedEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import redis

    from margin.config import Settings
    from margin.domain.event import StoredEvent
    from margin.ports.history import HistoryAccount
    from margin.services.opening import OpeningReport
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

CLIENTS = 32
SYMBOLS = {BTC: "50000", ETH: "2000"}


async def _trade(engine: Engine) -> None:
    """Leave nine accounts behind: most with positions, long and short, some without; marks where the trades were."""
    for symbol, price in SYMBOLS.items():
        await mark(engine, price, symbol)
    for account_id in range(1, 10):
        await deposit(engine, account_id, "20000", key=f"deposit:{account_id}")
    for account_id in (1, 2, 3, 4):
        await buy(engine, account_id, "0.3", "50000.5", key="long")
        await sell(engine, account_id, "1.5", "2000", symbol=ETH, key="short")
    await sell(engine, 5, "0.2", "49999.99999999", key="short")
    await buy(engine, 6, "0.1", "50000", key="in")
    await sell(engine, 6, "0.1", "50010", key="out")
    await withdraw(engine, 7, "5.5", key="some")


def _names_of_the_opening(partitions: int) -> tuple[str, ...]:
    tags = [""] if partitions == 1 else [f"{{p{number}}}:" for number in range(partitions)]
    return tuple(f"{tag}{name}" for tag in tags for name in ("marker", "event_seq", "opening", "holds", "reconcile"))


def _state(store: redis.Redis, partitions: int) -> dict[str, Any]:
    return hot_state(store, without=_names_of_the_opening(partitions))


def _tamper(store: redis.Redis, tag: str = "") -> None:
    """Change what no version shows; all of it in the partition of accounts 1, 4 and 7."""
    store.hset(f"{tag}balances", "1", "999999")
    store.delete(f"{tag}position:4:{BTC}")
    store.srem(f"{tag}positions:4", BTC)
    store.hset(f"{tag}position:1:{ETH}", mapping={"quantity": "7", "entry_price": "1", "entry_cost": "7"})
    store.hset(f"{tag}position:7:{BTC}", mapping={"quantity": "1", "entry_price": "1", "entry_cost": "1"})
    store.sadd(f"{tag}positions:7", BTC)
    store.hset(f"{tag}chain_hashes", "7", "another")
    store.zadd(f"{tag}triggers:{BTC}:floor", {"7": 1.0, "777": 40000.0})
    store.zadd(f"{tag}triggers:{ETH}:ceiling", {"778": 40000.0})
    store.zrem(f"{tag}triggers:{ETH}:ceiling", "1")
    # Wrong keys: another result, none at all, one that stands for nothing, one of an account that never was.
    record = store.get(f"{tag}idempotency:1:long")
    event_id, request_hash, _ = record.split("\n", 2)
    store.set(f"{tag}idempotency:1:long", f"{event_id}\n{request_hash}\n{{}}", ex=1000)
    store.delete(f"{tag}idempotency:4:long")
    store.set(f"{tag}idempotency:7:bogus", f"{int(event_id) + 50}\n{request_hash}\n{{}}", ex=1000)
    # An account that history never had: 7 in all but name.
    for name in ("balances", "versions", "chain_hashes"):
        store.hset(f"{tag}{name}", "100", store.hget(f"{tag}{name}", "7"))
    store.set(f"{tag}idempotency:100:bogus", record, ex=1000)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_partition_that_was_tampered_with_at_equal_versions_is_restored_exactly(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await _trade(engine)
    assert (await engine.reconcile.reconcile()).differences == []
    untouched = _state(store, partitions)
    tag = "" if partitions == 1 else "{p1}:"
    _tamper(store, tag)
    assert (await engine.reconcile.reconcile()).differences_count > 5
    assert _state(store, partitions) != untouched
    report = await engine.rebuilding.rebuild([0 if partitions == 1 else 1])
    loaded = 9 if partitions == 1 else 3
    assert (report.accounts, report.loaded, report.dropped, report.kept) == (loaded, loaded, 1, 0)
    assert _state(store, partitions) == untouched
    assert (await engine.reconcile.reconcile()).differences == []
    again = await engine.rebuilding.rebuild()
    assert (again.loaded, again.dropped) == (9, 0)
    assert _state(store, partitions) == untouched


@pytest.mark.parametrize("partitions", [1, 3])
async def test_account_that_was_tampered_with_is_restored_exactly_and_no_other_is_touched(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await _trade(engine)
    untouched = _state(store, partitions)
    marker = store.hgetall("marker" if partitions == 1 else "{p1}:marker")
    tag = "" if partitions == 1 else "{p1}:"
    _tamper(store, tag)
    for account_id in (1, 4, 7):
        assert await engine.rebuilding.rebuild_account(account_id) == untouched[f"{tag}versions"][str(account_id)]
    assert await engine.rebuilding.rebuild_account(100) == ""
    # What belongs to no account at all is for the rebuild of the partition.
    assert store.zrem(f"{tag}triggers:{BTC}:floor", "777") == 1
    assert store.zrem(f"{tag}triggers:{ETH}:ceiling", "778") == 1
    assert _state(store, partitions) == untouched
    assert store.hgetall(f"{tag}marker") == marker
    assert (await buy(engine, 1, "0.01", "50000")).final


async def test_retry_after_a_rebuild_is_answered_byte_for_byte(engine: Engine, store: redis.Redis) -> None:
    await _trade(engine)
    answers = {name: store.get(name) for name in store.scan_iter("idempotency:*")}
    assert len(answers) == 21
    store.flushall()
    await engine.rebuilding.rebuild()
    assert {name: store.get(name) for name in store.scan_iter("idempotency:*")} == answers
    replay = await buy(engine, 1, "0.3", "50000.5", key="long")
    assert replay.replayed
    assert (
        json.dumps(replay.result, sort_keys=True, separators=(",", ":")) == answers["idempotency:1:long"].split("\n")[2]
    )


async def test_event_ids_rise_over_every_rebuild(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(partitions=2)
    ids = []
    for _ in range(4):
        ids += [(await deposit(engine, account_id, "1")).event_id for account_id in (1, 1, 2, 2)]
        await engine.rebuilding.rebuild()
    assert len(set(ids)) == len(ids)
    disordered = """
        select count(*) from events as one join events as later using (account_id)
        where one.n < later.n and one.event_id >= later.event_id
    """
    assert query(disordered) == [(0,)]
    assert [event_id for (event_id,) in query("select event_id from events where account_id = 1 order by n")] == [
        event_id for at, event_id in enumerate(ids) if at % 4 < 2
    ]


async def test_every_opening_is_written_down(make_engine: MakeEngine, store: redis.Redis, query: Query) -> None:
    engine = await make_engine(partitions=2)
    await deposit(engine, 1, "1")
    await engine.rebuilding.rebuild([1])
    run_id = store.info("server")["run_id"]
    rows = query("select partition, partitions, run_id, accounts, loaded from openings order by epoch, partition")
    assert rows == [(0, 2, run_id, 0, 0), (1, 2, run_id, 0, 0), (1, 2, run_id, 1, 1)]
    epochs = [epoch for (epoch,) in query("select epoch from openings order by epoch")]
    assert store.hget("{p1}:marker", "epoch") == str(epochs[-1])


# --- marks ---


async def test_marks_come_back_as_stale_and_the_first_new_price_makes_everything_normal(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await _trade(engine)
    await engine.mark_records.save()
    before = {account_id: await engine.margin.account_margin(account_id) for account_id in (1, 5)}
    store.flushall()
    await engine.rebuilding.rebuild()
    assert {store.hget(f"{{p{number}}}:mark_stamps", BTC) for number in range(3)} == {"0"}
    for account_id, margin in before.items():
        assert await engine.margin.account_margin(account_id) == margin
    with pytest.raises(StaleMarkPriceError):
        await buy(engine, 1, "0.01", "50000")
    with pytest.raises(StaleMarkPriceError):
        await withdraw(engine, 1, "1")
    assert (await sell(engine, 1, "0.1", "50000")).final
    for symbol, price in SYMBOLS.items():
        await mark(engine, price, symbol)
    assert (await buy(engine, 1, "0.1", "50000")).final
    assert (await withdraw(engine, 1, "1")).final


async def test_state_after_a_rebuild_of_an_emptied_redis_and_the_first_prices_is_that_from_before(
    engine: Engine, store: redis.Redis
) -> None:
    await _trade(engine)
    await engine.mark_records.save()
    before = _state(store, 1)
    store.flushall()
    await engine.rebuilding.rebuild()
    # On stale marks no price is safe, so that every holder is looked at as soon as there is a new one.
    assert {score for _, score in store.zrange(f"triggers:{BTC}:floor", 0, -1, withscores=True)} == {float("inf")}
    for symbol, price in SYMBOLS.items():
        await mark(engine, price, symbol)
    after = _state(store, 1)
    for state in (before, after):
        stamp = state["mark_stamps"][BTC]
        assert state.pop("mark_times")[BTC] == f"{stamp}:{stamp}"
    assert int(after.pop("mark_stamps")[BTC]) > int(before.pop("mark_stamps")[BTC])
    assert after == before


async def test_mark_that_redis_has_older_than_history_comes_back_as_stale(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    old = {name: store.hgetall(name) for name in ("mark_prices", "mark_stamps")}
    await mark(engine, "60000")
    await engine.mark_records.save()
    for name, fields in old.items():
        store.hset(name, mapping=fields)
    store.hset("marker", "run_id", "another")
    await engine.opening.open()
    assert (store.hget("mark_prices", BTC), store.hget("mark_stamps", BTC)) == ("60000", "0")


async def test_mark_that_is_newer_than_what_history_keeps_stays_fresh(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    await engine.mark_records.save()
    await mark(engine, "60000")
    stamp = store.hget("mark_stamps", BTC)
    await engine.rebuilding.rebuild()
    assert (store.hget("mark_prices", BTC), store.hget("mark_stamps", BTC)) == ("60000", stamp)


# --- what history refuses or has lost ---


def _leave_pending(store: redis.Redis, event: StoredEvent, account_id: int) -> None:
    """Put an event on a pending list, as a commit would have, with all that the commit writes."""
    store.rpush(f"pending:{account_id}", f"{event.event_id} {event.body}")
    body = json.loads(event.body)
    store.zadd("pending", {str(account_id): body["at_us"]})
    store.hset("balances", str(account_id), body["balance"])
    store.hset("versions", str(account_id), f"{body['n']}:{event.event_id}")
    store.set(f"idempotency:{account_id}:{body['key']}", f"{event.event_id}\n-\n{{}}", ex=1000)


@pytest.mark.parametrize("rebuild", [True, False])
async def test_account_whose_event_history_refuses_is_kept_as_it_is_and_the_others_are_loaded(
    engine: Engine, store: redis.Redis, rebuild: bool
) -> None:
    await deposit(engine, 2, "10")
    (unstorable,) = chain(1, 1, subject="no text in PostgreSQL holds \0")
    _leave_pending(store, unstorable, 1)
    store.hset("balances", "2", "11")
    kept = {name: value for name, value in _state(store, 1).items() if ":1" in name}
    store.hset("marker", "run_id", "another")
    report = await engine.opening.open(rebuild=[0] if rebuild else ())
    assert (report.complete, report.opened, report.kept, report.loaded) == (True, [0], 1, int(rebuild))
    assert {name: value for name, value in _state(store, 1).items() if ":1" in name} == kept
    assert store.hgetall("balances") == {"1": "1", "2": "10" if rebuild else "11"}
    with pytest.raises(EventsBlockedError):
        await engine.rebuilding.rebuild_account(1)
    assert (await deposit(engine, 2, "1")).final


async def test_rebuild_takes_history_for_right_where_an_opening_refuses(
    engine: Engine, store: redis.Redis, settings: Settings
) -> None:
    await deposit(engine, 1, "10", key="kept")
    version = store.hget("versions", "1")
    await deposit(engine, 1, "20", key="lost")
    with connect(settings) as connection:
        connection.execute("delete from events where n = 2")
        connection.execute(
            "update accounts set n = 1, event_id = %s, balance = 10, chain_hash = (select hash from events)",
            [version.partition(":")[2]],
        )
    store.delete("marker")
    with pytest.raises(HistoryLostError):
        await engine.opening.open()
    await engine.rebuilding.rebuild()
    assert store.hget("balances", "1") == "10"
    assert not store.exists("idempotency:1:lost")
    assert (await deposit(engine, 1, "10", key="kept")).replayed
    assert not (await deposit(engine, 1, "20", key="lost")).replayed


# --- while others trade ---


class _Crowd:
    """Clients that trade on accounts of their own and on one that all share, and what they were told."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.refused = 0
        self.unexpected: list[BaseException] = []
        self.over = asyncio.Event()
        self.moved = asyncio.Condition()

    async def client(self, number: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            account_id = number if count % 4 else 100
            key = f"{number}-{count}"
            asked = False
            while not asked:
                asked = await self._ask(account_id, key)

    async def _ask(self, account_id: int, key: str) -> bool:
        """Deposit until it is known to be done, with the same key."""
        try:
            outcome = await deposit(self._engine, account_id, "1", key=key)
        except StateNotLoadedError:
            self.refused += 1
            return self.over.is_set()
        except ContentionError:
            return False
        except MarginError as error:
            self.unexpected.append(error)
            return True
        if outcome.final:
            self.acknowledged[key] = (account_id, outcome.event_id)
            async with self.moved:
                self.moved.notify_all()
        return outcome.final


@contextlib.asynccontextmanager
async def _crowd(engine: Engine) -> AsyncIterator[_Crowd]:
    crowd = _Crowd(engine)
    clients = [asyncio.create_task(crowd.client(number)) for number in range(1, CLIENTS + 1)]
    try:
        yield crowd
    finally:
        crowd.over.set()
        await asyncio.gather(*clients)


async def _reach(crowd: _Crowd, count: int) -> None:
    async with crowd.moved:
        await crowd.moved.wait_for(lambda: len(crowd.acknowledged) >= count)


async def _check_nothing_lost_or_doubled(engine: Engine, store: redis.Redis, query: Query, crowd: _Crowd) -> None:
    assert crowd.unexpected == []
    assert (await engine.drain.drain()).waiting_accounts == 0
    events = query("select account_id, key, event_id from events")
    assert len({(account_id, key) for account_id, key, _ in events}) == len(events)
    stored = {key: (account_id, event_id) for account_id, key, event_id in events}
    assert crowd.acknowledged.items() <= stored.items()
    balances = dict(query("select account_id::text, count(*)::text from events group by account_id"))
    assert store.hgetall("balances") == balances
    assert dict(query("select account_id::text, balance::text from accounts")) == balances
    heads = query("select account_id::text, n || ':' || event_id from accounts")
    assert store.hgetall("versions") == dict(heads)
    # Every chain followed from its first event, and the ledger.
    followed = await engine.reconcile.reconcile()
    assert (followed.complete, followed.events, followed.differences) == (True, len(events), [])


@pytest.mark.parametrize("history", ["inline", "drain"])
@pytest.mark.parametrize("what", ["everything", "account"])
async def test_rebuild_under_load_loses_and_doubles_nothing(
    make_engine: MakeEngine, store: redis.Redis, query: Query, what: str, history: str
) -> None:
    engine = await make_engine(postgres_connections_max=40, history=history)
    operator = await make_engine(history=history)
    reports: list[OpeningReport | str] = []
    async with _crowd(engine) as crowd:
        for number in range(5):
            await _reach(crowd, 100 + 100 * number)
            if what == "account":
                reports.append(await operator.rebuilding.rebuild_account(100))
            else:
                reports.append(await operator.rebuilding.rebuild())
        await _reach(crowd, len(crowd.acknowledged) + 100)
    assert len(reports) == 5
    assert crowd.refused > 0
    await _check_nothing_lost_or_doubled(engine, store, query, crowd)


# --- deaths and take-overs ---


class _PausedHistory(PostgresClient):
    """Does something else before a page of accounts is read, once."""

    watch: Callable[[], Awaitable[object]] | None = None

    async def accounts(
        self, after_account_id: int, limit: int, *, partition: int = 0, partitions: int = 1
    ) -> list[HistoryAccount]:
        rows = await super().accounts(after_account_id, limit, partition=partition, partitions=partitions)
        watch, self.watch = self.watch, None
        if watch is not None:
            await watch()
        return rows


class _PausedEngine(Engine):
    @cached_property
    def _opening_history(self) -> _PausedHistory:
        return _PausedHistory(self.settings)


async def test_opener_whose_lock_died_with_its_session_can_neither_load_nor_finish(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "10")
    first = await make_engine(opened=False, kind=_PausedEngine)
    after_the_second: list[dict[str, Any]] = []

    async def lose_the_lock() -> None:
        ended = query(
            "select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' and objid = %(lock)s",
            lock=7_305_461_209 % 2**32,
        )
        assert ended == [(True,)]
        assert (await engine.rebuilding.rebuild()).opened == [0]
        await deposit(engine, 1, "5")
        after_the_second.append(hot_state(store))

    first._opening_history.watch = lose_the_lock
    with pytest.raises(StateNotLoadedError, match="taken over"):
        await first.rebuilding.rebuild()
    assert [hot_state(store)] == after_the_second
    assert store.hget("balances", "1") == "15"


async def test_rebuild_that_broke_off_on_real_stores_goes_on_after_the_last_page(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    async with engine.history_store.reserve() as writer:
        await writer.append([event for account_id in range(10, 3501, 10) for event in chain(account_id, 1)], READ_AT)
    store.flushall()
    calls = iter([True, True, True, False])
    first = await engine.rebuilding.rebuild(keep_going=lambda: next(calls))
    assert (first.complete, first.opened) == (False, [])
    assert store.hlen("balances") == first.loaded < 350
    with pytest.raises(StateNotLoadedError):
        await deposit(engine, 10, "1")
    second = await engine.rebuilding.rebuild()
    assert (second.complete, first.loaded + second.loaded, second.opened) == (True, 350, [0])
    assert not store.exists("opening")
    assert store.hlen("balances") == 350


async def test_search_for_false_keys_that_broke_off_on_real_stores_goes_on_where_it_was(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "10", key="true")
    for number in range(5000):
        store.set(f"idempotency:1:{number}", "9\nhash\n{}")
    asked = [iter([True, True, True]) for _ in range(2)]
    first = await engine.rebuilding.rebuild(keep_going=lambda: next(asked[0], False))
    assert (first.complete, first.opened) == (False, [])
    left = len(store.keys("idempotency:*"))
    assert 1 < left < 5001
    assert store.hget("opening", "sweep_cursor") not in {None, "0"}
    noted = store.hget("opening", "sweep_cursor")
    second = await engine.rebuilding.rebuild(keep_going=lambda: next(asked[1], False))
    assert (second.complete, second.opened) == (False, [])
    assert store.hget("opening", "sweep_cursor") != noted
    assert len(store.keys("idempotency:*")) < left
    third = await engine.rebuilding.rebuild()
    assert (third.complete, third.opened) == (True, [0])
    assert store.keys("idempotency:*") == ["idempotency:1:true"]


async def test_opening_can_be_repeated_at_once(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "10")
    for _ in range(20):
        assert (await engine.rebuilding.rebuild()).complete


# --- one script at a time ---


async def test_scripts_of_an_opening_do_nothing_under_another_guard(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "10", key="k")
    layout = engine._layout(1)
    async with engine.history_store.reserve() as writer:
        row = await writer.account(1)
        assert row is not None
        version = {1: row.version}
        before = hot_state(store)
        (load,) = await layout.healing.loads([row], version, await layout.market.market(), writer, guard="nobody's")
        assert await layout.accounts.load(load) is Loaded.TAKEN_OVER
    assert (await layout.accounts.drop(1, 0, "nobody's")).name == "TAKEN_OVER"
    _, keys = await layout.accounts.remembered_keys(0, "0")
    assert [(key.account_id, key.key) for key in keys] == [(1, "k")]
    assert await layout.accounts.restore_keys(load, load.keys) is None
    assert await layout.accounts.forget_keys(0, keys, "nobody's") is None
    assert await layout.market.restore_marks(0, {BTC: (await _a_mark(engine))}) == 0
    assert {name: value for name, value in hot_state(store).items() if not name.startswith("mark_")} == before


async def test_triggers_that_were_reckoned_before_a_rebuild_are_not_put_in_place_after_it(
    engine: Engine, store: redis.Redis
) -> None:
    """An evaluation read a position that was tampered with; the version is the same after the rebuild."""
    await _trade(engine)
    untouched = _state(store, 1)
    store.hset(f"position:1:{BTC}", "quantity", "0.0001")
    view = await engine.accounts.read(1)
    assert view.account is not None
    await engine.rebuilding.rebuild()
    with pytest.raises(StateNotLoadedError, match="loaded anew"):
        await engine.accounts.anchor(Anchor(1, view.version, triggers(view.account, view.market)), epoch=view.epoch)
    assert _state(store, 1) == untouched


async def test_trade_decided_before_a_rebuild_of_its_account_is_decided_anew(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    await _trade(engine)
    store.hset("balances", "9", "1000000")
    engine.before_commit(lambda: engine.rebuilding.rebuild_account(9))
    with pytest.raises(InsufficientMarginError):
        await buy(engine, 9, "10", "50000")
    assert store.hget("balances", "9") == "20000"


async def _a_mark(engine: Engine) -> Any:
    await mark(engine, "50000")
    return dataclasses.replace((await engine.market.market()).marks[BTC], price=Decimal(1), stamp_us=2**60)


async def test_hold_is_ended_by_whoever_made_it_only(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "10")
    accounts = engine.accounts
    first = await accounts.hold(1, 60)
    second = await accounts.hold(1, 60)
    assert int(second) > int(first)
    await accounts.release(1, first)
    with pytest.raises(StateNotLoadedError, match="being rebuilt"):
        await deposit(engine, 1, "1")
    await accounts.release(1, second)
    assert (await deposit(engine, 1, "1")).final
    short = await accounts.hold(1, 0.05)
    with pytest.raises(StateNotLoadedError):
        await deposit(engine, 1, "1")
    await _until(lambda: _now_us(store) > int(short))
    assert (await deposit(engine, 1, "1")).final


async def test_hold_that_was_ended_holds_at_no_time_and_is_told_from_the_next(
    engine: Engine, store: redis.Redis
) -> None:
    await deposit(engine, 1, "10")
    accounts = engine.accounts
    # By a clock that goes back after it, any moment may lie ahead.
    ended = []
    for _ in range(2):
        await accounts.release(1, await accounts.hold(1, 600))
        ended.append(store.hget("holds", "1"))
        assert not ended[-1].isdecimal()
        assert (await accounts.read(1)).hold == ended[-1]
        assert (await deposit(engine, 1, "1")).final
    assert len(set(ended)) == 2
    held = await accounts.hold(1, 600)
    with pytest.raises(StateNotLoadedError, match="being rebuilt"):
        await deposit(engine, 1, "1")
    store.hset("holds", "1", int(held) + 10**15)
    shorter = await accounts.hold(1, 60)
    assert int(shorter) < int(held)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.to_thread(lambda: None)


def _now_us(store: redis.Redis) -> int:
    seconds, microseconds = store.time()
    return int(seconds) * 1_000_000 + int(microseconds)
