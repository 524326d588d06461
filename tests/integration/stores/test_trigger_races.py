"""Marks, trades and cash on the same accounts from many clients at once: the index loses nobody between the writers."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.risk import assess
from margin.errors import MarginError
from margin.observability import MetricName, counted
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw

if TYPE_CHECKING:
    from margin.runtime import Engine
    from margin.services.scan import ScanReport
    from tests.integration.conftest import MakeEngine

CLIENTS = 32
PROCESSES = 3
ROUNDS = 10
CALLS = 4
"""How much each client does in a round, after which all is quiet for a moment."""

ACCOUNTS = range(1, 13)
_WAVERING = 0.3
PRICES = {BTC: 50000, ETH: 2000}


class _Crowd:
    """Clients who trade as much as their margin lets them, so that every mark price is close to ruining some."""

    def __init__(self, engines: list[Engine], seed: int) -> None:
        self._engines = engines
        self._chance = random.Random(seed)  # noqa: S311 - a test's own sequence
        self.refused = 0

    async def begin(self) -> None:
        for symbol, price in PRICES.items():
            await mark(self._engines[0], str(price), symbol)
        for account_id in ACCOUNTS:
            await deposit(self._engines[0], account_id, "2000")

    async def play(self) -> None:
        """One round of all clients at once."""
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        for _ in range(CALLS):
            try:
                await self._call()
            except MarginError:
                self.refused += 1

    async def _call(self) -> None:
        chance = self._chance
        engine, account_id, symbol = chance.choice(self._engines), chance.choice(ACCOUNTS), chance.choice([BTC, ETH])
        match chance.choices(["trade", "mark", "deposit", "withdraw"], [10, 2, 4, 1])[0]:
            case "trade":
                price = str((await engine.market.market()).mark_price(symbol))
                quantity = str((Decimal(chance.randint(2000, 9000)) / Decimal(price)).quantize(Decimal("0.0001")))
                # Most keep to one direction, so that they come to hold what their margin allows.
                trade = chance.choice([buy, sell]) if chance.random() < _WAVERING else (buy, sell)[account_id % 2]
                await trade(engine, account_id, quantity, price, symbol=symbol)
            case "mark":
                price = PRICES[symbol] * chance.uniform(0.8, 1.25)
                await mark(engine, f"{price:.2f}", symbol)
            case "deposit":
                await deposit(engine, account_id, str(chance.randint(1, 900)))
            case _:
                await withdraw(engine, account_id, str(chance.randint(1, 900)))


async def _processes(make_engine: MakeEngine, partitions: int) -> list[Engine]:
    """Engines with deadlines that a busy machine keeps: what is late is left to the scan."""
    deadlines = {"redis_timeout_s": 5.0, "postgres_timeout_s": 5.0, "postgres_connect_timeout_s": 5.0}
    return [await make_engine(partitions=partitions, sweep_cycle_s=0, **deadlines) for _ in range(PROCESSES)]


async def _assert_nobody_was_left(engine: Engine) -> None:
    """By force: nobody below maintenance margin; by the index: nobody whom a mark crosses and nobody has decided on."""
    for account_id in ACCOUNTS:
        view = await engine.accounts.read(account_id)
        if view.account is not None:
            assert not assess(view.account, view.market).liquidatable, account_id
    for partition in range(engine.accounts.partitions):
        assert (await engine.accounts.crossed(partition, 100, 0)).by_symbol == {}


@pytest.mark.parametrize(("partitions", "seed"), [(1, 1), (1, 2), (2, 3)])
async def test_whenever_all_is_quiet_nobody_is_liquidatable_or_crossed(
    make_engine: MakeEngine, partitions: int, seed: int
) -> None:
    engines = await _processes(make_engine, partitions)
    crowd = _Crowd(engines, seed)
    await crowd.begin()
    liquidations, misses = counted(MetricName.LIQUIDATIONS), counted(MetricName.LIQUIDATION_MISSES)
    for _ in range(ROUNDS):
        await crowd.play()
        await _assert_nobody_was_left(engines[0])
    assert counted(MetricName.LIQUIDATIONS) - liquidations > ROUNDS, "many must have been ruined"
    assert crowd.refused < CLIENTS * CALLS * ROUNDS / 2, "most calls must have been executed"
    report = await engines[0].scans.scan()
    assert (report.crossed, report.missed, report.liquidated) == (0, [], [])
    assert counted(MetricName.LIQUIDATION_MISSES) == misses


@pytest.mark.parametrize("partitions", [1, 2])
async def test_sweep_finds_no_miss_while_many_trade_deposit_and_set_marks(
    make_engine: MakeEngine, partitions: int
) -> None:
    engines = await _processes(make_engine, partitions)
    crowd = _Crowd(engines, 4)
    await crowd.begin()
    misses = counted(MetricName.LIQUIDATION_MISSES)
    reports: list[ScanReport] = []

    done = asyncio.Event()

    async def scan_on() -> None:
        while not done.is_set():
            reports.append(await engines[-1].scans.scan())

    async def play_on() -> None:
        try:
            for _ in range(ROUNDS):
                await crowd.play()
        finally:
            done.set()

    await asyncio.gather(scan_on(), play_on())
    await _assert_nobody_was_left(engines[0])
    assert len(reports) > ROUNDS
    assert max(report.swept for report in reports) == len(ACCOUNTS)
    assert [report.missed for report in reports if report.missed] == []
    assert counted(MetricName.LIQUIDATION_MISSES) == misses
