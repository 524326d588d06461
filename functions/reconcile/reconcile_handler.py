"""On a schedule: compare Redis with PostgreSQL, and look whether every chain and the ledger are sound.

For an operator: {"command": "verify", "account_id": 42} verifies the history of one account at once, Redis unasked.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from margin.errors import InvalidRequestError, MarginError
from margin.lambda_entry import event_handler
from margin.observability import GaugeName, logger, measure
from margin.runtime import engine
from margin.time_budget import remaining_s

if TYPE_CHECKING:
    from margin.services.verification import Break

RESERVE_S = 15.0
"""Time that one page may still take; with less left the run stops and the next one goes on."""

BREAKS_MAX = 100
"""How many breaks an answer lists; all are counted."""

_WANTED = 'Give {"command": "verify", "account_id": 42}, or nothing to reconcile.'


class VerifyError(Exception):
    """A verification that failed; the message begins with the code of the reason."""


async def run(event: dict[str, Any]) -> dict[str, Any]:
    """Do what the schedule or an operator wants.

    Raises
    ------
    VerifyError
        The payload is malformed, history does not know the account, or PostgreSQL is down.
    """
    if "command" not in event:
        return await reconcile(event)
    try:
        return await verify(event)
    except MarginError as error:
        raise VerifyError(f"{error.code}: {error.detail}") from error


async def reconcile(_event: dict[str, Any]) -> dict[str, Any]:
    """Reconcile once; the answer says how much was looked at, what differs, and whether the cycle is complete."""
    report = await engine().reconcile.reconcile(keep_going=lambda: remaining_s() > RESERVE_S)
    measure(GaugeName.RECONCILE_AGE, report.age_s)
    result = dataclasses.asdict(report)
    # Each difference has a line of its own already.
    logger.info("reconciled", **{**result, "differences": report.differences_count})
    return result


async def verify(event: dict[str, Any]) -> dict[str, Any]:
    """Verify one account; the answer counts, and lists the first breaks.

    Raises
    ------
    MarginError
    """
    account_id = event.get("account_id")
    if event.keys() != {"command", "account_id"} or event["command"] != "verify" or type(account_id) is not int:
        raise InvalidRequestError(_WANTED)
    breaks: list[Break] = []
    report = await engine().verification.verify(
        account_id=account_id,
        found=lambda one: breaks.append(one) if len(breaks) < BREAKS_MAX else None,
        keep_going=lambda: remaining_s() > RESERVE_S,
    )
    logger.info("verified", account_id=account_id, **dataclasses.asdict(report))
    return {**dataclasses.asdict(report), "found": [dataclasses.asdict(one) for one in breaks]}


handler = event_handler(run)
