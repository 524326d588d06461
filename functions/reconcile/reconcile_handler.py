"""On a schedule: compare Redis with PostgreSQL, and look whether every chain and the ledger are sound."""

from __future__ import annotations

import dataclasses
from typing import Any

from margin.lambda_entry import event_handler
from margin.observability import GaugeName, logger, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

RESERVE_S = 15.0
"""Time that one page may still take; with less left the run stops and the next one goes on."""


async def reconcile(_event: dict[str, Any]) -> dict[str, Any]:
    """Reconcile once; the answer says how much was looked at, what differs, and whether the cycle is complete."""
    report = await engine().reconcile.reconcile(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.RECONCILE_AGE, report.age_s)
    result = dataclasses.asdict(report)
    # Each difference has a line of its own already.
    logger.info("reconciled", **{**result, "differences": report.differences_count})
    return result


handler = event_handler(reconcile)
