"""Mark prices: their stamps, whom they bring to evaluation, and that no commit slips in between."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.market_redis import SYMBOLS_MAX
from margin.errors import LimitExceededError, StateNotLoadedError
from margin.ports import Anchor
from margin.services.liquidation import Verdict
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.integration.stores.hot_state import hot_state
from tests.integration.stores.interrupted import InterruptedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

TICK = Decimal("0.00000001")


async def _long(engine: Engine, account_id: int = 1) -> None:
    """Open a long of 1 at 50000 with 14000: its liquidation price is 40000 exactly."""
    await deposit(engine, account_id, "14000")
    await buy(engine, account_id, "1", "50000")


async def _short(engine: Engine, account_id: int = 1) -> None:
    """Open a short of 1 at 50000 with 16000: its liquidation price is 60000 exactly."""
    await deposit(engine, account_id, "16000")
    await sell(engine, account_id, "1", "50000")


async def _set(engine: Engine, price: Decimal | str, symbol: str = BTC) -> tuple[int, tuple[int, ...]]:
    """Store a mark price without evaluating anybody: how many it crosses, and who."""
    (update,) = await engine.market.set_marks({symbol: Decimal(price)}, crossed_max=10)
    return update.crossed_count, update.crossed


async def test_stamp_strictly_rises_even_where_the_clock_does_not(engine: Engine, store: redis.Redis) -> None:
    stamps = [(await engine.market.set_marks({BTC: Decimal(50000)}, crossed_max=0))[0].stamp_us for _ in range(20)]
    assert stamps == sorted(set(stamps))
    future = stamps[-1] + 10**9
    store.hset("mark_stamps", BTC, str(future))
    (update,) = await engine.market.set_marks({BTC: Decimal(50001)}, crossed_max=0)
    assert update.stamp_us == future + 1
    assert store.hget("mark_stamps", BTC) == str(future + 1)
    assert store.hget("mark_prices", BTC) == "50001"


async def test_other_partition_keeps_a_newer_mark_and_takes_only_newer_ones(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    await _set(engine, "50000")
    stamp = int(store.hget("{p1}:mark_stamps", BTC))
    store.hset("{p1}:mark_stamps", BTC, str(stamp + 10**12))
    await _set(engine, "51000")
    assert store.hget("{p0}:mark_prices", BTC) == "51000"
    assert store.hget("{p1}:mark_prices", BTC) == "50000"


async def test_partition_that_lags_is_brought_up_by_the_scan(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=2)
    await _set(engine, "50000")
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    # Who set the last mark died between the two partitions.
    stamp = str(int(store.hget("{p0}:mark_stamps", BTC)) + 1)
    store.hset("{p0}:mark_prices", BTC, "39999")
    store.hset("{p0}:mark_stamps", BTC, stamp)
    report = await engine.scans.scan()
    assert report.liquidated == [1]
    assert (store.hget("{p1}:mark_prices", BTC), store.hget("{p1}:mark_stamps", BTC)) == ("39999", stamp)


@pytest.mark.parametrize(
    ("offset", "crossed", "liquidated"), [(TICK, 0, False), (Decimal(0), 1, False), (-TICK, 1, True)]
)
async def test_floor_is_crossed_at_its_very_price_and_liquidated_one_tick_below(
    engine: Engine, offset: Decimal, crossed: int, liquidated: bool
) -> None:
    await mark(engine, "50000")
    await _long(engine)
    assert await _set(engine, 40000 + offset) == (crossed, (1,) * crossed)
    assert (await engine.liquidations.evaluate(1) is Verdict.LIQUIDATED) is liquidated


@pytest.mark.parametrize(
    ("offset", "crossed", "liquidated"), [(-TICK, 0, False), (Decimal(0), 1, False), (TICK, 1, True)]
)
async def test_ceiling_is_crossed_at_its_very_price_and_liquidated_one_tick_above(
    engine: Engine, offset: Decimal, crossed: int, liquidated: bool
) -> None:
    await mark(engine, "50000")
    await _short(engine)
    assert await _set(engine, 60000 + offset) == (crossed, (1,) * crossed)
    assert (await engine.liquidations.evaluate(1) is Verdict.LIQUIDATED) is liquidated


async def test_price_names_those_whom_it_crosses_and_nobody_else(engine: Engine) -> None:
    await mark(engine, "50000")
    for account_id, balance in ((1, "14000"), (2, "12200"), (3, "18500")):
        await deposit(engine, account_id, balance)
        await buy(engine, account_id, "1", "50000")  # floors at 40000, 42000 and 35000
    await _short(engine, 4)
    assert await _set(engine, "42000.5") == (0, ())
    assert await _set(engine, "41000") == (1, (2,))
    assert await _set(engine, "37000") == (2, (2, 1))
    assert await _set(engine, "60001") == (1, (4,))


async def test_all_crossed_accounts_are_counted_though_only_some_are_named(engine: Engine) -> None:
    await mark(engine, "50000")
    for account_id in range(1, 6):
        await _long(engine, account_id)
    (update,) = await engine.market.set_marks({BTC: Decimal(39999)}, crossed_max=2)
    assert (update.crossed_count, len(update.crossed)) == (5, 2)


async def test_accounts_beyond_those_evaluated_at_once_are_left_to_the_scan(make_engine: MakeEngine) -> None:
    engine = await make_engine(crossed_inline_max=2, crossed_queued_max=2)
    await mark(engine, "50000")
    for account_id in range(1, 6):
        await _long(engine, account_id)
    outcome = await mark(engine, "39999")
    assert (outcome.at_risk, len(outcome.liquidated)) == (5, 2)
    report = await engine.scans.scan()
    assert (report.crossed, report.swept, len(report.liquidated)) == (3, 5, 3)


async def test_two_symbols_of_one_call_are_judged_together(engine: Engine, query: Query) -> None:
    await engine.marks.set_marks({BTC: Decimal(50000), ETH: Decimal(50000)})
    await deposit(engine, 1, "24000")
    await buy(engine, 1, "1", "50000")
    await sell(engine, 1, "1", "50000", symbol=ETH)
    # Each symbol alone would ruin the account; together they leave it where it was.
    outcome = await engine.marks.set_marks({BTC: Decimal(90000), ETH: Decimal(90000)})
    assert (outcome.at_risk, outcome.liquidated) == (1, ())
    assert query("select count(*) from liquidations") == [(0,)]
    assert (await mark(engine, "120000", ETH)).liquidated == (1,)


async def test_trade_committed_on_an_older_mark_is_told_crossed_and_evaluated(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    await mark(engine, "50000")
    await deposit(engine, 1, "10000")
    engine.before_commit(lambda: _set(engine, "44000"))
    outcome = await buy(engine, 1, "1", "50000")
    assert (outcome.crossed, outcome.final) == (True, True)
    assert query("select type from events order by n") == [("DEPOSIT",), ("TRADE",), ("LIQUIDATION",)]


async def test_withdrawal_decided_on_an_older_mark_is_decided_again(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    await mark(engine, "50000")
    await deposit(engine, 1, "20000")
    await buy(engine, 1, "1", "50000")
    engine.before_commit(lambda: _set(engine, "48000"))
    outcome = await withdraw(engine, 1, "1000")
    assert outcome.result["withdrawable"] == "7400"  # 19000 - 2000 - 0.2 * 48000
    assert query("select count(*) from events where type = 'WITHDRAWAL'") == [(1,)]


async def test_price_that_recovers_before_the_liquidation_commits_saves_the_account(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    await mark(engine, "50000")
    await _long(engine)
    engine.before_commit(lambda: _set(engine, "50000"))
    assert (await mark(engine, "39000")).liquidated == ()
    assert query("select count(*) from liquidations") == [(0,)]
    margin = await engine.margin.account_margin(1)
    assert margin.account.positions[BTC].quantity == 1


async def test_evaluation_of_a_healthy_account_anchors_it_to_the_present_mark(
    engine: Engine, store: redis.Redis
) -> None:
    await engine.marks.set_marks({BTC: Decimal(50000), ETH: Decimal(2000)})
    await deposit(engine, 1, "20000")
    await buy(engine, 1, "1", "50000")
    await buy(engine, 1, "5", "2000", symbol=ETH)
    floor = store.zscore("triggers:BTC-PERP:floor", "1")
    version = store.hget("versions", "1")
    outcome = await mark(engine, str(Decimal(int(floor))))
    assert (outcome.at_risk, outcome.liquidated) == (1, ())
    assert store.zscore("triggers:BTC-PERP:floor", "1") < int(floor)
    assert store.hget("versions", "1") == version
    assert (await mark(engine, str(Decimal(int(floor))))).at_risk == 0


async def test_anchor_that_changes_nothing_writes_nothing(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    await _long(engine)
    before = hot_state(store)
    store.config_resetstat()
    assert await engine.liquidations.evaluate(1) is Verdict.ANCHORED
    statistics = store.info("commandstats")
    assert statistics["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_zadd" not in statistics
    assert hot_state(store) == before


async def test_anchor_of_an_account_that_has_changed_is_not_set(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    await _long(engine)
    stale = await engine.accounts.read(1)
    await deposit(engine, 1, "1")
    before = hot_state(store)
    assert await engine.accounts.anchor(Anchor(1, stale.version, {})) is None
    assert hot_state(store) == before


async def test_symbols_are_limited_and_a_refused_call_stores_none_of_its_prices(
    engine: Engine, store: redis.Redis
) -> None:
    await engine.marks.set_marks({f"S{number}": Decimal(1) for number in range(SYMBOLS_MAX - 1)})
    with pytest.raises(LimitExceededError):
        await engine.marks.set_marks({"A": Decimal(1), "B": Decimal(1)})
    assert store.hlen("mark_prices") == SYMBOLS_MAX - 1
    await engine.marks.set_marks({"A": Decimal(1), "S1": Decimal(2)})
    assert store.hget("mark_prices", "S1") == "2"


async def test_mark_price_needs_a_loaded_state(engine: Engine, store: redis.Redis) -> None:
    store.delete("marker")
    with pytest.raises(StateNotLoadedError):
        await mark(engine, "50000")
    assert not store.exists("mark_prices")
