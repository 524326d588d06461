"""Margin warnings on real stores: an index of their own beside that of liquidations."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.margin_warning import MarginWarnings
from tests.actions import BTC, ETH, buy, deposit, mark, sell

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

FLOORS, CEILINGS = "warnings:BTC-PERP:floor", "warnings:BTC-PERP:ceiling"


async def _long(engine: Engine, account_id: int = 1, balance: str = "14000") -> None:
    """Open a long of 1 at 50000: with 14000 its warning is due below 41142.857..., its liquidation below 40000."""
    await deposit(engine, account_id, balance)
    await buy(engine, account_id, "1", "50000")


def _events(query: Query, account_id: int = 1) -> list[str]:
    rows = query("select type from events where account_id = %(account_id)s order by n", account_id=account_id)
    return [event_type for (event_type,) in rows]


@pytest.mark.parametrize("partitions", [1, 3])
async def test_account_is_warned_once_by_a_mark_price_and_then_liquidated_by_another(
    make_engine: MakeEngine, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await mark(engine, "50000")
    await _long(engine)
    assert (await mark(engine, "41142.86")).at_risk == 0
    assert _events(query) == ["DEPOSIT", "TRADE"]
    await mark(engine, "41142.85")
    await mark(engine, "41142.84")
    assert _events(query) == ["DEPOSIT", "TRADE", "MARGIN_WARNING"]
    assert (await mark(engine, "39999")).liquidated == (1,)
    assert (await engine.reconcile.reconcile()).differences == []


async def test_warned_account_has_no_trigger_of_the_warning_and_a_deposit_gives_it_one_again(
    engine: Engine, store: redis.Redis
) -> None:
    await mark(engine, "50000")
    await _long(engine)
    assert store.zscore(FLOORS, "1") == pytest.approx(41142.857142857)
    await mark(engine, "41000")
    assert (store.zscore(FLOORS, "1"), store.hget("warned", "1")) == (None, "1")
    await deposit(engine, 1, "5000")
    assert store.zscore(FLOORS, "1") is not None
    assert store.hget("warned", "1") is None


async def test_closed_position_leaves_nothing_in_the_index_and_a_flip_changes_sides(
    engine: Engine, store: redis.Redis
) -> None:
    await mark(engine, "50000")
    await _long(engine, balance="30000")
    await sell(engine, 1, "2", "50000")
    assert (store.zscore(FLOORS, "1"), store.zscore(CEILINGS, "1") is not None) == (None, True)
    await buy(engine, 1, "1", "50000")
    assert not store.exists(FLOORS, CEILINGS, "triggers:BTC-PERP:floor", "triggers:BTC-PERP:ceiling")


async def test_triggers_in_redis_are_those_of_the_domain(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await _long(engine, balance="30000")
    await sell(engine, 1, "3", "2000", symbol=ETH)
    view = await engine.accounts.read(1)
    assert view.account is not None
    expected, _ = MarginWarnings(engine.settings.margin_warning_pct).triggers(view.account, view.market, warned=False)
    assert store.zscore(FLOORS, "1") == expected[BTC].score
    assert store.zscore("warnings:ETH-PERP:ceiling", "1") == expected[ETH].score


async def test_scan_warns_whom_a_mark_price_had_no_time_for(engine: Engine, query: Query) -> None:
    await mark(engine, "50000")
    for account_id in (1, 2, 3):
        await _long(engine, account_id)
    await engine.market.set_marks({BTC: Decimal(41000)}, crossed_max=0)
    report = await engine.scans.scan()
    assert (report.crossed, report.warned, report.complete) == (0, 3, True)
    assert [_events(query, account_id)[-1] for account_id in (1, 2, 3)] == ["MARGIN_WARNING"] * 3


async def test_sweep_gives_an_account_of_another_level_its_triggers(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    without = await make_engine(margin_warning_pct=Decimal(100))
    await mark(without, "50000")
    await _long(without)
    assert not store.exists(FLOORS)
    engine = await make_engine(sweep_cycle_s=0)
    report = await engine.scans.scan()
    assert (report.missed, report.warned) == ([], 0)
    assert store.zscore(FLOORS, "1") == pytest.approx(41142.857142857)


async def test_rebuilt_account_that_was_warned_is_warned_again_and_its_chain_holds(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await mark(engine, "50000")
    await _long(engine)
    await mark(engine, "41000")
    store.flushdb()
    await engine.opening.open()
    await mark(engine, "41000")
    assert _events(query) == ["DEPOSIT", "TRADE", "MARGIN_WARNING", "MARGIN_WARNING"]
    assert (await engine.reconcile.reconcile()).differences == []


async def test_many_engines_at_once_warn_once(make_engine: MakeEngine, query: Query) -> None:
    engines = [await make_engine() for _ in range(3)]
    await mark(engines[0], "50000")
    await _long(engines[0])
    await engines[0].market.set_marks({BTC: Decimal(41000)}, crossed_max=0)
    await asyncio.gather(*(engine.warnings.warn(1) for engine in engines for _ in range(4)))
    assert _events(query) == ["DEPOSIT", "TRADE", "MARGIN_WARNING"]
