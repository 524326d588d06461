"""One process of the engine: the services as `margin.runtime` wires them, with parts that a test may replace."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.margin_warning import MarginWarnings
from margin.services.controls import ControlService
from margin.services.crossed import CrossedAccountsService
from margin.services.drain import DrainService
from margin.services.former_layout import FormerLayoutService
from margin.services.funding import FundingService
from margin.services.funding_restore import FundingRestoreService
from margin.services.funds import FundsService
from margin.services.healing import HealingService
from margin.services.instrument_restore import InstrumentRestoreService
from margin.services.journal import Journal
from margin.services.layout import Layout
from margin.services.liquidation import LiquidationService
from margin.services.margin_warning import MarginWarningService
from margin.services.mark_records import MarkRecordService
from margin.services.marks import MarkPriceService
from margin.services.opening import OpeningService
from margin.services.rebuilding import RebuildService
from margin.services.scan import ScanService
from margin.services.trading import TradingService
from tests.simulation.clockwork import Process
from tests.simulation.stores import KEY_TTL_S, Reached, Stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.event import AcknowledgedBy
    from margin.services.drain import DrainReport

WARNINGS = MarginWarnings(Decimal(80))
"""From the utilisation on that deployments have by default."""

_PAGE = 2
"""So few accounts that an opening has several pages to be broken off between."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What the engine is made of; a test of the simulation puts a defective part in place of a sound one."""

    journal: type[Journal] = Journal
    healing: type[HealingService] = HealingService
    drain: type[DrainService] = DrainService
    opening_drain: type[DrainService] = DrainService
    opening: type[OpeningService] = OpeningService
    healed_accounts: Callable[[Any], Any] = lambda accounts: accounts


SOUND = Parts()


class Engine(Process):
    """One process."""

    def __init__(self, name: str, stores: Stores, acknowledged_by: AcknowledgedBy, parts: Parts) -> None:
        super().__init__(name)
        self._stores = stores
        self._parts = parts
        self._acknowledged_by = acknowledged_by
        self._reached = reached = Reached.by(self, stores)
        self.healing = parts.healing(parts.healed_accounts(reached.accounts), reached.market)
        journal = self._journal(reached.accounts, self.healing)
        self.controls = ControlService(reached.switch_records, reached.switches)
        self.liquidations = LiquidationService(reached.accounts, reached.market, journal, warnings=WARNINGS)
        self.warnings = MarginWarningService(reached.accounts, journal, WARNINGS, self.liquidations)
        self.trading = TradingService(journal, self.liquidations)
        self.funds = FundsService(journal, self.liquidations)
        crossed = CrossedAccountsService(self.liquidations, self.warnings, crossed_inline_max=100, crossed_queued_max=0)
        self.marks = MarkPriceService(reached.market, crossed)
        warning_pct = WARNINGS.utilisation_pct
        self.funding = FundingService(reached.funding_records, reached.funding, crossed, warning_pct=warning_pct)
        self.scans = ScanService(reached.accounts, reached.market, self.liquidations, self.warnings, sweep_cycle_s=0)
        self.mark_records = MarkRecordService(reached.market, reached.history)
        self.drain = parts.drain(reached.accounts, reached.history, journal, self.healing, self.controls)
        layout = self._layout(stores.redis.partitions)
        former = FormerLayoutService(reached.history, self._layout)
        self.opening = parts.opening(layout, reached.history, former, compared_per_page=_PAGE, rebuilt_per_page=_PAGE)
        self.rebuilding = RebuildService(layout, reached.history, self.opening)

    async def journal_drain(self) -> DrainReport:
        """Do what the function of that name does on its schedule."""
        await self.opening.open()
        await self.controls.align()
        report = await self.drain.drain()
        await self.drain.compare_recent(report)
        await self.mark_records.save()
        await self.funding.complete()
        return report

    def _journal(self, accounts: Any, healing: HealingService) -> Journal:
        return self._parts.journal(
            accounts,
            self._reached.history,
            healing,
            idempotency_ttl_s=KEY_TTL_S,
            acknowledged_by=self._acknowledged_by,
            warnings=WARNINGS,
        )

    def _layout(self, partitions: int) -> Layout:
        reached = self._reached
        accounts = reached.unchecked_accounts(self._stores, partitions)
        healing = self._parts.healing(self._parts.healed_accounts(accounts), reached.market)
        journal = self._journal(accounts, healing)
        return Layout(
            partitions=reached.partitions,
            accounts=accounts,
            market=reached.market,
            healing=healing,
            controls=self.controls,
            funding=FundingRestoreService(
                reached.funding_records, reached.funding, warning_pct=WARNINGS.utilisation_pct
            ),
            instruments=InstrumentRestoreService(reached.instrument_records, reached.instruments),
            drain=self._parts.opening_drain(accounts, reached.history, journal, healing, self.controls),
        )
