"""Servers that stop answering without closing anything: a clear error in bounded time, and recovery by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import PostgresUnavailableError, RedisUnavailableError
from margin_local.servers import EmbeddedValkey
from tests import acl
from tests.actions import buy, deposit, mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import redis

    from margin_local.servers import EmbeddedPostgres
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

PROMISED_S = 3.0
CONNECTIONS = 8


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
    directory = server_directory / "valkey-frozen"
    server = EmbeddedValkey(directory, fsync="no", options=acl.server_options(directory))
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


@contextlib.asynccontextmanager
async def _neighbours() -> AsyncIterator[list[bytes]]:
    """Open a connection to an echo every few milliseconds, use it and keep it; yields what the echo answered."""
    answers: list[bytes] = []
    kept: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)
        writer.write(await reader.read(1))

    async def knock(port: int) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            kept.append(writer)
            writer.write(b"?")
            answers.append(await asyncio.wait_for(reader.read(1), 1))
            await asyncio.sleep(0.005)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    knocking = asyncio.ensure_future(knock(server.sockets[0].getsockname()[1]))
    try:
        yield answers
        assert not knocking.done()
    finally:
        knocking.cancel()
        await asyncio.gather(knocking, return_exceptions=True)
        for writer in kept:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


@contextlib.contextmanager
def _complaints() -> Iterator[list[dict[str, Any]]]:
    """Collect what the event loop would log: errors that nobody awaits."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield complaints
    finally:
        loop.set_exception_handler(None)


async def test_statements_that_run_into_their_deadline_at_once_leave_every_other_connection_alone(
    make_engine: MakeEngine, query: Query
) -> None:
    opener = await make_engine()
    await mark(opener, "50000")
    for account_id in range(1, 2 * CONNECTIONS + 1):
        await deposit(opener, account_id, "100000")
    engine = await make_engine(
        opened=False, app_name="frozen", postgres_timeout_s=0.4, postgres_connections_max=CONNECTIONS
    )

    async def trade(account_ids: range) -> list[bool]:
        """Trade for all accounts at once; which of the trades are final."""
        trades = [asyncio.ensure_future(buy(engine, account_id, "0.1", "50000")) for account_id in account_ids]
        _, hung = await asyncio.wait(trades, timeout=PROMISED_S)
        for one in hung:
            one.cancel()
        assert not hung
        return [one.result().final for one in trades]

    first, second = range(1, CONNECTIONS + 1), range(CONNECTIONS + 1, 2 * CONNECTIONS + 1)
    assert all(await trade(first))
    pids = [pid for (pid,) in query("select pid from pg_stat_activity where application_name = 'frozen'")]
    assert len(pids) == CONNECTIONS
    with frozen(*pids), _complaints() as complaints:
        async with _neighbours() as answers:
            # The first take the frozen connections; the second wait for those to come back, and open new ones.
            on_frozen = asyncio.ensure_future(trade(first))
            await asyncio.sleep(0.05)
            on_new = asyncio.ensure_future(trade(second))
            finals = await asyncio.gather(on_frozen, on_new)
            await engine.margin.account_margin(1)
        assert [set(final) for final in finals] == [{False}, {True}]
        assert set(answers) == {b"?"}
        async with asyncio.timeout(PROMISED_S), contextlib.AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):
                await stack.enter_async_context(engine.history_store.reserve())
    assert complaints == []
    assert (await opener.drain.drain()).waiting_accounts == 0
    assert all(await trade(first))
    assert query("select count(*) from trades") == [(4 * CONNECTIONS,)]
