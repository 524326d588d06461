"""A preview on real stores: one round trip to Redis, none to PostgreSQL, and nothing written."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.order import Order
from margin.domain.position import Side
from tests.actions import ALICE, BTC, buy, deposit, mark
from tests.proxy import Proxy

if TYPE_CHECKING:
    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine


def _dump(store: redis.Redis) -> dict[object, object]:
    return {name: store.dump(name) for name in store.scan_iter()}


async def test_preview_is_one_round_trip_and_writes_nothing(
    engine: Engine, make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")
    await buy(engine, 1, "1", "50000")
    async with (
        Proxy(settings.redis_host, settings.redis_port) as redis_proxy,
        Proxy(settings.postgres_host, settings.postgres_port) as postgres_proxy,
    ):
        proxied = await make_engine(opened=False, redis_port=redis_proxy.port, postgres_port=postgres_proxy.port)
        order = Order(1, BTC, Side.BUY, Decimal(1), Decimal(50000))
        await proxied.previews.preview(order)
        before, kept = redis_proxy.round_trips, _dump(store)
        foreseen = await proxied.previews.preview(order)
        assert redis_proxy.round_trips - before == 1
        assert postgres_proxy.round_trips == 0
        assert _dump(store) == kept
    trade = await engine.trading.trade(order, key=None, caller=ALICE)
    assert foreseen.result == trade.result
