"""What a trade costs: counted where it passes, over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import InsufficientMarginError
from tests.actions import buy, deposit, mark, sell
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine


async def test_trade_is_three_scripts_and_nothing_else_to_redis(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port)
        await deposit(engine, 1, "100000")
        await mark(engine, "50000")
        await buy(engine, 1, "0.1", "50000")
        store.config_resetstat()
        before = proxy.round_trips
        await buy(engine, 1, "0.1", "50000")
        statistics = store.info("commandstats")
        assert statistics["cmdstat_evalsha"]["calls"] == 3
        assert "cmdstat_eval" not in statistics
        assert proxy.round_trips - before == 3


async def test_trade_is_one_round_trip_to_postgresql(make_engine: MakeEngine, settings: Settings) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        await deposit(engine, 1, "100000")
        await mark(engine, "50000")
        before = proxy.round_trips
        assert (await buy(engine, 1, "0.1", "50000")).final
        assert proxy.round_trips - before == 1


async def test_all_rows_of_an_event_are_of_one_transaction(
    engine: Engine, query: Callable[..., list[tuple[Any, ...]]]
) -> None:
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")
    await buy(engine, 1, "1", "50000")
    await mark(engine, "60000")
    closed = await sell(engine, 1, "0.5", "60000")
    transactions = query(
        """
        select xmin::text from events where event_id = %(id)s
        union select xmin::text from accounts where event_id = %(id)s
        union select xmin::text from trades where id = %(id)s
        union select xmin::text from ledger_lines where event_id = %(id)s
        """,
        id=closed.event_id,
    )
    assert len(transactions) == 1


async def test_refused_trade_writes_nothing_and_is_one_script(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "100")
    await mark(engine, "50000")
    before = hot_state(store)
    store.config_resetstat()
    with pytest.raises(InsufficientMarginError, match="Required: 10000, Available: 100"):
        await buy(engine, 1, "1", "50000")
    assert store.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert hot_state(store) == before
