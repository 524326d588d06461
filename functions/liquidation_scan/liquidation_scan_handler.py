"""On a schedule: evaluate everyone whom a mark in force crosses, and sweep some accounts without the index."""

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
    """Scan once; the answer says how many accounts were crossed and swept, and who was liquidated."""
    report = await engine().scans.scan(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.MARK_AGE, report.oldest_mark_age_s)
    result = dataclasses.asdict(report)
    logger.info("liquidation_scan", **{**result, "liquidated": len(report.liquidated), "missed": len(report.missed)})
    return result


handler = event_handler(scan)
