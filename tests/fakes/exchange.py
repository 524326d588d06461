"""All services wired to stores in memory, as `margin.runtime` wires them to the real ones."""

from __future__ import annotations

from decimal import Decimal

from margin.domain.event import AcknowledgedBy
from margin.domain.liquidation import LiquidationPolicy
from margin.domain.margin_warning import MarginWarnings
from margin.services.anchoring import AnchoringService
from margin.services.controls import ControlService
from margin.services.crossed import CrossedAccountsService
from margin.services.drain import DrainService
from margin.services.former_layout import FormerLayoutService
from margin.services.funding import FundingService
from margin.services.funding_list import FundingListService
from margin.services.funding_restore import FundingRestoreService
from margin.services.funds import FundsService
from margin.services.healing import HealingService
from margin.services.health import HealthService
from margin.services.history import HistoryService
from margin.services.instrument_restore import InstrumentRestoreService
from margin.services.instruments import InstrumentService
from margin.services.journal import Journal
from margin.services.layout import Layout
from margin.services.liquidation import LiquidationService
from margin.services.margin import MarginService
from margin.services.margin_warning import MarginWarningService
from margin.services.mark_list import MarkListService
from margin.services.mark_records import MarkRecordService
from margin.services.marks import MarkPriceService
from margin.services.opening import OpeningService
from margin.services.preview import PreviewService
from margin.services.rebuilding import RebuildService
from margin.services.report import ReportService
from margin.services.scan import ScanService
from margin.services.stress import StressService
from margin.services.trading import TradingService
from tests.fakes.controls import FakeControlHistory, FakeControls
from tests.fakes.faults import Clock, Faults
from tests.fakes.funding import FakeFunding, FakeFundingHistory
from tests.fakes.history import FakeHistory
from tests.fakes.instruments import FakeInstrumentHistory, FakeInstruments
from tests.fakes.queue import FakeQueue
from tests.fakes.redis import FakeAccounts, FakeMarket, FakePartitions, FakeRedis

IDEMPOTENCY_TTL_S = 3600
REPORT_TTL_S = 300


class Exchange:
    """A margin engine on fakes; ``redis``, ``history_store``, ``clock`` and ``faults`` are what tests turn."""

    def __init__(
        self,
        *,
        partitions: int = 1,
        page_size: int = 2,
        crossed_inline_max: int = 100,
        crossed_queued_max: int = 0,
        report_accounts_max: int = 1000,
        sweep_cycle_s: int = 0,
        acknowledged_by: AcknowledgedBy = AcknowledgedBy.HISTORY,
        margin_warning_pct: int = 100,
    ) -> None:
        self.warning_level = MarginWarnings(Decimal(margin_warning_pct))
        self.clock = Clock()
        self.faults = Faults()
        self.redis = FakeRedis(self.clock, self.faults, partitions=partitions, page_size=page_size)
        self.history_store = FakeHistory(self.clock, self.faults, idempotency_ttl_s=IDEMPOTENCY_TTL_S)
        self.accounts = FakeAccounts(self.redis)
        self.market = FakeMarket(self.redis)
        self.partitions = FakePartitions(self.redis)
        self.control_history = FakeControlHistory(self.clock, self.faults)
        self.controls = ControlService(self.control_history, FakeControls(self.redis))
        self.healing = HealingService(self.accounts, self.market, self.warning_level)
        self._acknowledged_by = acknowledged_by
        self.journal = self._make_journal(self.accounts, self.healing)
        self.liquidations = LiquidationService(self.accounts, self.market, self.journal, warnings=self.warning_level)
        self.warnings = MarginWarningService(self.accounts, self.journal, self.warning_level, self.liquidations)
        self.trading = TradingService(self.journal, self.liquidations)
        self.funds = FundsService(self.journal, self.liquidations)
        self.margin = MarginService(self.accounts)
        self.previews = PreviewService(self.accounts)
        self.queue = FakeQueue(self.faults) if crossed_queued_max else None
        self.crossed = CrossedAccountsService(
            self.liquidations,
            self.warnings,
            crossed_inline_max=crossed_inline_max,
            crossed_queued_max=crossed_queued_max,
            queue=self.queue,
        )
        self.marks = MarkPriceService(self.market, self.crossed)
        self.funding_history = FakeFundingHistory(self.history_store, self.faults)
        self.funding = FundingService(
            self.funding_history, FakeFunding(self.redis), self.crossed, warning_pct=self.warning_level.utilisation_pct
        )
        self.funding_list = FundingListService(self.funding_history, self.accounts)
        self.report = ReportService(self.accounts, self.market, ttl_s=REPORT_TTL_S, accounts_max=report_accounts_max)
        self.stress = StressService(
            self.accounts, self.market, self.history_store, LiquidationPolicy(), accounts_max=report_accounts_max
        )
        self.scans = ScanService(
            self.accounts, self.market, self.liquidations, self.warnings, sweep_cycle_s=sweep_cycle_s
        )
        self.history = HistoryService(self.history_store)
        self.health = HealthService(self.partitions, self.history_store)
        self.drain = DrainService(self.accounts, self.history_store, self.journal, self.healing, self.controls)
        self.mark_records = MarkRecordService(self.market, self.history_store, kept_days=90)
        self.mark_list = MarkListService(self.market)
        self.instrument_history = FakeInstrumentHistory(self.clock, self.faults)
        self.instruments = self.make_instruments()
        layout = self._layout(partitions)
        self.opening = OpeningService(layout, self.history_store, FormerLayoutService(self.history_store, self._layout))
        self.rebuilding = RebuildService(layout, self.history_store, self.opening)

    async def open(self) -> Exchange:
        await self.opening.open()
        return self

    def make_instruments(self) -> InstrumentService:
        """Another function's service, which knows nothing but what the stores hold."""
        store = FakeInstruments(self.redis)
        anchoring = AnchoringService(self.accounts, store, self.warning_level)
        return InstrumentService(self.instrument_history, store, anchoring, self.liquidations)

    def _make_journal(self, accounts: FakeAccounts, healing: HealingService) -> Journal:
        return Journal(
            accounts,
            self.history_store,
            healing,
            idempotency_ttl_s=IDEMPOTENCY_TTL_S,
            acknowledged_by=self._acknowledged_by,
            warnings=self.warning_level,
        )

    def _layout(self, partitions: int) -> Layout:
        accounts = FakeAccounts(self.redis, check_marker=False, partitions=partitions)
        healing = HealingService(accounts, self.market, self.warning_level)
        journal = self._make_journal(accounts, healing)
        return Layout(
            partitions=self.partitions,
            accounts=accounts,
            market=self.market,
            healing=healing,
            controls=self.controls,
            funding=FundingRestoreService(
                self.funding_history, FakeFunding(self.redis), warning_pct=self.warning_level.utilisation_pct
            ),
            instruments=InstrumentRestoreService(self.instrument_history, FakeInstruments(self.redis)),
            drain=DrainService(accounts, self.history_store, journal, healing, self.controls),
        )
