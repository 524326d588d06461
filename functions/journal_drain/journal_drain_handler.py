"""On a schedule: move to history what waits for it, and put right what differs from it.

The state is opened first where it has to be, after a fail-over for example.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from margin.errors import OpeningUnderWayError
from margin.lambda_entry import event_handler
from margin.observability import GaugeName, logger, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 3.0
"""Time that one round may still take; with less left the drain stops and the next one goes on."""


async def drain(_event: dict[str, Any]) -> dict[str, Any]:
    """Drain once; the answer says how many events were stored and how many accounts still wait."""

    def keep_going() -> bool:
        return remaining_s() > RESERVE_S

    try:
        await engine().opening.open(keep_going=keep_going)
    except OpeningUnderWayError as error:
        # Whoever it is drains first of all.
        logger.warning("drain_left_out", reason=error.detail)
        return {"left_out": error.detail}
    await engine().controls.align()
    report = await engine().drain.drain(keep_going=keep_going)
    await engine().drain.compare_recent(report)
    await engine().mark_records.save()
    # Funding first: it touches no account, while a change of rules goes through all who hold the symbol.
    await engine().funding.complete(keep_going=keep_going)
    await engine().instruments.complete(max(0.0, remaining_s() - RESERVE_S))
    measure(GaugeName.HISTORY_PENDING_AGE, report.oldest_s)
    measure(GaugeName.INSURANCE_FUND_DEFICIT, float(await engine().history.fund_deficit()))
    return dataclasses.asdict(report)


handler = event_handler(drain)
