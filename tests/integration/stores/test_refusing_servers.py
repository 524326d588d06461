"""Servers that answer, and refuse: the engine says so in its own words, writes nothing half, and goes on by itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from margin.errors import PostgresUnavailableError, RedisRefusedError
from tests.actions import buy, deposit, mark, withdraw
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

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
    with psycopg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        dbname=settings.postgres_database,
        autocommit=True,
    ) as connection:
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


async def test_trade_that_a_read_only_postgresql_does_not_take_waits_and_is_stored_when_it_does(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    await _ready(await make_engine())
    engine = await make_engine(opened=False)
    with _read_only(settings):
        first = await buy(engine, 1, "0.1", "50000", key="mine")
        assert not first.final
        assert not (await buy(engine, 1, "0.1", "50000", key="mine")).final
        assert store.llen("pending:1") == 1
        report = await engine.drain.drain()
        assert (report.stored, report.waiting_accounts) == (0, 1)
    # The very same engine: it has not kept the connections that were refused on.
    report = await engine.drain.drain()
    assert (report.stored, report.waiting_accounts) == (1, 0)
    assert (await buy(engine, 1, "0.2", "50000")).final
    assert query("select min(id), count(*) from trades") == [(first.event_id, 2)]


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
