"""On a schedule: pay what liquidated accounts could not, from the insurance fund and by deleveraging."""

from __future__ import annotations

import dataclasses
from typing import Any

from margin.domain.decimals import plain
from margin.lambda_entry import event_handler
from margin.observability import GaugeName, logger, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 10.0
"""Time that one step may still take; with less left the run stops between steps and the next one goes on."""


async def settle(_event: dict[str, Any]) -> dict[str, Any]:
    """Settle once; the answer says what was paid and deleveraged, and how the fund stands, in quote currency."""
    report = await engine().settlement.settle(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.INSURANCE_FUND_BALANCE, float(report.balance))
    measure(GaugeName.UNCOVERED_SHORTFALLS, float(report.uncovered))
    amounts = {name: plain(getattr(report, name)) for name in ("settled", "balance", "uncovered")}
    result = {**dataclasses.asdict(report), **amounts}
    logger.info("settled", **result)
    return result


handler = event_handler(settle)
