"""March 2020 on real stores: three symbols at once, long and short; nobody is missed, and every record verifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from margin.caller import NOBODY
from margin.domain.controls import ENGINE_CONTROL, ControlState
from tests.integration.replay.crash import CrashReplay
from tests.integration.replay.market import BTC, ETH, SOL, moments

if TYPE_CHECKING:
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

SEED = 2020
# Deadlines that a busy machine keeps.
PATIENT = {"redis_timeout_s": 5.0, "postgres_timeout_s": 5.0, "postgres_connect_timeout_s": 5.0}


@pytest.mark.parametrize(
    ("partitions", "accounts", "since", "until"),
    [
        (1, 300, "2020-03-12T06", "2020-03-13T12"),
        (3, 100, "2020-03-12T09", "2020-03-12T14"),
    ],
)
async def test_nobody_is_missed_in_the_crash_and_every_record_verifies(
    make_engine: MakeEngine, partitions: int, accounts: int, since: str, until: str
) -> None:
    engine = await make_engine(partitions=partitions, **PATIENT)
    steps = moments(SEED, since=since, until=until)
    judged = await CrashReplay(engine, steps, accounts=accounts, seed=SEED).run()
    assert judged.wrong == []
    assert judged.misses == 0
    assert judged.looks == accounts * (len(steps) - 1 + len(steps) // 4)
    assert judged.events["liquidation in part"] > accounts / 20, judged
    paid = ("settlement", "deleveraging", "margin warning")
    for kind in (*(f"liquidation {how}" for how in ("whole", "with a shortfall", "of several positions")), *paid):
        assert judged.events[kind] > 0, judged
    assert judged.accepted > accounts


async def test_whom_nobody_liquidates_is_found(engine: Engine) -> None:
    steps = moments(SEED, since="2020-03-12T10", until="2020-03-12T11")
    replay = CrashReplay(engine, steps, accounts=40, seed=SEED)
    await replay.open_books()
    await engine.controls.set(ENGINE_CONTROL, ControlState.PAUSED, "a test", NOBODY)
    found = (await replay.go_on()).wrong
    for words in (
        "is below maintenance margin",
        "the index still names somebody",
        "was liquidatable at",
    ):
        assert any(words in sentence for sentence in found), words


def test_the_made_symbols_are_the_same_for_a_seed_and_fall_or_rise_with_the_crash() -> None:
    every = moments(SEED)
    assert len(every) == 312 * 4
    assert every == moments(SEED)
    assert [moment.prices[ETH] for moment in every] != [moment.prices[ETH] for moment in moments(SEED + 1)]
    assert moments(SEED, since="2020-03-12T08", until="2020-03-12T09") == [
        moment for moment in every if moment.label.startswith("2020-03-12T08")
    ]
    before, after = (next(m.prices for m in every if m.label.startswith(t)) for t in ("2020-03-12T10", "2020-03-13T02"))
    change = {symbol: after[symbol] / before[symbol] - 1 for symbol in (BTC, ETH, SOL)}
    assert change[ETH] < change[BTC] < 0 < change[SOL]
