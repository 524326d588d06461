"""Plays a scenario and judges it."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from margin.errors import MarginError
from tests.faults.house import House, ProcessEndedError
from tests.faults.ledger import Told
from tests.faults.load import DoesNotRecoverError, Load
from tests.faults.scenarios import Pace, Scenario, Stage
from tests.faults.verdict import Verdict, judge
from tests.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

_FIRST_ACCOUNT = 1_001
_ASKED_AGAIN = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one scenario; times in seconds, ``kept`` is where data and logs were left."""

    scenario: Scenario
    verdict: Verdict
    faults: int
    operations: int
    requests: int
    done: int
    refused: int
    unknown: int
    recoveries_s: tuple[float, ...]
    slowest_s: float
    note: str
    kept: Path | None


async def play(scenario: Scenario, *, seconds: float, seed: int, pace: Pace | None = None) -> Outcome:
    """Play one scenario on stores of its own.

    Parameters
    ----------
    scenario : Scenario
        Which one.
    seconds : float
        How long its faults go on; each happens once at least.
    seed : int
        Decides what is left to chance, as far as several processes let anybody decide.
    pace : Pace, optional
        How much happens between faults.

    Raises
    ------
    EmbeddedServerError, ProcessEndedError
        A store or the engine cannot be started.
    """
    chance = random.Random(f"{seed} {scenario.name}")  # noqa: S311 - no secret is made of it
    async with contextlib.AsyncExitStack() as stack:
        house = await stack.enter_async_context(House())
        settings = dict(scenario.settings)
        proxy = None
        if scenario.proxied:
            server = house.valkey if scenario.proxied == "redis" else house.postgres
            proxy = await stack.enter_async_context(Proxy(server.host, server.port))
            settings[f"{scenario.proxied}_port"] = proxy.port
        # Stopped before the proxy, which waits for its connections to end.
        stack.push_async_callback(house.remove_processes)
        for _ in range(scenario.processes):
            await house.add_process(**settings)
        accounts = range(_FIRST_ACCOUNT, _FIRST_ACCOUNT + scenario.accounts)
        load = Load(house.processes, accounts, callers=scenario.callers, keyed=scenario.keyed, chance=chance)
        stage = Stage(house=house, load=load, proxy=proxy, chance=chance, seconds=seconds, pace=pace or Pace())
        verdict = await _play(scenario, stage)
        house.keep = not verdict.good
        ledger = load.ledger
        return Outcome(
            scenario=scenario,
            verdict=verdict,
            faults=stage.faults,
            operations=len(ledger.operations),
            requests=ledger.attempts,
            done=ledger.count(Told.DONE),
            refused=ledger.count(Told.REFUSED),
            unknown=ledger.count(Told.UNKNOWN),
            recoveries_s=tuple(load.recoveries_s),
            slowest_s=load.slowest_s,
            note=stage.note,
            kept=house.directory if house.keep else None,
        )


async def _play(scenario: Scenario, stage: Stage) -> Verdict:
    problems = []
    try:
        async with stage.load as load:
            if load.callers:
                await load.answers(scenario.accounts)
            await scenario.act(stage)
            await load.finish()
            await load.ask_again(_ASKED_AGAIN)
    except (DoesNotRecoverError, ProcessEndedError, AssertionError) as error:
        problems.append(str(error))
        stage.house.thaw()
    try:
        verdict = await judge(stage.house.settings, stage.load.ledger)
    except (MarginError, psycopg.Error) as error:
        verdict = Verdict(wrong=[f"the stores cannot be judged: {error}"])
    verdict.wrong += [*problems, *stage.house.exceptions_logged()]
    return verdict
