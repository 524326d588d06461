"""What a trade costs, next to its floor: the same round trips (three scripts, one durable insert) with nothing in them.

Beside it a trade that Redis alone acknowledges, and what the drain takes for each event of many.

    python -m tests.benchmarks --only trade
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from decimal import Decimal
from typing import TYPE_CHECKING

import psycopg

from margin.caller import NOBODY
from margin.domain.order import Order
from margin.domain.position import Side
from margin.runtime import Engine
from tests.benchmarks.servers import exchanges
from tests.benchmarks.turns import median_ms
from tests.database import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin.config import Settings

SYMBOL = "BTC-PERP"
MARK = Decimal(50_000)
TRADES = 400
DRAINED = 4_000


def _orders() -> Iterator[Order]:
    """Buy and sell in turns, so that the position stays small."""
    for side in itertools.cycle((Side.BUY, Side.SELL)):
        yield Order(1, SYMBOL, side, Decimal("0.1"), MARK)


async def _bench_trade(engine: Engine) -> None:
    """A trade and its floor."""
    await engine.marks.set_marks({SYMBOL: MARK})
    await engine.funds.deposit(1, Decimal(10**9), key=None, caller=NOBODY)
    redis = engine.accounts.redis
    orders = _orders()

    async def trade() -> None:
        await engine.trading.trade(next(orders), key=None, caller=NOBODY)

    async with await psycopg.AsyncConnection.connect(
        host=engine.settings.postgres_host,
        port=engine.settings.postgres_port,
        user=OWNER,
        dbname=engine.settings.postgres_database,
        autocommit=True,
    ) as postgres:
        await postgres.execute("create table floor (n int)")

        async def floor() -> None:
            for _ in range(3):
                await redis.eval("return 1", 1, "marker")
            await postgres.execute("insert into floor values (1)")

        await median_ms(20, trade, floor)
        trade_ms, floor_ms = await median_ms(TRADES, trade, floor)
    ratio = f"{trade_ms / floor_ms:5.2f} x its round trips with nothing in them ({floor_ms:.3f} ms)"
    print(f"trade                         {trade_ms:8.3f} ms   {ratio}")


async def _bench_lean_trade(engine: Engine, lean: Engine) -> None:
    """A trade that history acknowledges next to one that Redis alone does, and the drain of those."""
    orders = _orders()

    async def trade() -> None:
        await engine.trading.trade(next(orders), key=None, caller=NOBODY)

    async def lean_trade() -> None:
        await lean.trading.trade(next(orders), key=None, caller=NOBODY)

    (trade_ms,) = await median_ms(TRADES, trade)
    (lean_ms,) = await median_ms(TRADES, lean_trade)
    print(f"trade, HISTORY=drain          {lean_ms:8.3f} ms   {lean_ms / trade_ms:5.2f} x one with HISTORY=inline")
    await lean.drain.drain()
    for account_id in range(2, 2 + DRAINED // 2):
        for amount in (1, 2):
            await lean.funds.deposit(account_id, Decimal(amount), key=None, caller=NOBODY)
    started = time.perf_counter()
    report = await lean.drain.drain()
    drained_ms = (time.perf_counter() - started) * 1000 / report.stored
    print(f"event in a drain of {report.stored:>6}    {drained_ms:8.3f} ms   {drained_ms / trade_ms:5.2f} x a trade")


async def _bench(settings: Settings) -> None:
    engine = Engine(settings)
    lean = Engine(dataclasses.replace(settings, history="drain"))
    try:
        await engine.opening.open()
        await _bench_trade(engine)
        await _bench_lean_trade(engine, lean)
    finally:
        await engine.close()
        await lean.close()


def main() -> None:
    """Start servers, measure, stop them."""
    with exchanges(1) as (settings,):
        asyncio.run(_bench(settings))
