"""What takes too long for `make test` and needs no load of callers: the same looks as there, at far more."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import migrate_schema
from margin.domain.safe_zone import triggers
from margin.runtime import Engine
from tests.faults.house import House
from tests.integration.replay.crash import CrashReplay
from tests.integration.replay.market import moments
from tests.property.joint_paths import JointPath, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.integration.replay.crash import Judged
    from tests.property.trigger_indexes import Index

    Tell = Callable[[str], None]

CRASH_ACCOUNTS = 500
JOINT_PATHS = Walk(seed=0, accounts=10_000, steps=1_000, brink=0.2)
_TOLD_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a look: what was counted, and sentences about what should not be."""

    figures: str
    wrong: Sequence[str]


@dataclass(frozen=True, slots=True)
class LongLook:
    """One row of the second table.

    Parameters
    ----------
    name : str
        For the command line.
    title : str
        For the table.
    look : callable
        Given a seed and somebody to tell how far it is.
    """

    name: str
    title: str
    look: Callable[[int, Tell], Seen]


def look_along_joint_paths(seed: int, tell: Tell, walk: Walk = JOINT_PATHS, index: Index = triggers) -> Seen:
    """Walk; at every step the accounts found by triggers must be those found by looking at everybody, exactly."""
    path = JointPath(dataclasses.replace(walk, seed=seed), index)
    told_s = time.monotonic()
    try:
        for tally in path.steps():
            if time.monotonic() - told_s >= _TOLD_EVERY_S:
                told_s = time.monotonic()
                tell(f"step {tally.steps:,} of {walk.steps:,}, {tally.below_margin:,} liquidations")
    except AssertionError as error:
        return Seen(f"stopped at step {path.tally.steps:,}", [str(error)])
    tally = path.tally
    wrong = [f"step {step}: account {account_id} was missed" for step, account_id in tally.missed]
    liquidated = f"{tally.partly:,} liquidated in part, {tally.wholly:,} whole"
    figures = (
        f"{walk.accounts:,} accounts x {tally.steps:,} steps: {tally.evaluations:,} evaluated, "
        f"{tally.crossed:,} crossed, {tally.below_margin:,} below margin ({liquidated})"
    )
    return Seen(figures, wrong)


def look_at_a_crash(seed: int, tell: Tell, accounts: int = CRASH_ACCOUNTS, since: str = "") -> Seen:
    """Replay March 2020 for three symbols on stores of its own; see `tests.integration.replay`."""
    judged = asyncio.run(_replay(seed, tell, accounts, since))
    wrong = [*judged.wrong, *(["the sweep counted misses"] if judged.misses else [])]
    return Seen(f"{accounts:,} accounts: {judged}", wrong)


async def _replay(seed: int, tell: Tell, accounts: int, since: str) -> Judged:
    async with House() as house:
        await asyncio.to_thread(migrate_schema.migrate, house.settings)
        engine = Engine(house.settings)
        try:
            await engine.opening.open()
            return await CrashReplay(engine, moments(seed, since=since), accounts=accounts, seed=seed).run(tell)
        finally:
            await engine.close()


LONG_LOOKS = {
    look.name: look
    for look in (
        LongLook("crash-2020", "March 2020 in three symbols, everybody looked at after every price", look_at_a_crash),
        LongLook(
            "joint-paths", "Triggers against a look at everybody, along joint price paths", look_along_joint_paths
        ),
    )
}
