"""Thousands of operations under faults, by fixed seeds; and that the simulation finds what is wrong, and tells it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from margin.domain.event import AcknowledgedBy
from tests.faults.points import FaultPoint
from tests.simulation.defects import DEFECTS, Defect
from tests.simulation.mishaps import Mishap
from tests.simulation.run import Finished, Plan, SimulationError, simulate

INLINE, DRAIN = AcknowledgedBy.HISTORY, AcknowledgedBy.REDIS
PLANS = [
    Plan(seed=1, operations=1500, weather="calm", partitions=1, acknowledged_by=INLINE),
    Plan(seed=2, operations=1500, weather="calm", partitions=3, acknowledged_by=DRAIN),
    Plan(seed=3, operations=1500, weather="showers", partitions=3, acknowledged_by=INLINE),
    Plan(seed=4, operations=1500, weather="showers", partitions=1, acknowledged_by=DRAIN),
    Plan(seed=5, operations=1500, weather="storm", partitions=1, acknowledged_by=INLINE),
    Plan(seed=6, operations=1500, weather="storm", partitions=3, acknowledged_by=DRAIN),
    Plan(seed=7, operations=1500, weather="bad events", partitions=3, acknowledged_by=INLINE),
    Plan(seed=8, operations=1500, weather="bad events", partitions=1, acknowledged_by=DRAIN),
    Plan(seed=11, operations=1500, weather="flickering history", partitions=3, acknowledged_by=INLINE),
    Plan(seed=12, operations=1500, weather="flickering history", partitions=1, acknowledged_by=DRAIN),
    Plan(seed=9, operations=1500, weather="time machine", partitions=1, acknowledged_by=INLINE),
    Plan(seed=10, operations=1500, weather="time machine", partitions=3, acknowledged_by=DRAIN),
]
REGRESSIONS = {
    "an opening took for refused what its drain had failed to store, and opened over an older Redis": (
        Plan(seed=3, operations=1200, weather="flickering history", partitions=1, acknowledged_by=INLINE),
        DEFECTS["opens over what was not drained"],
    ),
    "what Redis acknowledged after an opening was lost to an append that had begun before": (
        Plan(seed=40, operations=1200, weather="flickering history", partitions=1, acknowledged_by=DRAIN),
        DEFECTS["passes every fence"],
    ),
}
"""Seeds that find something in an engine without its repair; test_regressions.py has the smallest ways there."""

SEEDS_PER_DEFECT = 8
OPERATIONS_PER_DEFECT = 1200


@functools.cache
def finished(plan: Plan) -> Finished:
    """Run a plan once, however many tests look at it."""
    return simulate(plan)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_nothing_is_lost_doubled_or_contradicted_and_the_engine_comes_to_rest(plan: Plan) -> None:
    run = finished(plan)
    assert run.operations >= plan.operations
    assert run.events > plan.operations / 5


@pytest.mark.parametrize(("plan", "unrepaired"), REGRESSIONS.values(), ids=REGRESSIONS)
def test_a_seed_that_found_something_finds_it_no_more_and_without_the_repair_still(
    plan: Plan, unrepaired: Defect
) -> None:
    assert finished(plan).events > plan.operations / 5
    with pytest.raises(SimulationError, match="WrongError"):
        simulate(plan, unrepaired.parts)


def test_the_runs_kill_and_lose_at_every_fault_point() -> None:
    happened = sum((finished(plan).mishaps for plan in PLANS), start=Counter())
    kills = {Mishap.KILLED_BEFORE, Mishap.KILLED_AFTER, Mishap.KILLED_LATE}
    losses = {Mishap.REQUEST_LOST, Mishap.REPLY_LOST, Mishap.LATE}
    for point in FaultPoint:
        assert any(happened[f"{point}: {mishap}"] for mishap in kills), point
        assert any(happened[f"{point}: {mishap}"] for mishap in losses), point
    for event in ("restart", "rewind", "flush", "after_commit: delivered twice", "after_commit: delivered late"):
        assert happened[event], event


def test_the_runs_liquidate_in_part_and_whole_with_and_without_a_shortfall_and_beside_stale_marks() -> None:
    happened = sum((finished(plan).liquidations for plan in PLANS), start=Counter())
    assert happened["partial"] > 40
    assert happened["whole"] > 40
    assert happened["shortfall"] > 40
    assert happened["whole, and paid"] > 0
    assert happened["whole, then part of the next"] > 3
    assert happened["with a stale mark"] > 0
    assert happened["warned"] > 10


def test_the_runs_settle_funding_of_both_signs_again_and_again() -> None:
    happened = sum((finished(plan).liquidations for plan in PLANS), start=Counter())
    assert happened["funding received"] > 200
    assert happened["funding paid"] > 200


def test_on_a_calm_day_nobody_is_sent_away_but_while_an_operator_rebuilds() -> None:
    for plan in PLANS[:2]:
        statuses = {reply for reply in finished(plan).replies if not reply.startswith(("2", "4"))}
        assert statuses <= {"503 STATE_NOT_LOADED"}


def test_the_same_seed_is_the_same_run() -> None:
    plan = PLANS[5]
    assert simulate(plan) == finished(plan)


def test_another_seed_is_another_run() -> None:
    first, second = (Plan(seed=seed, operations=50, weather="storm") for seed in (1, 2))
    assert simulate(first).trace_hash != simulate(second).trace_hash


def test_a_seed_is_the_same_run_in_another_process() -> None:
    plan = Plan(seed=11, operations=300, weather="storm", partitions=3)
    arguments = [*("--seed", "11", "--operations", "300"), *("--weather", "storm", "--partitions", "3")]
    printed = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments, "--history", "inline"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout
    assert simulate(plan).trace_hash.startswith(printed.split()[-1])


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defective_engine_is_found(name: str) -> None:
    defect = DEFECTS[name]
    for seed in range(defect.seed, defect.seed + SEEDS_PER_DEFECT):
        plan = Plan(
            seed=seed,
            operations=OPERATIONS_PER_DEFECT,
            weather=defect.weather,
            acknowledged_by=DRAIN if defect.drains else INLINE,
        )
        try:
            simulate(plan, defect.parts)
        except SimulationError as error:
            # Not by an accident of the defect itself: what is found is that something is not as it must be.
            if str(error).startswith("WrongError"):
                return
    pytest.fail(f"{SEEDS_PER_DEFECT} seeds have not found it")


def test_what_is_found_is_told_with_its_seed_its_operation_and_what_came_before() -> None:
    defect = DEFECTS["commits again without asking"]
    plan = Plan(seed=1, operations=OPERATIONS_PER_DEFECT, weather=defect.weather)
    with pytest.raises(SimulationError) as first:
        simulate(plan, defect.parts)
    lines = str(first.value).splitlines()
    assert re.match(r"operation \d+, step \d+; the last 30 lines of the trace:", lines[1])
    assert len(lines) == 2 + 30 + 1
    assert lines[-1] == f"again: python -m tests.simulation {plan}"
    with pytest.raises(SimulationError) as second:
        simulate(plan, defect.parts)
    assert str(second.value).splitlines()[1:] == lines[1:]
