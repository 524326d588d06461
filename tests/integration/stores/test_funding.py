"""Funding on real stores: whom it brings to evaluation, what happens wherever a payment dies, and what comes back."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

import migrate_schema
from margin.clients.account_format import funding_of, funding_text
from margin.clients.base_redis import Script
from margin.clients.funding_postgres import FundingPostgresClient
from margin.clients.funding_redis import FundingRedisClient
from margin.domain.decimals import plain
from margin.domain.funding import Funding, Shift
from margin.domain.market import Mark, Market
from margin.domain.safe_zone import Trigger, TriggerSide, crosses
from margin.errors import (
    HistoryLostError,
    IdempotencyKeyReusedError,
    RedisTimeoutError,
    StaleMarkPriceError,
    StateNotLoadedError,
)
from margin.observability import MetricName, counted, flush_metrics
from margin.ports.funding import FundingRate
from tests.actions import BTC, ETH, buy, deposit, fund, mark, sell
from tests.database import connect
from tests.integration.stores.hot_state import hot_state
from tests.integration.stores.interrupted import InterruptedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

MIGRATIONS = Path(migrate_schema.__file__).parent / "migrations" / "versions"
_LEVEL_OF = """
redis.call('HSET', key('funding'), 'S', ARGV[1])
return {level_of('triggers', 'S', 'floor', ARGV[2]), level_of('triggers', 'S', 'ceiling', ARGV[2]),
  level_of('warnings', 'S', 'floor', ARGV[2]), level_of('warnings', 'S', 'ceiling', ARGV[2])}
"""


class _Preamble(Script):
    """The part that stands before every script, with something of a test behind it."""

    def __init__(self, body: str) -> None:
        super().__init__("anchor")
        self.source = self.source[: self.source.index("-- Anchors an evaluated account anew")] + body


async def _longs(engine: Engine, *account_ids: int) -> None:
    """Open longs of 1 at 50000 with 14000: their liquidation price is 40000 exactly, 9000 of equity away."""
    await mark(engine, "50000")
    for account_id in account_ids:
        await deposit(engine, account_id, "14000")
        await buy(engine, account_id, "1", "50000")


async def _entry_funding(engine: Engine, account_id: int) -> Decimal:
    view = await engine.accounts.read(account_id)
    assert view.account is not None
    return view.account.positions[BTC].entry_funding


async def _index(engine: Engine, partition: int = 0) -> Decimal:
    return (await engine.market.market(partition)).funding_index(BTC)


# --- the index of triggers


def _exponent(chance: random.Random, low: int, high: int) -> Decimal:
    return Decimal(chance.randrange(1, 10**12)).scaleb(chance.randint(low, high))


async def test_store_never_finds_a_crossing_later_than_the_domain(engine: Engine, store: redis.Redis) -> None:
    chance, script = random.Random(7), _Preamble(_LEVEL_OF)  # noqa: S311 - no secret is made of it
    apart = 0
    for _ in range(1500):
        price = _exponent(chance, -8, 0)
        shifts = [chance.choice((-1, 1)) * _exponent(chance, -20, 2) if chance.random() < 0.9 else 0 for _ in range(4)]
        funding = Funding(1, Decimal(1), Shift(*map(Decimal, shifts[:2])), Shift(*map(Decimal, shifts[2:])))
        text = funding_text(funding)
        assert funding_of(text) == funding
        levels = store.eval(script.source, 1, "marker", text, plain(price))
        market = Market({"S": Mark(price, 1)}, {}, 1, {"S": funding})
        for place, (index, side) in enumerate((pct, side) for pct in (100, 80) for side in TriggerSide):
            level = float(levels[place])
            for score in (level, *_beside(level)):
                trigger = Trigger("S", side, score)
                in_store = level <= score if side is TriggerSide.FLOOR else level >= score
                in_domain = crosses(trigger, market, level_pct=Decimal(index))
                assert in_store or not in_domain, (text, price, trigger)
                apart += in_store != in_domain
    assert apart, "the store rounds nothing towards earlier"


def _beside(value: float) -> list[float]:
    """Doubles on both sides of one, from its neighbours to those that are a trillionth away."""
    return [value * (1 + sign * 2.0**-exponent) for sign in (-1, 1) for exponent in range(40, 53)]


async def test_payment_liquidates_at_once_whom_it_makes_liquidatable(engine: Engine, query: Query) -> None:
    await _longs(engine, 1)
    await mark(engine, "40100")
    # 90 of equity are left above the maintenance margin of 4010: a payment of 80.2 leaves them, the next takes them.
    spared = await fund(engine, "0.002")
    assert (spared.at_risk, spared.liquidated, spared.effective) == (0, (), True)
    paid = await fund(engine, "0.002")
    assert (paid.at_risk, paid.liquidated) == (1, (1,))
    assert query("select at_risk, applied_at is not null from funding_rates order by n") == [(0, True), (1, True)]
    (body,) = query("select body from events where type = 'LIQUIDATION'")[0]
    assert body["funding"] == [{"symbol": BTC, "quantity": "1", "index": "160.4", "amount": "-160.4"}]
    assert ["funding", "160.4"] in body["ledger"]
    report = await engine.reconcile.reconcile()
    assert (report.differences, report.complete) == ([], True)


async def test_payment_to_shorts_liquidates_longs_never_and_shorts_when_the_rate_is_below_zero(engine: Engine) -> None:
    await mark(engine, "50000")
    await deposit(engine, 2, "16000")
    await sell(engine, 2, "1", "50000")
    await mark(engine, "59900")
    assert (await fund(engine, "0.01")).liquidated == ()
    assert (await fund(engine, "-0.01")).liquidated == ()
    assert (await fund(engine, "-0.01")).liquidated == (2,)


async def test_payment_warns_those_who_reach_the_level_of_the_warning(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(margin_warning_pct=Decimal(80))
    await _longs(engine, 1)
    # Equity is 5200 at 41200, and the level 80 % of it: 4160, above the maintenance margin of 4120.
    await mark(engine, "41200")
    paid = await fund(engine, "0.002")
    assert (paid.at_risk, paid.liquidated) == (0, ())
    assert query("select type from events order by event_id desc limit 1") == [("MARGIN_WARNING",)]


async def test_commit_that_was_decided_before_a_payment_is_decided_anew(make_engine: MakeEngine) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    await _longs(engine, 1)
    engine.before_commit(lambda: fund(engine, "0.001"))
    outcome = await buy(engine, 1, "0.1", "50000")
    # 50 were settled before the fill, at the index that the commit has checked.
    assert outcome.result["balance"] == "13950"
    assert await _entry_funding(engine, 1) == Decimal(55)


# --- partitions, deaths and losses


@pytest.mark.parametrize("partitions", [1, 2])
async def test_emptied_redis_has_not_lost_a_mark_price_but_its_state(
    make_engine: MakeEngine, store: redis.Redis, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await _longs(engine, 1)
    store.flushall()
    with pytest.raises(StateNotLoadedError):
        await fund(engine, "0.001")
    assert query("select count(*) from funding_rates") == [(0,)]


async def test_marks_of_a_partition_that_is_closed_pay_no_funding(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine(partitions=2)
    await _longs(engine, 1)
    store.delete("{p0}:marker")
    with pytest.raises(StateNotLoadedError):
        await fund(engine, "0.001")
    assert query("select count(*) from funding_rates") == [(0,)]
    await engine.opening.open()
    assert (await fund(engine, "0.001")).effective


class _Unreadable(FundingRedisClient):
    """Funding in Redis, one partition of which does not answer."""

    def __init__(self, engine: Engine, unreadable: int) -> None:
        super().__init__(engine._redis, engine.settings.partitions)
        self._unreadable = unreadable

    async def market(self, partition: int = 0) -> Market:
        if partition == self._unreadable:
            raise RedisTimeoutError("No answer.")
        return await super().market(partition)


@pytest.mark.parametrize("unreadable", [0, 1])
async def test_partition_that_does_not_answer_holds_up_no_other_and_is_counted_until_it_is_brought_up(
    make_engine: MakeEngine, unreadable: int
) -> None:
    engine = await make_engine(partitions=2)
    await _longs(engine, 1, 2)
    engine.funding._store = DyingFunding(engine, 0)
    assert not (await fund(engine, "0.001")).effective
    engine.funding._store = _Unreadable(engine, unreadable)
    flush_metrics()
    assert await engine.funding.complete() == 0
    assert counted(MetricName.FUNDING_NOT_APPLIED) == 1
    assert await _index(engine, 1 - unreadable) == Decimal(50)
    engine.funding._store = FundingRedisClient(engine._redis, 2)
    assert await engine.funding.complete() == 1
    assert await _index(engine, unreadable) == Decimal(50)
    assert counted(MetricName.FUNDING_NOT_APPLIED) == 1


async def test_payment_is_in_every_partition_and_at_risk_is_their_sum(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=3)
    await _longs(engine, 1, 2, 3)
    await mark(engine, "40010")
    paid = await fund(engine, "0.001")
    assert (paid.at_risk, sorted(paid.liquidated), paid.effective) == (3, [1, 2, 3], True)
    assert [await _index(engine, partition) for partition in range(3)] == [Decimal("40.01")] * 3


@pytest.mark.parametrize("dead_from", [0, 1, 2])
async def test_payment_that_did_not_reach_all_partitions_is_completed_by_the_drain(
    dead_from: int, make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(partitions=3)
    await _longs(engine, 1, 2, 3)
    store = DyingFunding(engine, dead_from)
    engine.funding._store = store
    paid = await fund(engine, "0.001", key="k")
    assert (paid.effective, paid.replayed) == (False, False)
    assert query("select applied_at from funding_rates") == [(None,)]
    assert sorted([await _index(engine, partition) for partition in range(3)]) == sorted(
        [Decimal(50)] * dead_from + [Decimal(0)] * (3 - dead_from)
    )
    store.alive = True
    assert await engine.funding.complete() == 1
    assert await engine.funding.complete() == 0
    assert [await _index(engine, partition) for partition in range(3)] == [Decimal(50)] * 3
    again = await fund(engine, "0.001", key="k")
    assert (again.effective, again.replayed, again.recorded.n) == (True, True, 1)
    assert query("select count(*) from funding_rates where applied_at is not null") == [(1,)]


async def test_payment_with_the_same_key_completes_what_was_broken_off_and_pays_once(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=2)
    await _longs(engine, 1, 2)
    store = DyingFunding(engine, 1)
    engine.funding._store = store
    assert not (await fund(engine, "0.001", key="k")).effective
    store.alive = True
    again = await fund(engine, "0.001", key="k")
    assert (again.effective, again.replayed) == (True, True)
    assert [await _index(engine, partition) for partition in range(2)] == [Decimal(50)] * 2


async def test_next_payment_brings_up_a_partition_that_lacks_the_one_before(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=2)
    await _longs(engine, 1, 2)
    store = DyingFunding(engine, 1)
    engine.funding._store = store
    assert not (await fund(engine, "0.001")).effective
    store.alive = True
    assert (await fund(engine, "-0.0004")).effective
    assert [(await engine.market.market(each)).funding_of(BTC).n for each in range(2)] == [2, 2]
    assert [await _index(engine, partition) for partition in range(2)] == [Decimal(30)] * 2


async def test_whom_a_payment_crossed_before_it_died_the_scan_liquidates(engine: Engine) -> None:
    await _longs(engine, 1)
    await mark(engine, "40010")
    market = await engine.market.market()
    history, store = engine._funding_history, FundingRedisClient(engine._redis, 1)
    await history.record(_payment("0.001", "40010"))
    funding = market.funding_of(BTC).moved_to(1, Decimal("40.01"), market.guarded_lines(BTC), Decimal(100))
    update = await store.set_funding(0, BTC, funding, market=market, crossed_max=10)
    assert update is not None
    assert (update.crossed_count, update.crossed) == (1, (1,))
    assert (await engine.scans.scan()).liquidated == [1]


async def test_funding_computed_from_what_changed_since_is_not_put_in_place(engine: Engine) -> None:
    await _longs(engine, 1)
    store = FundingRedisClient(engine._redis, 1)
    before = await engine.market.market()
    await fund(engine, "0.001")
    assert await store.set_funding(0, BTC, Funding(1, Decimal(1)), market=before, crossed_max=1) is None
    assert await _index(engine) == Decimal(50)


async def test_open_partition_is_not_restored(engine: Engine) -> None:
    await _longs(engine, 1)
    store = FundingRedisClient(engine._redis, 1)
    market = await engine.market.market()
    assert not await store.restore_funding(0, BTC, Funding(1, Decimal(1)), market=market)
    assert await _index(engine) == 0


async def test_emptied_redis_gets_its_funding_back_with_its_accounts(
    engine: Engine, make_engine: MakeEngine, store: redis.Redis
) -> None:
    await _longs(engine, 1, 2)
    await fund(engine, "0.001")
    await deposit(engine, 1, "1")
    await fund(engine, "0.0005")
    before = hot_state(store)
    store.flushall()
    await make_engine()
    after = hot_state(store)
    assert {name: after[name] for name in before if name.startswith("position:")} == {
        name: before[name] for name in before if name.startswith("position:")
    }
    assert (await engine.market.market()).funding_of(BTC).index == Decimal(75)
    assert await _entry_funding(engine, 1) == Decimal(50)


async def test_older_copy_of_redis_gets_the_payments_that_it_lacks_and_guards_all_the_same(
    engine: Engine, make_engine: MakeEngine, store: redis.Redis
) -> None:
    await _longs(engine, 1, 2)
    await mark(engine, "40020")
    await fund(engine, "0.0001")
    saved = _copy(store)
    assert (await fund(engine, "0.0005")).at_risk == 2
    _put_back(store, saved)
    opened = await make_engine()
    assert (await opened.market.market()).funding_of(BTC).n == 2
    # Both were liquidated, and history has that: nothing is left to be found.
    assert (await opened.scans.scan()).liquidated == []
    views = [await opened.accounts.read(account_id) for account_id in (1, 2)]
    held = [view.account.positions[BTC].quantity for view in views if view.account is not None]
    assert held == [Decimal("0.90772522")] * 2


async def test_older_copy_whose_accounts_did_not_change_is_crossed_by_what_it_lacked(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    await _longs(engine, 1)
    await mark(engine, "40020")
    saved = _copy(store)
    await engine._funding_history.record(_payment("0.0005", "40020"))
    _put_back(store, saved)
    opened = await make_engine()
    assert await _index(opened) == Decimal("20.01")
    # It was not loaded anew: its trigger has moved with the index.
    assert (await opened.scans.scan()).liquidated == [1]


async def test_redis_ahead_of_history_is_opened_only_by_a_rebuild(
    engine: Engine, make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    await _longs(engine, 1)
    await fund(engine, "0.001")
    await fund(engine, "0.002")
    query("delete from funding_rates where n = 2 returning n")
    store.delete("marker")
    with pytest.raises(HistoryLostError, match="funding of BTC-PERP"):
        await make_engine()
    opened = await make_engine(opened=False)
    await opened.opening.open(rebuild=[0])
    assert (await opened.market.market()).funding_of(BTC).n == 1
    assert await _index(opened) == Decimal(50)


async def test_payment_on_funding_that_history_does_not_know_is_recorded_and_not_effective(
    engine: Engine, query: Query
) -> None:
    await _longs(engine, 1)
    await fund(engine, "0.001")
    query("update funding_rates set rate = 0.002, rise = 100, funding_index = 100 returning n")
    assert not (await fund(engine, "0.001")).effective
    assert await _index(engine) == Decimal(50)


async def test_rebuild_of_an_account_keeps_what_it_has_settled_and_owes(engine: Engine, store: redis.Redis) -> None:
    await _longs(engine, 1)
    await fund(engine, "0.001")
    await deposit(engine, 1, "1")
    await fund(engine, "0.001")
    before = hot_state(store)
    await engine.rebuilding.rebuild_account(1)
    assert await _entry_funding(engine, 1) == Decimal(50)
    assert {name for name in hot_state(store) if hot_state(store)[name] != before.get(name)} <= {"holds", "versions"}


async def test_where_redis_alone_acknowledges_funding_is_settled_all_the_same(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(history="drain")
    await _longs(engine, 1)
    await fund(engine, "0.001")
    await deposit(engine, 1, "1")
    await engine.drain.drain()
    assert query("select balance from accounts") == [(Decimal(13951),)]
    assert query("select sum(amount) from ledger_lines where ledger_account = 'funding'") == [(Decimal(50),)]


# --- history


async def test_racing_payments_each_move_the_index_once(engine: Engine, query: Query) -> None:
    await _longs(engine, 1)
    await asyncio.gather(*(fund(engine, "0.0001") for _ in range(8)))
    assert query("select count(*), max(n), max(funding_index) from funding_rates") == [(8, 8, Decimal(40))]
    await engine.funding.complete()
    assert await _index(engine) == Decimal(40)


async def test_key_stands_for_one_payment_of_its_symbol(engine: Engine) -> None:
    await _longs(engine, 1)
    await mark(engine, "3000", ETH)
    first = await fund(engine, "0.001", key="k")
    again = await fund(engine, "0.0010", key="k")
    assert (first.replayed, again.replayed, again.recorded.n) == (False, True, 1)
    with pytest.raises(IdempotencyKeyReusedError):
        await fund(engine, "0.002", key="k")
    assert not (await fund(engine, "0.001", ETH, key="k")).replayed


async def test_repetition_is_answered_though_the_mark_went_stale_meanwhile(engine: Engine, store: redis.Redis) -> None:
    await _longs(engine, 1)
    await fund(engine, "0.001", key="k")
    store.hset("mark_stamps", BTC, "0")
    assert (await fund(engine, "0.001", key="k")).replayed
    with pytest.raises(StaleMarkPriceError):
        await fund(engine, "0.001")


async def test_payments_of_an_account_are_paged_within_an_event(engine: Engine) -> None:
    await deposit(engine, 1, "100000")
    for symbol in (BTC, ETH):
        await mark(engine, "1000", symbol)
        await buy(engine, 1, "1", "1000", symbol=symbol)
    for _ in range(2):
        await fund(engine, "0.001", BTC)
        await fund(engine, "-0.002", ETH)
        await deposit(engine, 1, "1")
    await fund(engine, "0.0001", ETH)
    seen, cursor = [], None
    while True:
        page = await engine.funding_list.payments(1, limit=1, cursor=cursor)
        seen += [(row["symbol"], row["amount"], row["funding_index"]) for row in page.rows]
        assert [(one.symbol, one.amount) for one in page.pending] == [(ETH, Decimal("-0.1"))]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [
        (BTC, Decimal(-1), Decimal(2)),
        (ETH, Decimal(2), Decimal(-4)),
        (BTC, Decimal(-1), Decimal(1)),
        (ETH, Decimal(2), Decimal(-2)),
    ]
    only = await engine.funding_list.payments(1, symbol=BTC)
    assert ([row["symbol"] for row in only.rows], only.pending) == ([BTC, BTC], [])


async def test_rates_are_paged_newest_first(engine: Engine) -> None:
    await mark(engine, "1000", BTC)
    await mark(engine, "1000", ETH)
    for symbol in (BTC, ETH, BTC):
        await fund(engine, "0.001", symbol)
    seen, cursor = [], None
    while True:
        page = await engine.funding_list.rates(limit=1, cursor=cursor)
        seen += [(row["symbol"], row["n"]) for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [(BTC, 2), (ETH, 1), (BTC, 1)]
    assert [row["n"] for row in (await engine.funding_list.rates(symbol=BTC)).rows] == [2, 1]


async def test_events_that_settled_funding_are_found_by_an_index_of_their_own(query: Query) -> None:
    query("select set_config('enable_seqscan', 'off', false)")
    plan = "\n".join(
        row[0]
        for row in query(
            "explain select event_id from events where account_id = 1 and body #> '{funding,0}' is not null"
            " order by event_id desc limit 10"
        )
    )
    assert "events_with_funding" in plan


async def test_ledger_knows_no_account_but_its_own(query: Query) -> None:
    (definition,) = query(
        "select pg_get_constraintdef(oid), convalidated from pg_constraint"
        " where conname = 'ledger_lines_ledger_account_check'"
    )
    assert "'funding'" in definition[0]
    assert definition[1]


async def test_migration_that_was_broken_off_is_done_again_and_keeps_what_was_paid(
    engine: Engine, settings: Settings, query: Query
) -> None:
    await _longs(engine, 1)
    await fund(engine, "0.001")
    statements = (MIGRATIONS / "0005_funding.sql").read_text(encoding="utf-8")
    with connect(settings) as connection:
        connection.execute(statements.encode())
        connection.execute("alter table ledger_lines validate constraint ledger_lines_ledger_account_check")
    assert query("select count(*) from funding_rates") == [(1,)]
    await deposit(engine, 1, "1")
    assert query("select amount from ledger_lines where ledger_account = 'funding'") == [(Decimal(50),)]


async def test_wanted_numbers_and_indexes_are_those_of_history(settings: Settings, engine: Engine) -> None:
    await mark(engine, "1000", BTC)
    await mark(engine, "1000", ETH)
    for rate in ("0.001", "-0.003", "0"):
        await fund(engine, rate, BTC)
    await fund(engine, "0.001", ETH)
    history = FundingPostgresClient(settings)
    everything = await history.known({BTC: 1, ETH: 7})
    assert {symbol: (one.n, one.index, one.index_then) for symbol, one in everything.items()} == {
        BTC: (3, Decimal(-2), Decimal(1)),
        ETH: (1, Decimal(1), None),
    }
    assert list(await history.known({}, [ETH, "NEVER"])) == [ETH]
    await history.close()


# --- tools


class DyingFunding(FundingRedisClient):
    """Funding in Redis, for one who dies before it reaches some partition."""

    def __init__(self, engine: Engine, dead_from: int) -> None:
        super().__init__(engine._redis, engine.settings.partitions)
        self._dead_from = dead_from
        self.alive = False

    async def set_funding(self, partition: int, *args: Any, **kwargs: Any) -> Any:
        if partition >= self._dead_from and not self.alive:
            raise RedisTimeoutError("No answer.")
        return await super().set_funding(partition, *args, **kwargs)


def _payment(rate: str, price: str) -> FundingRate:
    rise = Decimal(rate) * Decimal(price)
    fields = {"rate": Decimal(rate), "mark_price": Decimal(price), "rise": rise, "occurred_us": 1_700_000_000_000_000}
    return FundingRate(symbol=BTC, key=rate, request_hash="h", subject=None, source_ip=None, **fields)  # type: ignore[arg-type]


def _binary(store: redis.Redis) -> redis.Redis:
    host, port = (store.connection_pool.connection_kwargs[name] for name in ("host", "port"))
    return redis.Redis(host=host, port=port)


def _copy(store: redis.Redis) -> dict[bytes, Any]:
    """Copy what Redis holds, as a snapshot would."""
    with _binary(store) as client:
        return {name: client.dump(name) for name in client.scan_iter()}


def _put_back(store: redis.Redis, saved: dict[bytes, Any]) -> None:
    """Come back as of an earlier moment, as another server."""
    store.flushall()
    with _binary(store) as client:
        for name, value in saved.items():
            client.restore(name, 0, value)
    store.hset("marker", "run_id", "another")
