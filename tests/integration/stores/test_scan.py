"""The scan on real stores: whom it names, that its sweep gets to everybody, and that it finds a wrong index."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.account_redis import AccountRedisClient
from margin.domain.account import Account
from margin.domain.position import Position
from margin.domain.safe_zone import Trigger, TriggerSide, triggers
from margin.observability import MetricName, counted
from margin.ports import AccountLoad, Anchor, SweepProgress
from margin.ports.history import HistoryAccount
from margin.services.healing import HealingService
from margin.services.liquidation import Verdict
from margin.services.scan import ScanService
from tests.actions import BTC, ETH, buy, deposit, mark, sell

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from margin.ports import SweepPage
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

FLOORS, CEILINGS = "triggers:BTC-PERP:floor", "triggers:BTC-PERP:ceiling"
MANY = 1500
"""More accounts than a hash keeps in one piece, so that a sweep has many pages."""


class _Watched(AccountRedisClient):
    """Accounts that tell whom a sweep has read."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.accounts.redis, engine.accounts.partitions)
        self.seen: list[int] = []
        self.pages = 0

    async def sweep(self, partition: int, cursor: str) -> SweepPage:
        page = await super().sweep(partition, cursor)
        self.seen += [indexed.row.account.account_id for indexed in page.accounts]
        self.pages += 1
        return page

    def take(self) -> list[int]:
        seen, self.seen, self.pages = self.seen, [], 0
        return seen


async def _hold(engine: Engine, account_id: int, balance: str, quantity: str = "1", symbol: str = BTC) -> None:
    """Deposit, and open a position at 50000."""
    await deposit(engine, account_id, balance)
    trade = buy if Decimal(quantity) > 0 else sell
    await trade(engine, account_id, quantity.removeprefix("-"), "50000", symbol=symbol)


async def _set(engine: Engine, price: str, symbol: str = BTC) -> None:
    """Store a mark price without evaluating anybody."""
    await engine.market.set_marks({symbol: Decimal(price)}, crossed_max=0)


async def _load(engine: Engine, account_ids: Iterable[int]) -> None:
    """Put accounts with one long each straight into Redis; history does not know them."""
    market = await engine.market.market()
    held = {BTC: Position(BTC, Decimal(1), Decimal(50000))}
    accounts = [Account(account_id, Decimal(20000), held) for account_id in account_ids]
    loads = [
        AccountLoad(
            row=HistoryAccount("1:1", "", account), keys=(), triggers=triggers(account, market), expected_version=""
        )
        for account in accounts
    ]
    for partition in range(engine.accounts.partitions):
        mine = [load for load in loads if load.row.account.account_id % engine.accounts.partitions == partition]
        await engine.accounts.load_all(mine)


# --- whom a mark crosses


async def test_index_names_the_crossed_of_both_sides_in_pages_those_furthest_beyond_first(engine: Engine) -> None:
    await mark(engine, "50000")
    await mark(engine, "50000", ETH)
    for account_id, balance in {1: "11900", 2: "11700", 3: "11800", 4: "20000"}.items():
        await _hold(engine, account_id, balance)
    for account_id, balance in {5: "11600", 6: "11500", 7: "20000"}.items():
        await _hold(engine, account_id, balance, "-1")
    await _hold(engine, 8, "20000", symbol=ETH)
    await _set(engine, "42000")
    assert (await engine.accounts.crossed(0, 10, 0)).by_symbol == {BTC: (2, 3, 1)}
    await _set(engine, "57000")
    assert (await engine.accounts.crossed(0, 10, 0)).by_symbol == {BTC: (6, 5)}
    for account_id in (1, 2, 3):
        view = await engine.accounts.read(account_id)
        always = {BTC: Trigger(BTC, TriggerSide.FLOOR, math.inf)}
        assert await engine.accounts.anchor(Anchor(account_id, view.version, always))
    everyone = (3, 2, 1, 6, 5)
    for limit in range(1, 7):
        pages = [(await engine.accounts.crossed(0, limit, start)).by_symbol for start in range(0, 10, limit)]
        assert [account_id for page in pages for account_id in page.get(BTC, ())] == list(everyone)
        assert all(len(page.get(BTC, ())) <= limit for page in pages)
    assert (await engine.accounts.crossed(0, 10, 5)).by_symbol == {}


@pytest.mark.parametrize("partitions", [1, 3])
async def test_crossed_accounts_of_many_pages_and_both_sides_are_all_liquidated(
    make_engine: MakeEngine, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await mark(engine, "50000")
    await mark(engine, "50000", ETH)
    for account_id in range(1, 9):
        await _hold(engine, account_id, "11000")
        await _hold(engine, account_id, "11000", "-1", ETH)
    await engine.market.set_marks({BTC: Decimal(35000), ETH: Decimal(60000)}, crossed_max=0)
    scans = ScanService(
        engine.accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=900, crossed_per_page=2
    )
    report = await scans.scan()
    assert (report.crossed, sorted(report.liquidated)) == (8, list(range(1, 9)))
    assert (report.missed, report.failed, report.complete) == ([], 0, True)
    assert (await scans.scan()).crossed == 0


async def test_age_of_the_oldest_mark_counts_those_with_positions(engine: Engine, store: redis.Redis) -> None:
    for symbol in (BTC, ETH, "SOL-PERP"):
        await mark(engine, "50000", symbol)
    await _hold(engine, 1, "20000")
    await _hold(engine, 2, "20000", "-1", ETH)
    for symbol, age_s in ((ETH, 70), ("SOL-PERP", 300)):
        stamp_us = int(store.hget("mark_stamps", symbol)) - age_s * 1_000_000
        store.hset("mark_stamps", symbol, str(stamp_us))
    assert 70 <= (await engine.scans.scan()).oldest_mark_age_s < 150
    store.hset("mark_stamps", BTC, "0")
    assert (await engine.scans.scan()).oldest_mark_age_s > 10**9


# --- what a calm scan costs


@pytest.mark.parametrize("symbols", [1, 40])
@pytest.mark.parametrize("partitions", [1, 3])
async def test_scan_of_a_calm_exchange_is_three_scripts_for_each_partition_whatever_it_trades(
    make_engine: MakeEngine, store: redis.Redis, partitions: int, symbols: int
) -> None:
    engine = await make_engine(partitions=partitions)
    names = [f"S{number}-PERP" for number in range(symbols)]
    await engine.marks.set_marks(dict.fromkeys(names, Decimal(50000)))
    for account_id, name in enumerate(names, start=1):
        await _hold(engine, account_id, "20000", symbol=name)
        await _hold(engine, account_id, "20000", "-1", symbol=names[0])
    await engine.scans.scan()
    store.config_resetstat()
    report = await engine.scans.scan()
    statistics = {name: figures["calls"] for name, figures in store.info("commandstats").items()}
    assert (report.crossed, report.missed, report.complete) == (0, [], True)
    assert statistics["cmdstat_evalsha"] == 3 * partitions
    assert "cmdstat_eval" not in statistics
    # How far the sweep has got is read and written.
    assert statistics["cmdstat_hmget"] >= partitions
    assert "cmdstat_zadd" not in statistics


# --- the sweep


async def _later(engine: Engine, store: redis.Redis, seconds: float) -> None:
    """Let the last share of the sweep have been so long ago."""
    for partition in range(engine.accounts.partitions):
        progress = await engine.accounts.sweep_progress(partition)
        at_us = progress.at_us - int(seconds * 1_000_000)
        await engine.accounts.note_sweep(partition, SweepProgress(progress.cursor, at_us))


@pytest.mark.parametrize("partitions", [1, 2])
async def test_first_sweep_is_of_everybody_and_later_shares_follow_the_time(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await mark(engine, "50000")
    await _load(engine, range(1, MANY * partitions + 1))
    accounts = _Watched(engine)
    scans = ScanService(accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=900)
    report = await scans.scan()
    assert (report.swept, report.missed, report.complete) == (MANY * partitions, [], True)
    assert sorted(accounts.take()) == list(range(1, MANY * partitions + 1))
    await _later(engine, store, 300)
    report = await scans.scan()
    assert MANY / 3 <= len(accounts.take()) / partitions < MANY / 3 + 300
    await _later(engine, store, 10**6)
    assert MANY <= (await scans.scan()).swept / partitions < MANY + 300
    assert len(set(accounts.take())) == MANY * partitions


async def test_everybody_who_stays_has_a_turn_in_each_cycle_whoever_comes_and_goes(
    engine: Engine, store: redis.Redis
) -> None:
    await mark(engine, "50000")
    chance = random.Random(1)  # noqa: S311 - a test's own sequence
    await _load(engine, range(1, MANY + 1))
    accounts = _Watched(engine)
    scans = ScanService(accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=900)
    await scans.scan()
    everyone, fresh = set(range(1, MANY + 1)), itertools.count(10_000)
    for _ in range(2):
        accounts.take()
        stayed = set(everyone)
        # One scan more than a cycle has: a share begins where the one before happened to stop.
        for _ in range(16):
            # It grows and shrinks many times over, so that the hash is resized while the sweep is half through.
            come = set(itertools.islice(fresh, chance.choice([0, 50, 1000])))
            await _load(engine, come)
            everyone |= come
            gone = set(chance.sample(sorted(everyone - stayed), len(everyone - stayed) // 2))
            gone |= set(chance.sample(sorted(stayed), 20))
            await asyncio.gather(*(engine.accounts.drop(account_id, 0, "") for account_id in gone))
            everyone -= gone
            stayed -= gone
            await _later(engine, store, 60)
            assert (await scans.scan()).missed == []
        assert stayed <= set(accounts.take())
        assert len(stayed) > MANY // 3


async def test_sweep_out_of_time_goes_on_at_the_next_scan(engine: Engine) -> None:
    await mark(engine, "50000")
    await _load(engine, range(1, MANY + 1))
    accounts = _Watched(engine)
    scans = ScanService(accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=900)
    report = await scans.scan(keep_going=lambda: accounts.pages < 3)
    first = accounts.take()
    assert (report.complete, report.swept) == (False, len(first))
    assert 0 < len(first) < MANY
    assert (await scans.scan()).complete
    second = accounts.take()
    assert {*first, *second} == set(range(1, MANY + 1))
    assert len(first) + len(second) < MANY + 300


async def test_sweep_of_all_at_each_scan_is_of_all_wherever_another_stopped(make_engine: MakeEngine) -> None:
    engine = await make_engine(sweep_cycle_s=0)
    await mark(engine, "50000")
    await _load(engine, range(1, MANY + 1))
    accounts = _Watched(engine)
    slow = ScanService(accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=900)
    await slow.scan(keep_going=lambda: accounts.pages < 3)
    assert (await engine.accounts.sweep_progress(0)).cursor != "0"
    accounts.take()
    scans = ScanService(accounts, engine.market, engine.liquidations, engine.warnings, sweep_cycle_s=0)
    for _ in range(2):
        report = await scans.scan()
        assert report.complete
        assert set(accounts.take()) == set(range(1, MANY + 1))
    assert report.swept == MANY


async def test_place_of_the_sweep_is_forgotten_when_the_state_is_opened_anew(
    engine: Engine, store: redis.Redis
) -> None:
    await mark(engine, "50000")
    await _hold(engine, 1, "20000")
    await engine.scans.scan()
    assert store.hgetall("sweep")["cursor"] == "0"
    store.hset("sweep", "cursor", "12345")
    await engine.rebuilding.rebuild([0])
    assert not store.exists("sweep")
    assert (await engine.scans.scan()).swept == 1


# --- whom the index could miss


def _remove(store: redis.Redis) -> None:
    store.zrem(FLOORS, "2")


def _move_beyond(store: redis.Redis) -> None:
    store.zadd(FLOORS, {"2": store.zscore(FLOORS, "2") - 1e-8})


def _turn_round(store: redis.Redis) -> None:
    store.zrem(FLOORS, "2")
    store.zadd(CEILINGS, {"2": "60000"})


def _double(store: redis.Redis) -> None:
    store.zadd(CEILINGS, {"2": "60000"})


@pytest.mark.parametrize("mistake", [_remove, _move_beyond, _turn_round, _double])
async def test_account_that_the_index_could_miss_is_counted_once_logged_and_anchored_anew(
    engine: Engine, store: redis.Redis, mistake: Any, log: list[dict[str, Any]]
) -> None:
    await mark(engine, "50000")
    for account_id, balance in ((1, "20000"), (2, "14500"), (3, "14000")):
        await _hold(engine, account_id, balance)
    floors = store.zrange(FLOORS, 0, -1, withscores=True)
    mistake(store)
    misses = counted(MetricName.LIQUIDATION_MISSES)

    report = await engine.scans.scan()

    assert (report.missed, report.liquidated, report.swept, report.failed) == ([2], [], 3, 0)
    assert counted(MetricName.LIQUIDATION_MISSES) - misses == 1
    assert store.zrange(FLOORS, 0, -1, withscores=True) == floors
    assert not store.exists(CEILINGS)
    (line,) = [line for line in log if line["message"] == "liquidation_missed"]
    assert (line["account_id"], line["version"]) == (2, store.hget("versions", "2"))
    assert (line["balance"], line["positions"]) == ("14500", {BTC: ["1", "50000", "0"]})
    assert line["marks"] == {BTC: ["50000", int(store.hget("mark_stamps", BTC))]}
    for _ in range(2):
        assert (await engine.scans.scan()).missed == []
    assert counted(MetricName.LIQUIDATION_MISSES) - misses == 1


@pytest.mark.parametrize("mistake", [_remove, _turn_round])
async def test_account_that_the_index_did_miss_is_liquidated_by_the_sweep(
    engine: Engine, store: redis.Redis, mistake: Any
) -> None:
    await mark(engine, "50000")
    await _hold(engine, 1, "20000")
    await _hold(engine, 2, "14000")
    mistake(store)
    assert (await mark(engine, "39000")).at_risk == 0
    report = await engine.scans.scan()
    assert (report.crossed, report.missed, report.liquidated) == (0, [2], [2])
    report = await engine.scans.scan()
    assert (report.crossed, report.missed) == (0, [])


async def _stale(engine: Engine, store: redis.Redis) -> None:
    tier = {"notional_cap": None, "initial_rate": "0.20", "maintenance_rate": "0.10"}
    terms = {"symbol": BTC, "tiers": [tier], "taker_fee": "0", "price_band": "0.20", "lot_size": "0.00000001"}
    store.hset("instruments", BTC, json.dumps({**terms, "mark_max_age_s": 1, "version": 1}))
    store.hset("mark_stamps", BTC, str(int(store.hget("mark_stamps", BTC)) - 10**7))


async def _restored(engine: Engine, store: redis.Redis) -> None:
    store.hset("mark_stamps", BTC, "0")


async def _restored_by_an_opening(engine: Engine, store: redis.Redis) -> None:
    await engine.mark_records.save()
    store.flushall()
    await engine.opening.open()
    assert store.hget("mark_stamps", BTC) == "0"


async def _without_marks(engine: Engine, store: redis.Redis) -> None:
    store.delete("mark_prices", "mark_stamps")


async def _emptied(engine: Engine, store: redis.Redis) -> None:
    store.flushall()
    await engine.opening.open()


async def _rebuilt(engine: Engine, store: redis.Redis) -> None:
    await engine.rebuilding.rebuild([0])


async def _one_rebuilt(engine: Engine, store: redis.Redis) -> None:
    await engine.rebuilding.rebuild_account(2)


async def _healed(engine: Engine, store: redis.Redis) -> None:
    store.hset("versions", "2", "1:1")
    async with engine.history_store.reserve() as writer:
        assert await HealingService(engine.accounts, engine.market).heal(2, writer)


STATES = [_stale, _restored, _restored_by_an_opening, _without_marks, _emptied, _rebuilt, _one_rebuilt, _healed]


@pytest.mark.parametrize("price", ["50000", "39000"])
@pytest.mark.parametrize("state", STATES)
async def test_no_miss_is_counted_whatever_happens_to_marks_and_state(
    engine: Engine, store: redis.Redis, state: Any, price: str
) -> None:
    misses = counted(MetricName.LIQUIDATION_MISSES)
    await mark(engine, "50000")
    await mark(engine, "50000", ETH)
    for account_id, balance in ((1, "20000"), (2, "14000"), (3, "100000")):
        await _hold(engine, account_id, balance)
    await _hold(engine, 3, "1", "-0.1", ETH)
    await _set(engine, price)
    await state(engine, store)
    for _ in range(2):
        report = await engine.scans.scan()
        assert (report.swept, report.missed, report.complete) == (3, [], True)
    await mark(engine, price)
    await deposit(engine, 1, "1")
    assert (await engine.scans.scan()).missed == []
    assert counted(MetricName.LIQUIDATION_MISSES) == misses


async def test_undecided_account_stays_crossed_until_its_mark_is_fresh(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    await _hold(engine, 1, "20000")
    store.hset("mark_stamps", BTC, "0")
    assert await engine.liquidations.evaluate(1) is Verdict.UNDECIDED
    for _ in range(2):
        report = await engine.scans.scan()
        assert (report.crossed, report.liquidated, report.missed, report.complete) == (1, [], [], True)
    assert (await mark(engine, "50000")).at_risk == 1
    assert (await engine.scans.scan()).crossed == 0
