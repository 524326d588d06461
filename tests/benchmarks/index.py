"""What the index of trigger prices costs, and what it saves, from few accounts to very many.

Each size has a Valkey and a database of its own, all at once, and the sizes take turns, so that a slow moment of the
machine hits all of them. Of each is measured

- the memory of its accounts in Redis, without their triggers and with them;
- a mark price that crosses nobody, the whole call and its share in the server: it must not grow with accounts;
- the look at everybody that an engine without an index needs for each price: all accounts read in pages, and assessed;
- a mark price that crosses exactly 10, 100 and 1,000 accounts, each of them evaluated before the call answers: accounts
  that are safe and anchored anew, and accounts that are liquidated;
- the sweep, which tests the triggers of accounts against the domain: none of them may be one that could be missed.

    python -m tests.benchmarks --only index --accounts 1000,10000
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.caller import NOBODY
from margin.domain.risk import liquidation_assessment
from margin.domain.safe_zone import TriggerSide
from margin.ports import SweepProgress
from margin.runtime import Engine
from margin.services.scan import ScanService
from tests.benchmarks import population
from tests.benchmarks.crossings import assert_all_judged, find_crossing, make_known, unhurried_marks
from tests.benchmarks.exchange import Exchange, load, say
from tests.benchmarks.index_table import ANCHORED, LIQUIDATED, Ticks, render
from tests.benchmarks.servers import exchanges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.config import Settings

CALM_WARM_UP = 100
CALM_ROUNDS = 2000
CALM_MOVE = Decimal("0.0002")
CALM_SCANS = 20
CROSSED = {10: 4, 100: 2, 1000: 1}
"""How many accounts a price crosses, and how many such prices there are of each kind."""

CROSSED_SHARE_MAX = 100
"""Prices cross at most one account in so many: they stay what a bad tick is, not the end of the exchange."""

READ_AT_LEAST = 10_000
READ_SECONDS_MAX = 120.0
SWEEP_SECONDS_MAX = 15.0


# --- a calm market


async def _measure_calm(exchanges_: Sequence[Exchange]) -> None:
    """Mark prices that cross nobody, the sizes in turns and in another order each time."""
    chance = random.Random(7)  # noqa: S311 - a benchmark's own sequence
    spent: dict[int, list[float]] = {exchange.size: [] for exchange in exchanges_}
    symbols = list(population.MARKS)
    for number in range(CALM_WARM_UP + CALM_ROUNDS):
        if number == CALM_WARM_UP:
            for exchange in exchanges_:
                await exchange.engine.accounts.redis.config_resetstat()
                spent[exchange.size].clear()
        symbol = symbols[number % len(symbols)]
        prices = {symbol: population.MARKS[symbol] * (1 + CALM_MOVE * chance.randint(-10, 10))}
        for exchange in chance.sample(exchanges_, len(exchanges_)):
            started = time.perf_counter()
            outcome = await exchange.engine.marks.set_marks(prices)
            spent[exchange.size].append((time.perf_counter() - started) * 1000)
            assert outcome.at_risk == 0, outcome
    for exchange in exchanges_:
        exchange.figures.calm_ms = statistics.median(spent[exchange.size])
        redis = exchange.engine.accounts.redis
        assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == CALM_ROUNDS
        percentiles = (await redis.info("latencystats"))["latency_percentiles_usec_evalsha"]
        exchange.figures.calm_server_us = float(percentiles["p50"])


async def _measure_calm_scans(exchanges_: Sequence[Exchange]) -> None:
    """Scans that find nobody crossed and of whose sweep next to nothing is due."""
    spent: dict[int, list[float]] = {exchange.size: [] for exchange in exchanges_}
    for _ in range(CALM_SCANS):
        for exchange in exchanges_:
            now_us = (await exchange.engine.market.market()).now_us
            await exchange.engine.accounts.note_sweep(0, SweepProgress("0", now_us))
            started = time.perf_counter()
            report = await exchange.engine.scans.scan()
            spent[exchange.size].append((time.perf_counter() - started) * 1000)
            assert (report.crossed, report.missed, report.failed) == (0, [], 0), report
    for exchange in exchanges_:
        exchange.figures.scan_ms = statistics.median(spent[exchange.size])


async def _measure_reading_all(exchange: Exchange) -> None:
    """Read all accounts in pages and assess each: what a price costs where nothing says whom it concerns."""
    engine = exchange.engine
    market = await engine.market.market()
    times = max(1, READ_AT_LEAST // exchange.size)
    seen, started = 0, time.perf_counter()
    for _ in range(times):
        cursor = ""
        while cursor != "0" and time.perf_counter() - started < READ_SECONDS_MAX:
            page = await engine.accounts.page(0, cursor or "0")
            for row in page.rows:
                assert not liquidation_assessment(row.account, market).liquidatable, row
            seen += len(page.rows)
            cursor = page.cursor
    elapsed_s = time.perf_counter() - started
    # An account can be seen twice; where time was up, the rest is taken to be like what was read.
    exchange.figures.read_all_s = elapsed_s / seen * exchange.size
    exchange.figures.read_share = min(1.0, seen / times / exchange.size)
    say(f"{seen:,} accounts were read and assessed in {elapsed_s:.1f} s")


# --- prices that cross somebody


async def _measure_crossings(exchanges_: Sequence[Exchange]) -> None:
    """Prices that cross exactly so many, of accounts with several positions and of those with one; sizes in turns."""
    for exchange in exchanges_:
        await _connect(exchange.engine)
    for kind, symbols in ((ANCHORED, population.MULTIPLE), (LIQUIDATED, population.SINGLE)):
        sides = [(symbol, side) for side in TriggerSide for symbol in symbols]
        for number, (symbol, side) in enumerate(sides):
            for crossed in (crossed for crossed, times in CROSSED.items() if number < times):
                for exchange in exchanges_:
                    if crossed * CROSSED_SHARE_MAX <= exchange.size:
                        ticks = exchange.figures.ticks.setdefault((kind, crossed), Ticks())
                        await _cross(exchange, symbol, side, crossed, ticks)
    say("prices that cross somebody are done")


async def _connect(engine: Engine) -> None:
    """Have as many connections to history opened as evaluations will use."""
    account_ids = range(1, engine.settings.postgres_connections_max + 1)
    await make_known(engine, account_ids)
    await asyncio.gather(
        *(engine.funds.deposit(account_id, Decimal(1), key=None, caller=NOBODY) for account_id in account_ids)
    )


async def _cross(exchange: Exchange, symbol: str, side: TriggerSide, size: int, ticks: Ticks) -> None:
    engine = exchange.engine
    crossing = await find_crossing(engine, symbol, side, size)
    await make_known(engine, crossing.account_ids)
    marks, liquidations = unhurried_marks(engine, size)
    started = time.perf_counter()
    outcome = await marks.set_marks({symbol: crossing.price})
    elapsed_ms = (time.perf_counter() - started) * 1000
    assert outcome.at_risk == size, outcome
    assert_all_judged(liquidations, crossing)
    # Who is undecided stays crossed.
    assert not (await engine.accounts.crossed(0, 1, 0)).by_symbol
    ticks.add(elapsed_ms, size, len(outcome.liquidated))


async def _measure_sweep(exchange: Exchange) -> None:
    """Sweep from the beginning, as long as there is time: whatever happened, nobody is missed."""
    engine = exchange.engine
    await engine.accounts.note_sweep(0, SweepProgress("0", 0))
    scans = ScanService(engine.accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=0)
    started = time.perf_counter()
    report = await scans.scan(keep_going=lambda: time.perf_counter() - started < SWEEP_SECONDS_MAX)
    exchange.figures.swept = report.swept
    assert (report.missed, report.crossed, report.failed) == ([], 0, 0), report
    assert not report.complete or report.swept >= exchange.size
    say(f"{report.swept:,} of {exchange.size:,} accounts were swept, none could be missed")


async def _bench(all_settings: Sequence[Settings], sizes: Sequence[int]) -> str:
    measured = [Exchange(size, Engine(settings)) for size, settings in zip(sizes, all_settings, strict=True)]
    try:
        # The largest first: the longer ago that was written, the less of it is left for the disk.
        for exchange in sorted(measured, key=lambda exchange: -exchange.size):
            await load(exchange)
        say("mark prices that cross nobody")
        await _measure_calm(measured)
        await _measure_calm_scans(measured)
        for exchange in measured:
            await _measure_reading_all(exchange)
        await _measure_crossings(measured)
        for exchange in measured:
            await _measure_sweep(exchange)
    finally:
        for exchange in measured:
            await exchange.engine.close()
    return render([(exchange.size, exchange.figures) for exchange in measured])


def main(sizes: Sequence[int]) -> None:
    """Start servers, measure, stop them, show the table.

    Parameters
    ----------
    sizes : sequence of int
        How many accounts the exchanges have, each of them one of its own; ascending.
    """
    with exchanges(len(sizes)) as all_settings:
        table = asyncio.run(_bench(all_settings, sizes))
    print(f"median of {CALM_ROUNDS} calm mark prices, sizes in turns\n\n{table}")
