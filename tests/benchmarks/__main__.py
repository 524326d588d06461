"""`make bench`: what the engine costs, as ratios taken in one run on real servers.

- A trade next to its floor: the same round trips (three scripts, one durable insert) with nothing in them.
- A trade that Redis alone acknowledges, and what the drain takes for each event of many.
- A mark price that crosses nobody, with few accounts and with many: it must not grow with accounts. Next to it the scan
  of a calm tick, and one that looks at all accounts, as an engine without an index has to.
- Cold starts and warm invocations of every built function, next to their floors (`cold_start`).

Absolute times depend on the machine and its neighbours; the ratios are what to compare.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from margin import observability
from margin.caller import NOBODY
from margin.config import Settings
from margin.domain.account import Account
from margin.domain.order import Order
from margin.domain.position import Position, Side
from margin.domain.safe_zone import triggers
from margin.ports import AccountLoad
from margin.ports.history import HistoryAccount
from margin.runtime import Engine
from margin_local.servers import EmbeddedPostgres, EmbeddedValkey
from migrate_schema import migrate
from tests.benchmarks import cold_start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SYMBOL = "BTC-PERP"
MARK = Decimal(50_000)
TRADES = 400
MARKS = 400
FEW, MANY = 500, 20_000
DRAINED = 4_000


async def median_ms(times: int, *calls: Callable[[], Awaitable[object]]) -> list[float]:
    """Median time of each call; the calls take turns, so that a slow moment of the machine hits all of them."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(times):
        for samples, call in zip(spent, calls, strict=True):
            started = time.perf_counter()
            await call()
            samples.append((time.perf_counter() - started) * 1000)
    return [statistics.median(samples) for samples in spent]


async def load_accounts(engine: Engine, first: int, last: int) -> None:
    """Put accounts with one long each straight into Redis."""
    market = await engine.market.market()
    for account_id in range(first, last + 1):
        quantity = Decimal(1 + account_id % 7) / 10
        account = Account(account_id, MARK, {SYMBOL: Position(SYMBOL, quantity, quantity * MARK)})
        row = HistoryAccount(f"1:{account_id}", "", account)
        load = AccountLoad(row=row, keys=(), triggers=triggers(account, market), expected_version="")
        await engine.accounts.load(load)


async def bench_trade(engine: Engine) -> None:
    """A trade and its floor."""
    await engine.marks.set_marks({SYMBOL: MARK})
    await engine.funds.deposit(1, Decimal(10**9), key=None, caller=NOBODY)
    redis = engine.accounts.redis
    sides = [Side.BUY, Side.SELL]
    orders = (Order(1, SYMBOL, sides[number % 2], Decimal("0.1"), MARK) for number in range(10**6))

    async def trade() -> None:
        await engine.trading.trade(next(orders), key=None, caller=NOBODY)

    async with await psycopg.AsyncConnection.connect(
        host=engine.settings.postgres_host,
        port=engine.settings.postgres_port,
        user=engine.settings.postgres_user,
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


async def bench_lean_trade(engine: Engine, lean: Engine) -> None:
    """A trade that history acknowledges next to one that Redis alone does, and the drain of those."""
    sides = [Side.BUY, Side.SELL]
    orders = (Order(1, SYMBOL, sides[number % 2], Decimal("0.1"), MARK) for number in range(10**6))

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


async def bench_mark(engine: Engine, sweeping: Engine) -> None:
    """A mark price in a calm tick, with few and with many accounts, a scan, and a sweep of all."""
    prices = (MARK + number % 2 for number in range(10**6))

    async def mark() -> None:
        await engine.marks.set_marks({SYMBOL: next(prices)})

    async def scan() -> None:
        await engine.scans.scan()

    async def sweep() -> None:
        report = await sweeping.scans.scan()
        assert report.swept >= MANY - DRAINED, report

    await load_accounts(engine, DRAINED, DRAINED + FEW)
    (few_ms,) = await median_ms(MARKS, mark)
    await load_accounts(engine, DRAINED + FEW + 1, MANY)
    (many_ms,) = await median_ms(MARKS, mark)
    await scan()
    (scan_ms,) = await median_ms(50, scan)
    (sweep_ms,) = await median_ms(3, sweep)
    print(f"mark price, {FEW:>6} accounts   {few_ms:8.3f} ms")
    print(f"mark price, {MANY:>6} accounts   {many_ms:8.3f} ms   {many_ms / few_ms:5.2f} x that of {FEW}")
    print(f"calm scan,  {MANY:>6} accounts   {scan_ms:8.3f} ms   {scan_ms / many_ms:5.2f} x a mark price")
    print(f"sweep of    {MANY:>6} accounts   {sweep_ms:8.1f} ms   {sweep_ms / many_ms:5.0f} x a mark price")


async def bench(settings: Settings) -> None:
    """Run all benchmarks on one engine."""
    engine = Engine(settings)
    lean = Engine(dataclasses.replace(settings, history="drain"))
    sweeping = Engine(dataclasses.replace(settings, sweep_cycle_s=0))
    try:
        await engine.opening.open()
        await bench_trade(engine)
        await bench_lean_trade(engine, lean)
        await bench_mark(engine, sweeping)
    finally:
        await engine.close()
        await lean.close()
        await sweeping.close()


def main() -> None:
    """Start servers, measure, stop them."""
    observability.configure(publish_metrics=False, log_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="margin-bench-") as directory:
        Path(directory).chmod(0o755)
        valkey = EmbeddedValkey(Path(directory) / "valkey")
        postgres = EmbeddedPostgres(Path(directory) / "postgres")
        try:
            valkey.start()
            postgres.start()
            settings = Settings(redis_port=valkey.port, postgres_port=postgres.port)
            migrate(settings)
            asyncio.run(bench(settings))
        finally:
            valkey.stop()
            postgres.stop()
    print()
    cold_start.main()


if __name__ == "__main__":
    main()
