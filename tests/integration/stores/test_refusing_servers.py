"""Servers that answer, and refuse: the engine says so in its own words, writes nothing half, and goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from margin.errors import PostgresUnavailableError, RedisRefusedError
from tests.actions import buy, deposit, mark, withdraw
from tests.database import connect
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

PATIENCE_S = 10.0
_WAITING = "select from pg_stat_activity where application_name = 'margin' and state = 'active'"

WRITES: dict[str, Callable[[Engine], Awaitable[object]]] = {
    "trade": lambda engine: buy(engine, 1, "0.1", "50000", key="mine"),
    "deposit": lambda engine: deposit(engine, 1, "1"),
    "first deposit": lambda engine: deposit(engine, 2, "1"),
    "withdrawal": lambda engine: withdraw(engine, 1, "1"),
    "mark price": lambda engine: mark(engine, "50001"),
}


async def _ready(engine: Engine) -> None:
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")


# --- PostgreSQL


@contextlib.contextmanager
def _altered(settings: Settings, statement: str, undo: str) -> Iterator[None]:
    """Change the test's database, and change it back whatever happens, on one connection from before."""
    with connect(settings) as connection:
        connection.execute(statement)
        try:
            yield
        finally:
            connection.execute(undo)


def _read_only(settings: Settings) -> contextlib.AbstractContextManager[None]:
    """Make new connections what those to a replica are."""
    name = settings.postgres_database
    return _altered(
        settings,
        f"alter database {name} set default_transaction_read_only = on",
        f"alter database {name} reset default_transaction_read_only",
    )


@pytest.mark.parametrize("write", ["trade", "deposit", "first deposit", "withdrawal"])
async def test_read_only_postgresql_is_unavailable_before_anything_is_written(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query, write: str
) -> None:
    await _ready(await make_engine())
    engine = await make_engine(opened=False)
    before = hot_state(store)
    with _read_only(settings):
        for _ in range(2):
            with pytest.raises(PostgresUnavailableError, match="read-only"):
                await WRITES[write](engine)
        assert hot_state(store) == before
    await WRITES[write](engine)
    assert not store.exists("pending")
    assert query("select count(*) from events") == [(2,)]


async def test_trade_on_a_connection_whose_postgresql_became_read_only_waits_and_the_next_is_refused(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    await _ready(engine)
    await asyncio.gather(*(deposit(engine, account_id, "100000") for account_id in range(2, 6)))
    assert len(engine.history_store._pool._idle) > 1
    with _read_only(settings):
        for connection in engine.history_store._pool._idle:
            await connection.execute("set default_transaction_read_only = on")
        first = await buy(engine, 1, "0.1", "50000", key="mine")
        assert not first.final
        for account_id in range(2, 6):
            with pytest.raises(PostgresUnavailableError, match="read-only"):
                await buy(engine, account_id, "0.1", "50000")
        assert list(store.scan_iter("pending:*")) == ["pending:1"]
    assert (await engine.drain.drain()).stored == 1
    assert (await buy(engine, 2, "0.2", "50000")).final
    assert query("select min(id), count(*) from trades") == [(first.event_id, 2)]


async def test_session_that_refuses_to_write_after_it_read_leaves_no_kept_connection_beside_it(
    make_engine: MakeEngine, settings: Settings
) -> None:
    engine = await make_engine()
    await asyncio.gather(*(deposit(engine, account_id, "1") for account_id in range(1, 5)))
    pool = engine.history_store._pool
    async with pool.lease() as lease:
        await lease.fetch("set default_transaction_read_only = on")
        assert pool._idle
        with pytest.raises(PostgresUnavailableError):
            await lease.fetch("select nextval('epochs')")
        assert not pool._idle
    with _read_only(settings), pytest.raises(PostgresUnavailableError, match="read-only"):
        await deposit(engine, 1, "1")


async def test_row_that_another_session_locks_leaves_the_trade_waiting_and_no_statement_behind(
    engine: Engine, settings: Settings, query: Query
) -> None:
    await _ready(engine)
    with connect(settings, autocommit=False) as forgotten:
        forgotten.execute("select from accounts for update")
        for _ in range(2):
            assert not (await deposit(engine, 1, "1")).final
        async with asyncio.timeout(PATIENCE_S):
            while query(_WAITING):  # noqa: ASYNC110 - the server knows, and tells nobody
                await asyncio.sleep(0.05)
        forgotten.rollback()
    assert (await engine.drain.drain()).stored == 2


@pytest.mark.parametrize(
    ("setting", "statement"),
    [("lock_timeout", "select from accounts for update"), ("statement_timeout", "select pg_sleep(10)")],
)
async def test_statement_that_the_server_gives_up_is_unavailable(
    engine: Engine, settings: Settings, setting: str, statement: str
) -> None:
    await _ready(engine)
    with connect(settings, autocommit=False) as other:
        other.execute("select from accounts for update")
        async with engine.history_store._pool.lease() as lease:
            await lease.fetch(f"set {setting} = '100ms'")
            with pytest.raises(PostgresUnavailableError) as raised:
                await lease.fetch(statement)
            assert isinstance(raised.value.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled)
            assert lease.connection.closed
        other.rollback()
    assert (await deposit(engine, 1, "1")).final


async def test_connection_that_is_known_to_write_costs_no_round_trip_more(
    make_engine: MakeEngine, settings: Settings
) -> None:
    await make_engine()
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        connection = await psycopg.AsyncConnection.connect(
            host=proxy.host,
            port=proxy.port,
            user=settings.postgres_user,
            dbname=settings.postgres_database,
            sslmode=settings.postgres_sslmode,
            autocommit=True,
        )
        plain = proxy.round_trips
        engine = await make_engine(opened=False, postgres_port=proxy.port)
        async with engine.history_store.reserve():
            assert proxy.round_trips - plain == plain
        await connection.close()


async def test_health_names_a_read_only_postgresql(make_engine: MakeEngine, settings: Settings) -> None:
    await make_engine()
    engine = await make_engine(opened=False)
    with _read_only(settings), pytest.raises(PostgresUnavailableError, match="read-only"):
        await engine.health.check()


async def test_opening_on_a_read_only_postgresql_leaves_the_state_closed(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    await _ready(await make_engine())
    store.delete("marker")
    engine = await make_engine(opened=False)
    with _read_only(settings), pytest.raises(PostgresUnavailableError):
        await engine.opening.open()
    assert not store.exists("marker")
    assert (await engine.opening.open()).opened == [0]


async def test_postgresql_without_the_table_of_events_leaves_the_trade_waiting(
    engine: Engine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    await _ready(engine)
    with _altered(settings, "alter table events rename to elsewhere", "alter table elsewhere rename to events"):
        outcome = await buy(engine, 1, "0.1", "50000")
        assert not outcome.final
        assert store.llen("pending:1") == 1
    assert (await engine.drain.drain()).stored == 1
    assert query("select id from trades") == [(outcome.event_id,)]


async def test_history_that_postgresql_refuses_to_read_is_unavailable(engine: Engine, settings: Settings) -> None:
    await _ready(engine)
    with (
        _altered(settings, "alter table trades rename to elsewhere", "alter table elsewhere rename to trades"),
        pytest.raises(PostgresUnavailableError),
    ):
        await engine.history.trades(1)
    assert (await engine.history.trades(1)).rows == []


# --- Redis


@contextlib.contextmanager
def _configured(store: redis.Redis, name: str, value: str, usual: str) -> Iterator[None]:
    store.config_set(name, value)
    try:
        yield
    finally:
        store.config_set(name, usual)


@pytest.mark.parametrize(
    ("setting", "refusing", "usual"),
    [("min-replicas-to-write", "1", "0"), ("maxmemory", "1", "0")],
    ids=["too few replicas", "out of memory"],
)
@pytest.mark.parametrize("write", WRITES)
async def test_redis_that_refuses_to_write_is_unavailable_and_nothing_is_written(
    engine: Engine, store: redis.Redis, query: Query, write: str, setting: str, refusing: str, usual: str
) -> None:
    await _ready(engine)
    before = hot_state(store)
    with _configured(store, setting, refusing, usual):
        with pytest.raises(RedisRefusedError):
            await WRITES[write](engine)
        assert hot_state(store) == before
        assert (await engine.margin.account_margin(1)).account.balance == 100000
    assert query("select count(*) from events") == [(1,)]
    await WRITES[write](engine)
    assert not store.exists("pending")
