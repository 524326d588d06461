"""On a schedule: look at every account and liquidate those whose equity fell below maintenance margin."""

from __future__ import annotations

import dataclasses
from typing import Any

from margin.lambda_entry import event_handler
from margin.observability import GaugeName, logger, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 3.0
"""Time that one page may still take; with less left the scan stops between pages and says that it is not complete."""


async def scan(_event: dict[str, Any]) -> dict[str, Any]:
    """Scan once; the answer says how many accounts were seen and who was liquidated."""
    report = await engine().liquidations.scan(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.MARK_AGE, report.oldest_mark_age_s)
    result = dataclasses.asdict(report)
    logger.info("liquidation_scan", **{**result, "liquidated": len(report.liquidated)})
    return result


handler = event_handler(scan)
