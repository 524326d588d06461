"""Rules of symbols on real stores: once new ones are staged nobody is anchored by the old ones alone."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.account_redis import AccountRedisClient
from margin.clients.instrument_redis import InstrumentRedisClient
from margin.domain.instrument import Instrument, InstrumentStatus, Tier
from margin.domain.margin_warning import MarginWarnings
from margin.domain.safe_zone import covers
from margin.errors import (
    InstrumentChangeUnderWayError,
    InstrumentNotClosableError,
    PostgresUnavailableError,
    StateNotLoadedError,
)
from margin.observability import MetricName, counted, flush_metrics
from margin.ports import Loaded
from margin.services.anchoring import AnchoringService
from margin.services.anchors import anchor_of
from margin.services.instruments import InstrumentService
from margin_local.servers import ports
from tests.actions import ALICE, BTC, ETH, buy, deposit, mark, sell
from tests.integration.stores.dying import FunctionDiedError
from tests.integration.stores.hot_state import hot_state
from tests.integration.stores.interrupted import InterruptedEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import redis

    from margin.ports import SweepPage
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]


def one_tier(initial: str, maintenance: str, **terms: Any) -> Instrument:
    return Instrument(BTC, (Tier(None, Decimal(initial), Decimal(maintenance)),), **terms)


STRICT = one_tier("0.5", "0.25")
STRICTER = one_tier("0.9", "0.6")
LAX = one_tier("0.05", "0.01")
ACCOUNTS = (1, 2, 3, 4, 5, 6)


async def _furnish(engine: Engine) -> None:
    """Leave longs and shorts of both symbols behind, none of them liquidatable at a maintenance rate of 25 %."""
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    for account_id in ACCOUNTS:
        await deposit(engine, account_id, str(20000 + 1000 * account_id))
        await (buy if account_id % 2 else sell)(engine, account_id, "1", "50000")
        await (sell if account_id % 3 else buy)(engine, account_id, "0.5", "2000", symbol=ETH)


async def _put(engine: Engine, instrument: Instrument) -> bool:
    return (await engine.instruments.put(instrument, ALICE)).effective


async def _indexed(engine: Engine) -> list[tuple[SweepPage, Any]]:
    """Everyone in the index, with what they are judged by."""
    found = []
    for partition in range(engine.settings.partitions):
        cursor = "0"
        while True:
            page = await engine.accounts.sweep(partition, cursor)
            found += [(page, one) for one in page.accounts]
            if page.cursor == "0":
                break
            cursor = page.cursor
    return found


async def _uncovered(engine: Engine, *rules: Instrument) -> list[int]:
    """Accounts whose triggers could miss that they are to be liquidated by one of these rules alone."""
    found = []
    for page, one in await _indexed(engine):
        account = one.row.account
        for instrument in rules:
            market = dataclasses.replace(page.market, instruments={BTC: instrument}, staged={})
            if not covers(account, market, one.triggers):
                found.append(account.account_id)
    return found


async def _in_force(engine: Engine, symbol: str = BTC) -> list[tuple[int, int | None]]:
    """Version in force and version staged, in each partition."""
    states = [await _store(engine).read(partition, symbol) for partition in range(engine.settings.partitions)]
    return [(state.in_force.version, state.staged and state.staged.version) for state in states]


def _store(engine: Engine) -> InstrumentRedisClient:
    return InstrumentRedisClient(engine._redis, engine.settings.partitions)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("instrument", [STRICT, STRICTER, LAX])
async def test_change_is_in_force_everywhere_and_covers_everybody(
    make_engine: MakeEngine, query: Query, partitions: int, instrument: Instrument
) -> None:
    engine = await make_engine(partitions=partitions)
    await _furnish(engine)
    outcome = await engine.instruments.put(instrument, ALICE)
    assert (outcome.effective, outcome.instrument.version) == (True, 1)
    assert await _in_force(engine) == [(1, None)] * partitions
    assert await _uncovered(engine, instrument) == []
    assert query("select symbol, version, subject, effective_at is null from instruments") == [(BTC, 1, "alice", False)]
    positions = await engine.margin.account_margin(1)
    assert positions is not None
    again = await engine.instruments.put(instrument, ALICE)
    assert (again.effective, again.instrument.version) == (True, 1)
    assert (await _put(engine, LAX if instrument is STRICT else STRICT), await _in_force(engine)) == (
        True,
        [(2, None)] * partitions,
    )


async def test_holders_whom_stricter_rules_make_liquidatable_are_liquidated_at_once(
    engine: Engine, query: Query
) -> None:
    await _furnish(engine)
    assert await _put(engine, STRICTER)
    liquidated = [account_id for (account_id,) in query("select distinct account_id from liquidations order by 1")]
    assert liquidated == list(ACCOUNTS)
    scan = await engine.scans.scan()
    assert query("select count(*) from liquidations") == [(len(ACCOUNTS),)], scan


async def test_relaxed_rules_keep_triggers_sound_until_accounts_are_anchored_by_them_alone(
    engine: Engine, store: redis.Redis
) -> None:
    await _furnish(engine)
    assert await _put(engine, LAX)
    assert await _uncovered(engine, LAX, Instrument(BTC)) == []
    before = dict(store.zrange(f"triggers:{BTC}:floor", 0, -1, withscores=True))
    await deposit(engine, 1, "0.00000001")
    now = dict(store.zrange(f"triggers:{BTC}:floor", 0, -1, withscores=True))
    assert now["1"] < before["1"] - 1000
    assert await _uncovered(engine, LAX) == []


async def test_change_of_what_no_trigger_depends_on_touches_none(engine: Engine, store: redis.Redis) -> None:
    await _furnish(engine)
    before = hot_state(store)
    assert await _put(engine, Instrument(BTC, taker_fee=Decimal("0.001"), tick_size=Decimal("0.5")))
    now = hot_state(store, without=("instruments",))
    assert now == before
    assert (await buy(engine, 1, "0.1", "50000")).result["fee"] == "5"


# --- races: somebody read before new rules were staged ---


class _Pausing(AccountRedisClient):
    """Accounts whose next anchor waits for something else."""

    interruption: Callable[[], Awaitable[object]] | None = None

    async def anchor(self, *arguments: Any, **options: Any) -> bool | None:
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            await interruption()
        return await super().anchor(*arguments, **options)


async def _stage(engine: Engine, instrument: Instrument) -> None:
    """Write a change down and stage it in every partition, and die."""
    await engine._instrument_history.record(dataclasses.replace(instrument, version=1), 0, ALICE)
    for partition in range(engine.settings.partitions):
        assert await _store(engine).stage(
            await _store(engine).read(partition, BTC), dataclasses.replace(instrument, version=1)
        )


async def test_evaluator_that_read_before_the_staging_cannot_anchor_after_it(
    engine: Engine, make_engine: MakeEngine, store: redis.Redis
) -> None:
    await _furnish(engine)
    # Another mark, so that an anchor would be seen.
    await mark(engine, "50001")
    before = hot_state(store, without=("instruments",))
    other = await make_engine()
    pausing = _Pausing(other._redis, 1)
    other.__dict__["accounts"] = pausing
    pausing.interruption = lambda: _stage(engine, STRICT)
    view = await pausing.read(1)
    assert view.account is not None
    anchor = anchor_of(view.account, view.version, view.market, MarginWarnings(), warned=False)
    assert await pausing.anchor(anchor) is None
    assert hot_state(store, without=("instruments",)) == before
    assert await engine.instruments.complete() == 1
    assert await _uncovered(engine, STRICT) == []


async def test_load_prepared_before_the_staging_is_refused_after_it(engine: Engine, store: redis.Redis) -> None:
    await _furnish(engine)
    async with engine.history_store.reserve() as writer:
        row = await writer.account(1)
        assert row is not None
        (load,) = await engine._healing.loads([row], {1: row.version}, await engine.market.market(), writer)
    await _stage(engine, STRICT)
    before = hot_state(store)
    assert await engine.accounts.load(load) is Loaded.CHANGED
    assert hot_state(store) == before


@pytest.mark.parametrize("quantity", ["0.1", "3"])
async def test_trade_and_flip_decided_before_the_staging_commit_under_both_rules(
    make_engine: MakeEngine, quantity: str
) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    await _furnish(engine)
    await deposit(engine, 1, "100000")
    engine.before_commit(lambda: _stage(engine, STRICT))
    # Account 1 is long 1: the second of them leaves it short 2.
    await sell(engine, 1, quantity, "50000")
    uncovered = await _uncovered(engine, STRICT)
    assert 1 not in uncovered
    # Nobody went through the holders yet.
    assert set(uncovered) == set(ACCOUNTS) - {1}
    assert await engine.instruments.complete() == 1
    assert await _uncovered(engine, STRICT) == []


async def test_flips_while_holders_are_anchored_miss_nobody(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    await _furnish(engine)
    for account_id in ACCOUNTS:
        await deposit(engine, account_id, "1000000")

    async def flip_all() -> None:
        for _, account_id in itertools.product(range(3), ACCOUNTS):
            await (sell if account_id % 2 else buy)(engine, account_id, "2", "50000")
            await (buy if account_id % 2 else sell)(engine, account_id, "2", "50000")

    async def change_rules() -> None:
        for instrument in (STRICT, LAX, STRICTER, LAX, STRICT):
            assert await _put(engine, instrument)
            assert await _uncovered(engine, instrument) == []

    await asyncio.gather(flip_all(), change_rules())
    assert await _uncovered(engine, STRICT) == []


async def test_of_two_changes_at_once_each_has_a_version_or_is_told_to_wait(
    make_engine: MakeEngine, query: Query
) -> None:
    engines = [await make_engine(opened=number == 0) for number in range(2)]
    await _furnish(engines[0])
    wanted = [STRICT, LAX]
    for _ in range(5):
        outcomes = await asyncio.gather(
            *(_put(engine, instrument) for engine, instrument in zip(engines, wanted, strict=True)),
            return_exceptions=True,
        )
        assert all(outcome is True or isinstance(outcome, InstrumentChangeUnderWayError) for outcome in outcomes)
        assert True in outcomes
    await engines[0].instruments.complete()
    versions = query("select version, effective_at is null from instruments order by version")
    assert versions == [(number, False) for number in range(1, len(versions) + 1)]
    assert await _in_force(engines[0]) == [(len(versions), None)]
    in_force = (await engines[0].instruments.get(BTC)).instrument
    assert await _uncovered(engines[0], in_force) == []


# --- deaths ---


class _Mortal:
    """Stores whose steps are counted over all of them; the process dies before one of them."""

    def __init__(self, dies_before: int) -> None:
        self.dies_before = dies_before
        self.steps: list[str] = []

    def around(self, store: Any) -> Any:
        return _MortalStore(store, self)


class _MortalStore:
    def __init__(self, store: Any, life: _Mortal) -> None:
        self._store = store
        self._life = life

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(target):
            return target

        async def call(*arguments: Any, **options: Any) -> Any:
            if len(self._life.steps) == self._life.dies_before:
                raise FunctionDiedError(name)
            self._life.steps.append(name)
            return await target(*arguments, **options)

        return call


def _mortal_service(engine: Engine, dies_before: int) -> tuple[InstrumentService, list[str]]:
    life = _Mortal(dies_before)
    store = life.around(_store(engine))
    anchoring = AnchoringService(life.around(engine.accounts), store, MarginWarnings())
    service = InstrumentService(life.around(engine._instrument_history), store, anchoring, engine.liquidations)
    return service, life.steps


@pytest.mark.parametrize("instrument", [STRICT, STRICTER, LAX])
@pytest.mark.parametrize("partitions", [1, 2])
async def test_death_before_each_step_leaves_everybody_covered_and_the_schedule_completes_it(
    make_engine: MakeEngine, query: Query, instrument: Instrument, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await _furnish(engine)
    steps_max = 0
    rules = itertools.cycle([instrument, Instrument(BTC)])
    for dies_before in range(100):
        wanted = next(rules)
        service, steps = _mortal_service(engine, dies_before)
        try:
            assert (await service.put(wanted, ALICE)).effective
        except FunctionDiedError:
            steps_max = len(steps)
        else:
            break
        # Whatever is in force now, everybody is covered by it, and the next run ends what was begun.
        for page, one in await _indexed(engine):
            assert covers(one.row.account, page.market, one.triggers)
        under_way = (await engine.instruments.get(BTC)).under_way
        completed = await engine.instruments.complete()
        assert completed == (under_way is not None)
        if under_way is None:
            assert await _put(engine, wanted)
        assert len(set(await _in_force(engine))) == 1
        assert await _uncovered(engine, wanted) == []
        assert (await engine.instruments.get(BTC)).under_way is None
    # Reading, recording, staging, anchoring both sides, activating, noting: for one partition already.
    assert steps_max >= 12
    assert query("select count(*) from instruments where effective_at is null") == [(0,)]


async def test_progress_is_noted_so_that_the_next_run_goes_on_where_time_was_up(
    engine: Engine, store: redis.Redis
) -> None:
    await _furnish(engine)
    outcome = await engine.instruments.put(STRICT, ALICE, budget_s=0.0)
    assert not outcome.effective
    assert await _in_force(engine) == [(0, 1)]
    with pytest.raises(InstrumentChangeUnderWayError):
        await engine.instruments.put(LAX, ALICE, budget_s=0.0)
    # The same terms again are no other change.
    again = await engine.instruments.put(STRICT, ALICE, budget_s=0.0)
    assert (again.instrument.version, again.effective) == (1, False)
    service, steps = _mortal_service(engine, 10_000)
    state = await _store(engine).read(0, BTC)
    anchoring = AnchoringService(engine.accounts, _store(engine), MarginWarnings())
    turns = iter([True, False])
    assert await anchoring.anchor_holders(state, lambda: next(turns)) is None
    assert store.hget("instrument_progress", BTC).split()[1:] == ["1", "ceiling", "0"]
    assert await service.complete() == 1
    assert steps.count("scan_holders") == 1
    assert store.hget("instrument_progress", BTC) is None
    assert await _uncovered(engine, STRICT) == []


async def test_rules_are_not_put_in_force_before_all_holders_are_anchored(engine: Engine) -> None:
    await _furnish(engine)
    await _stage(engine, STRICT)
    assert not await _store(engine).activate(await _store(engine).read(0, BTC))
    assert await _in_force(engine) == [(0, 1)]


# --- opening ---


async def test_emptied_redis_gets_its_rules_back_and_sound_triggers(engine: Engine, store: redis.Redis) -> None:
    await _furnish(engine)
    await _put(engine, STRICT)
    store.flushall()
    await engine.opening.open()
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    assert await _in_force(engine) == [(1, None)]
    assert await _uncovered(engine, STRICT) == []


async def test_emptied_redis_while_a_change_is_under_way_gets_the_rules_in_force_and_completes(
    engine: Engine, store: redis.Redis
) -> None:
    await _furnish(engine)
    await _put(engine, LAX)
    assert not (await engine.instruments.put(STRICT, ALICE, budget_s=0.0)).effective
    store.flushall()
    await engine.opening.open()
    assert await _in_force(engine) == [(1, None)]
    assert await engine.instruments.complete() == 1
    assert await _in_force(engine) == [(2, None)]
    assert await _uncovered(engine, STRICT) == []


@pytest.fixture
def raw(store: redis.Redis) -> Any:
    """Yield functions that copy everything in Redis, and put such a copy back as another server's."""
    import redis as driver  # noqa: PLC0415

    options = store.connection_pool.connection_kwargs
    client = driver.Redis(host=options["host"], port=options["port"])

    def restore(copied: dict[bytes, bytes]) -> None:
        client.flushall()
        for name, value in copied.items():
            client.restore(name, 0, value)
        client.hset("marker", "run_id", "another")

    yield (lambda: {name: client.dump(name) for name in client.scan_iter()}), restore
    client.close()


async def test_older_copy_of_redis_is_opened_with_the_newer_rules_and_all_accounts_anchored_to_them(
    engine: Engine, store: redis.Redis, raw: Any
) -> None:
    copy, restore = raw
    await _furnish(engine)
    older = copy()
    await _put(engine, STRICT)
    restore(older)
    report = await engine.opening.open()
    assert report.loaded == len(ACCOUNTS)
    assert await _in_force(engine) == [(1, None)]
    assert await _uncovered(engine, STRICT) == []
    assert store.exists("opening") == 0


async def test_opening_that_is_broken_off_after_the_rules_were_put_right_loads_every_account_all_the_same(
    engine: Engine, store: redis.Redis, raw: Any
) -> None:
    copy, restore = raw
    await _furnish(engine)
    older = copy()
    await _put(engine, STRICT)
    restore(older)
    engine.opening._rebuilt_per_page = 2
    report = await engine.opening.open(keep_going=lambda: store.hget("opening", "after") in (None, "0"))
    assert (report.complete, report.loaded) == (False, 2)
    assert store.hget("opening", "reload") == "1"
    report = await engine.opening.open()
    assert (report.complete, report.loaded) == (True, len(ACCOUNTS) - 2)
    assert await _uncovered(engine, STRICT) == []


async def test_triggers_of_an_account_that_is_kept_are_crossed_at_any_price_by_who_has_the_right_to(
    engine: Engine, store: redis.Redis
) -> None:
    await _furnish(engine)
    before = hot_state(store, without=("holds",))
    assert not await engine.accounts.cross(1, "another")
    assert hot_state(store, without=("holds",)) == before
    hold = await engine.accounts.hold(1, 60.0)
    assert await engine.accounts.cross(1, hold)
    await engine.accounts.release(1, hold)
    assert store.zscore(f"triggers:{BTC}:floor", 1) == float("inf")
    assert store.zscore(f"triggers:{ETH}:ceiling", 1) == float("-inf")
    assert [store.zscore(f"triggers:{symbol}:{side}", 1) for symbol, side in ((BTC, "ceiling"), (ETH, "floor"))] == [
        None,
        None,
    ]
    await engine.scans.scan()
    assert hot_state(store, without=("holds", "sweep")) == {
        name: value for name, value in before.items() if name != "sweep"
    }


async def test_older_copy_that_differs_in_nothing_that_triggers_guard_loads_nobody(engine: Engine, raw: Any) -> None:
    copy, restore = raw
    await _furnish(engine)
    older = copy()
    await _put(engine, Instrument(BTC, tick_size=Decimal(1)))
    restore(older)
    assert (await engine.opening.open()).loaded == 0
    assert await _in_force(engine) == [(1, None)]


async def test_partition_that_was_put_back_without_anybody_noticing_is_brought_in_line_by_the_schedule(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    await _furnish(engine)
    await _put(engine, LAX)
    text = store.hget("{p1}:instruments", BTC)
    await _put(engine, STRICT)
    store.hset("{p1}:instruments", BTC, text)
    assert await engine.instruments.complete() == 1
    assert await _in_force(engine) == [(2, None)] * 2
    assert await engine.instruments.complete() == 0


async def test_history_that_came_back_older_never_gives_a_version_out_twice(
    engine: Engine, query: Query, store: redis.Redis
) -> None:
    await _furnish(engine)
    await _put(engine, STRICT)
    await _put(engine, LAX)
    query("delete from instruments where version = 2 returning 1")
    outcome = await engine.instruments.put(STRICTER, ALICE)
    assert (outcome.effective, outcome.instrument.version) == (True, 3)
    assert await _in_force(engine) == [(3, None)]


@pytest.mark.parametrize("under_way", [True, False])
async def test_rules_that_history_has_lost_are_never_said_to_be_in_force_and_give_way_to_the_same_terms_again(
    engine: Engine, query: Query, *, under_way: bool
) -> None:
    await _furnish(engine)
    await _put(engine, STRICT)
    await _put(engine, LAX)
    query("delete from instruments where version = 2 returning 1")
    if under_way:
        query("update instruments set effective_at = null returning 1")
    flush_metrics()
    assert await engine.instruments.complete() == 0
    assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == 1
    assert query("select version, effective_at is null from instruments") == [(1, under_way)]
    assert await _in_force(engine) == [(2, None)]
    outcome = await engine.instruments.put(STRICT, ALICE)
    assert (outcome.effective, outcome.instrument.version) == (True, 3)
    assert await _in_force(engine) == [(3, None)]
    assert await _uncovered(engine, STRICT) == []
    assert query("select version, effective_at is null from instruments order by version") == [(1, False), (3, False)]
    assert await engine.instruments.complete() == 0
    assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == 1


async def test_default_rules_are_given_anew_where_history_has_lost_all_others(engine: Engine, query: Query) -> None:
    await _furnish(engine)
    await _put(engine, LAX)
    query("delete from instruments returning 1")
    flush_metrics()
    assert await engine.instruments.complete() == 0
    assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == 1
    outcome = await engine.instruments.put(Instrument(BTC), ALICE)
    assert (outcome.effective, outcome.instrument.version) == (True, 2)
    assert await _in_force(engine) == [(2, None)]


async def test_same_terms_again_bring_a_partition_in_line_that_was_put_back(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    await _furnish(engine)
    await _put(engine, LAX)
    text = store.hget("{p1}:instruments", BTC)
    await _put(engine, STRICT)
    store.hset("{p1}:instruments", BTC, text)
    assert not (await engine.instruments.put(STRICT, ALICE, budget_s=0.0)).effective
    assert await _put(engine, STRICT)
    assert await _in_force(engine) == [(2, None)] * 2


@pytest.mark.parametrize("partitions", [1, 2])
async def test_staged_rules_that_history_has_lost_are_taken_away_and_their_version_is_not_given_out_again(
    make_engine: MakeEngine, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await _furnish(engine)
    assert not (await engine.instruments.put(STRICT, ALICE, budget_s=0.0)).effective
    assert await _in_force(engine) == [(0, 1)] * partitions
    query("delete from instruments returning 1")
    assert await engine.instruments.complete() == 0
    assert await _in_force(engine) == [(0, None)] * partitions
    assert await _uncovered(engine, Instrument(BTC)) == []
    outcome = await engine.instruments.put(STRICTER, ALICE)
    assert (outcome.effective, outcome.instrument.version) == (True, 2)
    assert await _in_force(engine) == [(2, None)] * partitions


async def test_staged_rules_that_a_change_has_replaced_meanwhile_are_not_taken_away(engine: Engine) -> None:
    await _furnish(engine)
    await _stage(engine, STRICT)
    state = await _store(engine).read(0, BTC)
    assert await _store(engine).stage(state, dataclasses.replace(STRICTER, version=2))
    assert not await _store(engine).drop_staged(state)
    assert await _in_force(engine) == [(0, 2)]


async def test_version_that_was_dropped_is_kept_until_a_later_one_is_staged(engine: Engine, store: redis.Redis) -> None:
    await _furnish(engine)
    for version, last in ((9, 9), (1, 9), (10, 10)):
        assert await _store(engine).stage(
            await _store(engine).read(0, BTC), dataclasses.replace(STRICT, version=version)
        )
        assert (await _store(engine).read(0, BTC)).last_version == last
    assert "dropped" not in store.hget("instruments", BTC)


async def test_staged_rules_that_history_does_not_know_give_way(engine: Engine) -> None:
    await _furnish(engine)
    unknown = dataclasses.replace(STRICTER, version=9)
    assert await _store(engine).stage(await _store(engine).read(0, BTC), unknown)
    await engine._instrument_history.record(dataclasses.replace(STRICT, version=1), 0, ALICE)
    assert await engine.instruments.complete() == 1
    assert await _in_force(engine) == [(1, None)]
    assert await _uncovered(engine, STRICT) == []


# --- what is down ---


async def test_without_postgres_nothing_is_changed(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine()
    await _furnish(engine)
    before = hot_state(store)
    cut_off = await make_engine(opened=False, postgres_port=ports.choose_port())
    with pytest.raises(PostgresUnavailableError):
        await _put(cut_off, STRICT)
    assert hot_state(store) == before


async def test_state_that_is_not_loaded_is_said_before_anything_is_written(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    store.delete("marker")
    with pytest.raises(StateNotLoadedError):
        await _put(engine, STRICT)
    assert query("select count(*) from instruments") == [(0,)]


async def test_closing_asks_every_partition_for_holders(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=3)
    await mark(engine, "50000")
    await deposit(engine, 2, "100000")
    await buy(engine, 2, "1", "50000")
    assert await _put(engine, Instrument(BTC, status=InstrumentStatus.REDUCE_ONLY))
    with pytest.raises(InstrumentNotClosableError, match=r"^1 accounts hold"):
        await _put(engine, Instrument(BTC, status=InstrumentStatus.CLOSED))
    await sell(engine, 2, "1", "50000")
    assert await _put(engine, Instrument(BTC, status=InstrumentStatus.CLOSED))
