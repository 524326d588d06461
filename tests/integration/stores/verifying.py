"""Verifying in pages so small that everything goes over several."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from margin.clients.audit_postgres import AuditPostgresClient
from margin.clients.audit_redis import AuditRedisClient
from margin.runtime import Engine
from margin.services.reconcile import PAGE_SIZES, ReconcileService
from margin.services.verification import VerificationService

if TYPE_CHECKING:
    from margin.config import Settings
    from margin.services.verification import Break, VerificationReport

SIZES = dataclasses.replace(
    PAGE_SIZES, accounts=2, events=3, strangers=2, ledger_lines=5, settlements=1, steps=1, changes=2
)


async def verified(
    history: AuditPostgresClient, account_id: int | None = None
) -> tuple[VerificationReport, list[Break]]:
    """Verify to the end; the report and all breaks."""
    found: list[Break] = []
    report = await VerificationService(history, SIZES).verify(found=found.append, account_id=account_id)
    assert report.complete
    assert report.breaks == len(found)
    return report, found


async def breaks(history: AuditPostgresClient, account_id: int | None = None) -> list[tuple[str, str]]:
    """Where something is not as it must be, and what."""
    _, found = await verified(history, account_id)
    return [(one.where, one.what) for one in found]


async def differences(settings: Settings) -> list[tuple[int | None, str]]:
    """Reconcile from the beginning to the end; of whom something differs, and what."""
    async with contextlib.AsyncExitStack() as at_the_end:
        engine = Engine(settings)
        at_the_end.push_async_callback(engine.close)
        history = AuditPostgresClient(settings)
        at_the_end.push_async_callback(history.close)
        hot = AuditRedisClient(engine.accounts.redis, settings.partitions)
        report = await ReconcileService(history, hot, SIZES).reconcile()
        assert report.complete
    return [(one.account_id, one.what) for one in report.differences]
