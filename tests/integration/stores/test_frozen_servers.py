"""Servers that stop answering without closing anything: a clear error in bounded time, and recovery by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import PostgresUnavailableError, RedisUnavailableError
from margin_local.servers import EmbeddedValkey
from tests.actions import buy, deposit, mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import redis

    from margin_local.servers import EmbeddedPostgres
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

PROMISED_S = 3.0


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes, and let them go on at the end whatever happens."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def within_promise() -> Iterator[None]:
    started_s = time.monotonic()
    yield
    assert time.monotonic() - started_s < PROMISED_S


@pytest.fixture
def own_valkey(server_directory: Path) -> Iterator[EmbeddedValkey]:
    """Yield a running Valkey that a test may freeze."""
    server = EmbeddedValkey(server_directory / "valkey-frozen", fsync="no")
    server.start()
    yield server
    server.stop()


async def test_frozen_redis_is_unavailable_in_time_and_used_again_when_it_goes_on(
    make_engine: MakeEngine, own_valkey: EmbeddedValkey, query: Query
) -> None:
    engine = await make_engine(redis_port=own_valkey.port)
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    assert own_valkey.pid is not None
    with frozen(own_valkey.pid):
        with within_promise(), pytest.raises(RedisUnavailableError):
            await buy(engine, 1, "0.1", "50000")
        with within_promise(), pytest.raises(RedisUnavailableError):
            await engine.health.check()
    assert (await buy(engine, 1, "0.1", "50000")).final
    await engine.health.check()
    assert query("select count(*) from trades") == [(1,)]
    await engine.close()


async def test_frozen_postgresql_refuses_before_the_commit_where_a_connection_is_needed(
    make_engine: MakeEngine, postgres_server: EmbeddedPostgres, query: Query, store: redis.Redis
) -> None:
    opener = await make_engine()
    await deposit(opener, 1, "10000")
    await mark(opener, "50000")
    engine = await make_engine(opened=False)
    version = store.hget("versions", "1")
    assert postgres_server.pid is not None
    with frozen(postgres_server.pid), within_promise(), pytest.raises(PostgresUnavailableError):
        await buy(engine, 1, "0.1", "50000")
    assert store.hget("versions", "1") == version
    assert not store.exists("pending")
    assert (await buy(engine, 1, "0.1", "50000")).final
    assert query("select count(*) from trades") == [(1,)]


async def test_postgresql_frozen_after_a_connection_was_kept_leaves_the_trade_pending_and_the_drain_stores_it(
    make_engine: MakeEngine, postgres_server: EmbeddedPostgres, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    backends = query("select pid from pg_stat_activity where application_name = 'margin'")
    assert postgres_server.pid is not None
    assert backends
    with frozen(postgres_server.pid, *(pid for (pid,) in backends)):
        with within_promise():
            outcome = await buy(engine, 1, "0.1", "50000", key="mine")
        assert not outcome.final
        assert store.llen("pending:1") == 1
        with within_promise(), pytest.raises(PostgresUnavailableError):
            await engine.health.check()
    report = await engine.drain.drain()
    assert (report.stored, report.waiting_accounts) == (1, 0)
    assert query("select id from trades") == [(outcome.event_id,)]
    replay = await buy(engine, 1, "0.1", "50000", key="mine")
    assert (replay.event_id, replay.final, replay.replayed) == (outcome.event_id, True, True)
