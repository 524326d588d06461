"""Events that reach history after Redis went back to where they never happened."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import HistoryForkError
from tests.actions import deposit
from tests.faults.points import Fault, FaultKind, FaultPlan, FaultPoint
from tests.faults.serve import FaultyEngine

if TYPE_CHECKING:
    import redis

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine


async def test_an_event_that_redis_lost_before_it_was_stored_is_undone_and_its_key_executes_anew(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    plan = FaultPlan()
    slow: Any = await make_engine(kind=partial(FaultyEngine, plan=plan))
    await deposit(slow, 1, "100")
    plan.arm(Fault(FaultPoint.AFTER_COMMIT, FaultKind.GATE))
    late = asyncio.create_task(deposit(slow, 1, "10", key="late"))
    await plan.gate.arrived.wait()
    store.flushall()
    other = await make_engine()
    plan.gate.open()

    with pytest.raises(HistoryForkError):
        await late
    assert await _balances(other) == (Decimal(100), Decimal(100))
    again = await deposit(other, 1, "10", key="late")
    assert (again.final, again.replayed) == (True, False)
    assert await _balances(other) == (Decimal(110), Decimal(110))


async def test_an_event_that_redis_kept_over_an_opening_is_stored_though_its_function_comes_late(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    plan = FaultPlan()
    slow: Any = await make_engine(kind=partial(FaultyEngine, plan=plan))
    await deposit(slow, 1, "100")
    plan.arm(Fault(FaultPoint.AFTER_COMMIT, FaultKind.GATE))
    late = asyncio.create_task(deposit(slow, 1, "10", key="late"))
    await plan.gate.arrived.wait()
    store.delete("marker")
    other = await make_engine()
    plan.gate.open()

    assert (await late).final
    assert await _balances(other) == (Decimal(110), Decimal(110))


async def test_an_event_that_redis_acknowledged_after_it_was_opened_is_not_displaced_by_one_from_before(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    plan = FaultPlan()
    slow: Any = await make_engine(kind=partial(FaultyEngine, plan=plan), history="drain")
    await deposit(slow, 1, "100")
    await slow.drain.drain()
    await deposit(slow, 1, "10")
    plan.arm(Fault(FaultPoint.BEFORE_HISTORY, FaultKind.GATE))
    late = asyncio.create_task(slow.drain.drain())
    await plan.gate.arrived.wait()
    store.flushall()
    other = await make_engine(history="drain")
    outcome = await deposit(other, 1, "7")
    assert outcome.final
    plan.gate.open()

    await late
    await other.drain.drain()

    # What Redis had acknowledged and lost is lost; what it acknowledged since then is not.
    assert await _balances(other) == (Decimal(107), Decimal(107))


async def test_an_event_that_another_stored_after_its_function_was_fenced_is_not_said_to_be_undone(
    make_engine: MakeEngine,
) -> None:
    plan = FaultPlan()
    slow: Any = await make_engine(kind=partial(FaultyEngine, plan=plan))
    other = await make_engine()
    await deposit(slow, 1, "100")
    plan.arm(Fault(FaultPoint.BEFORE_HISTORY, FaultKind.GATE))
    late = asyncio.create_task(deposit(slow, 1, "10", key="late"))
    await plan.gate.arrived.wait()
    # Out of time: closed and fenced, nothing drained.
    assert not (await other.rebuilding.rebuild(keep_going=lambda: False)).complete
    before = plan.gate
    plan.arm(Fault(FaultPoint.AFTER_HISTORY, FaultKind.GATE))
    before.open()
    await plan.gate.arrived.wait()
    assert (await other.rebuilding.rebuild()).drained == 1
    plan.gate.open()
    assert (await late).final
    assert await _balances(other) == (Decimal(110), Decimal(110))


async def _balances(engine: Engine) -> tuple[Decimal, Decimal]:
    """Balance of account 1 in PostgreSQL and in Redis."""
    async with engine.history_store.reserve() as writer:
        stored = await writer.account(1)
    held = await engine.accounts.read(1)
    assert stored is not None
    assert held.account is not None
    return stored.account.balance, held.account.balance
