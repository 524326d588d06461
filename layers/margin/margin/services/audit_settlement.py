"""Whether what was planned to settle a shortfall, and what the chains say that happened, are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.chain import Mismatch
from margin.domain.decimals import plain

if TYPE_CHECKING:
    from margin.ports.audit import AuditedSettlement


def unsound_settlement(settled: AuditedSettlement) -> tuple[Mismatch, ...]:
    """Say what is not as it must be with what became of a shortfall, or with a deleveraging.

    Parameters
    ----------
    settled : AuditedSettlement
        All of one moment.
    """
    found = []
    where = f"of liquidation {settled.liquidation_id}"
    if settled.settled > settled.shortfall:
        what = f"more was paid {where} than it left unpaid"
        found.append(Mismatch(what, plain(settled.shortfall), plain(settled.settled)))
    if settled.unplanned:
        found.append(Mismatch(f"events {where} happened that no step planned", "0", str(settled.unplanned)))
    if settled.missing:
        found.append(Mismatch(f"steps {where} are noted as executed without their event", "0", str(settled.missing)))
    return tuple(found)
