"""Kept connections that died while nobody looked, as in an execution environment that was frozen between requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.actions import buy, deposit, mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import redis

    from margin.runtime import Engine

    Query = Callable[..., list[tuple[Any, ...]]]

CALLS: dict[str, Callable[[Engine], Awaitable[object]]] = {
    "trade": lambda engine: buy(engine, 1, "0.1", "50000"),
    "deposit": lambda engine: deposit(engine, 1, "1"),
    "mark price": lambda engine: mark(engine, "50001"),
    "margin of an account": lambda engine: engine.margin.account_margin(1),
    "report": lambda engine: engine.report.page(limit=10, cursor=None),
    "scan": lambda engine: engine.scans.scan(),
    "drain": lambda engine: engine.drain.drain(),
    "trade history": lambda engine: engine.history.trades(1),
    "health": lambda engine: engine.health.check(),
    "opening": lambda engine: engine.opening.open(),
}


@pytest.fixture
async def used(engine: Engine) -> Engine:
    """Return an engine that keeps connections of each kind."""
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000")
    await engine.health.check()
    return engine


@pytest.mark.parametrize("name", CALLS)
async def test_call_on_connections_to_redis_that_died_unseen_succeeds(
    used: Engine, store: redis.Redis, name: str
) -> None:
    # Synchronous calls: the event loop does not run, so that nobody sees the connections end.
    store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    store.ping()
    # What must not be sent twice looks at its connections first, after a pause as that of a frozen environment.
    used.market._asked_s -= 60
    await CALLS[name](used)


@pytest.mark.parametrize("name", CALLS)
async def test_call_on_connections_to_postgresql_that_died_unseen_succeeds(
    used: Engine, query: Query, name: str
) -> None:
    ended = query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where application_name = 'margin' and pid <> pg_backend_pid()"
    )
    assert ended
    await CALLS[name](used)


async def test_connections_to_postgresql_that_were_kept_beside_a_dead_one_are_closed_and_not_dropped(
    used: Engine, query: Query
) -> None:
    account_ids = range(2, 6)
    await asyncio.gather(*(deposit(used, account_id, "1") for account_id in account_ids))
    kept = used.history_store._pool._idle
    assert len(kept) > 1
    query("select pg_terminate_backend(%(pid)s, 5000)", pid=kept[-1].info.backend_pid)
    # One that is dropped while it is open warns, and a warning is an error here.
    assert (await deposit(used, 1, "1")).final
