"""Short runs of `make faults`, real kills included, and a judge who is shown to find what is wrong."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.database import connect
from tests.faults.house import House
from tests.faults.ledger import Kind, Told
from tests.faults.load import Load
from tests.faults.points import Fault, FaultKind, FaultPoint
from tests.faults.run import play
from tests.faults.scenarios import SCENARIOS, Pace, Scenario, store_killed_at
from tests.faults.verdict import judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ACCOUNT_IDS = itertools.count(1_001)
SEED = 7
BRISK = Pace(before=(2, 15), after=6)


@pytest.mark.parametrize(
    "name",
    [
        "redis-frozen",
        "redis-emptied",
        "redis-put-back",
        "postgres-frozen",
        "process-killed-after-commit",
        "process-killed-after-history",
        "drain-killed",
        "commit-reply-lost-keyed",
        "calls-doubled",
        "crowd-on-one-account",
    ],
)
async def test_nothing_is_lost_or_doubled_and_the_engine_answers_again(name: str) -> None:
    await _play(SCENARIOS[name])


@pytest.mark.parametrize(
    ("store", "points"),
    [
        ("redis", [FaultPoint.AFTER_READ, FaultPoint.AFTER_COMMIT, FaultPoint.BEFORE_CLEANUP]),
        ("postgres", [FaultPoint.AFTER_COMMIT, FaultPoint.AFTER_HISTORY]),
    ],
)
async def test_a_store_killed_between_two_steps_loses_and_doubles_nothing(store: str, points: list[FaultPoint]) -> None:
    await _play(store_killed_at(store, points))


async def _play(scenario: Scenario) -> None:
    outcome = await play(scenario, seconds=0, seed=SEED, pace=BRISK)
    assert (outcome.verdict.lost, outcome.verdict.doubled, outcome.verdict.wrong) == ([], [], [])
    assert outcome.faults > 0
    assert outcome.done > 0


@pytest_asyncio.fixture(scope="module")
async def house() -> AsyncIterator[House]:
    async with House() as house:
        await house.add_process()
        yield house


@pytest.fixture
def account_id() -> int:
    """Return an account of the test's own."""
    return next(_ACCOUNT_IDS)


@pytest.fixture
async def load(house: House, account_id: int) -> AsyncIterator[Load]:
    """Yield callers who have done their work, and what they were told."""
    load = Load(house.processes, [account_id], callers=2, keyed=1.0, chance=random.Random(SEED))  # noqa: S311
    async with load:
        await load.answers(20)
        await load.finish()
        yield load


async def test_the_judge_finds_what_is_lost_doubled_or_contradicted(house: House, load: Load, account_id: int) -> None:
    assert (await judge(house.settings, load.ledger)).good
    operations = load.ledger.operations
    withheld = load.ledger.open(account_id, Kind.DEPOSIT, keyed=True)
    withheld.told, withheld.event_id = Told.DONE, 12345
    refused = next(operation for operation in operations if operation.told is Told.DONE)
    refused.told = Told.REFUSED
    verdict = await judge(house.settings, load.ledger)
    assert len(verdict.lost) == 1
    assert withheld.key is not None
    assert withheld.key in verdict.lost[0]
    assert verdict.doubled == []
    assert len(verdict.wrong) == 1
    assert "was refused" in verdict.wrong[0]


async def test_the_judge_finds_an_operation_that_happened_twice(house: House, load: Load, account_id: int) -> None:
    twice = load.ledger.open(account_id, Kind.BUY, keyed=True)
    await load.settle(twice)
    first = twice.key
    twice.key = "another"
    await load.settle(twice)
    twice.key = first
    verdict = await judge(house.settings, load.ledger)
    assert len(verdict.doubled) == 1
    assert first is not None
    assert first in verdict.doubled[0]


async def test_the_judge_finds_history_that_was_changed(house: House, load: Load, account_id: int) -> None:
    settings = house.settings
    with connect(settings) as connection:
        connection.execute(
            "update ledger_lines set amount = amount + 1 where account_id = %s and ledger_account = 'cash'",
            [account_id],
        )
    verdict = await judge(settings, load.ledger)
    assert any("ledger" in sentence for sentence in verdict.wrong)


def test_a_fault_is_written_as_it_is_read() -> None:
    text = "after_commit:kill_process:after=57"
    fault = Fault.parse(text)
    assert fault == Fault(FaultPoint.AFTER_COMMIT, FaultKind.KILL_PROCESS, after=57)
    assert str(fault) == text
    assert [number for number in range(1, 100) if fault.due(number)] == [57]


def test_a_fault_comes_again_as_often_as_it_says() -> None:
    fault = Fault.parse("before_read:delay:after=2:every=3:times=2:seconds=0.5")
    assert fault.seconds == 0.5
    assert [number for number in range(1, 20) if fault.due(number)] == [2, 5]
    for_ever = Fault.parse("before_read:drop:every=4:times=0")
    assert [number for number in range(1, 14) if for_ever.due(number)] == [1, 5, 9, 13]


@pytest.mark.parametrize("text", ["nowhere:drop", "after_read:nothing", "after_read:drop:when=3", "after_read"])
def test_a_fault_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of an enum, an unpacking or ours
        Fault.parse(text)
