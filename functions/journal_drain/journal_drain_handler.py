"""On a schedule: move to history what a dead function or an outage left pending."""

from __future__ import annotations

import dataclasses
from typing import Any

from margin.lambda_entry import event_handler
from margin.observability import GaugeName, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 3.0
"""Time that one round may still take; with less left the drain stops and the next one goes on."""


async def drain(_event: dict[str, Any]) -> dict[str, Any]:
    """Drain once; the answer says how many events were stored and how many accounts still wait."""
    report = await engine().drain.drain(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.HISTORY_PENDING_AGE, report.oldest_s)
    measure(GaugeName.INSURANCE_FUND_DEFICIT, float(await engine().history.fund_deficit()))
    return dataclasses.asdict(report)


handler = event_handler(drain)
