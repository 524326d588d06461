"""Redis as one number of partitions divides it, and whose an opening of one of them is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.errors import StateNotLoadedError

if TYPE_CHECKING:
    from margin.ports import AccountStore, MarketStore
    from margin.ports.opening import PartitionStore
    from margin.services.controls import ControlService
    from margin.services.drain import DrainService
    from margin.services.funding_restore import FundingRestoreService
    from margin.services.healing import HealingService
    from margin.services.instrument_restore import InstrumentRestoreService

TAKEN_OVER = "Another process has taken over the opening of the state, or Redis was emptied meanwhile; try again."


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Redis as one number of partitions divides it; its clients do not look at markers when they connect."""

    partitions: PartitionStore
    accounts: AccountStore
    market: MarketStore
    healing: HealingService
    controls: ControlService
    funding: FundingRestoreService
    drain: DrainService
    instruments: InstrumentRestoreService


def require_ours(ours: bool) -> None:
    """Go on only while an opening was not taken over.

    Raises
    ------
    StateNotLoadedError
    """
    if not ours:
        raise StateNotLoadedError(TAKEN_OVER)
