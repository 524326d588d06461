"""Fault points around a call: what is delivered, and what its caller hears."""

from __future__ import annotations

import asyncio

import pytest

from margin.errors import RedisTimeoutError
from tests.faults.points import Fault, FaultKind, FaultPlan, FaultPoint

BEFORE, AFTER = FaultPoint.BEFORE_COMMIT, FaultPoint.AFTER_COMMIT


class Store:
    """Counts what it is delivered, and answers with the count."""

    def __init__(self, *faults: Fault) -> None:
        self.plan = FaultPlan(faults)
        self.delivered = 0

    async def deliver(self) -> int:
        self.delivered += 1
        return self.delivered

    async def call(self) -> int:
        return await self.plan.around(BEFORE, AFTER, self.deliver, lambda: RedisTimeoutError("No answer."))


async def test_without_a_fault_a_call_is_delivered_once() -> None:
    store = Store()
    assert (await store.call(), store.delivered) == (1, 1)
    assert store.plan.reached == {BEFORE: 1, AFTER: 1}


@pytest.mark.parametrize(("point", "delivered"), [(BEFORE, 0), (AFTER, 1)])
async def test_a_drop_before_loses_the_request_and_one_after_the_reply(point: FaultPoint, delivered: int) -> None:
    store = Store(Fault(point, FaultKind.DROP))
    with pytest.raises(RedisTimeoutError):
        await store.call()
    assert store.delivered == delivered
    assert await store.call() == delivered + 1


@pytest.mark.parametrize(("point", "heard"), [(BEFORE, 2), (AFTER, 1)])
async def test_a_duplicate_before_is_heard_second_and_one_after_first(point: FaultPoint, heard: int) -> None:
    store = Store(Fault(point, FaultKind.DUPLICATE))
    assert await store.call() == heard
    assert store.delivered == 2


@pytest.mark.parametrize(("point", "delivered"), [(BEFORE, 0), (AFTER, 1)])
async def test_a_gate_holds_a_call_until_it_is_opened(point: FaultPoint, delivered: int) -> None:
    store = Store(Fault(point, FaultKind.GATE))
    calling = asyncio.create_task(store.call())
    await store.plan.gate.arrived.wait()
    assert store.delivered == delivered
    store.plan.gate.open()
    assert await calling == 1


async def test_disarmed_nothing_happens_any_more_and_who_waits_goes_on() -> None:
    store = Store(Fault(BEFORE, FaultKind.GATE), Fault(AFTER, FaultKind.DROP, times=0))
    calling = asyncio.create_task(store.call())
    await store.plan.gate.arrived.wait()
    store.plan.disarm()
    assert await calling == 1
    assert await store.call() == 2


async def test_commits_are_counted_by_request_and_key() -> None:
    plan = FaultPlan()

    async def request(*keys: str) -> None:
        for key in keys:
            plan.note_commit(key)

    await asyncio.gather(*(asyncio.create_task(request("a", "b", "a")) for _ in range(3)))
    assert plan.commits_max == 2
