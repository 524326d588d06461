"""The composition root: the only module that knows which client serves which port.

An execution environment has one `Engine`, made when it is first asked for. Every part of it is made when first used,
and imported then where not nearly all functions use it. No part opens a connection before it is needed: an import costs
no round trip, and a snapshot of the process holds no socket.
"""

from __future__ import annotations

import dataclasses
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from margin import observability
from margin.clients.account_redis import AccountRedisClient
from margin.clients.base_redis import make_redis
from margin.clients.credentials import PostgresLogins, secret_password
from margin.clients.market_redis import MarketRedisClient
from margin.clients.tls import postgres_tls
from margin.config import HISTORY_DRAIN, Settings
from margin.domain.event import AcknowledgedBy
from margin.domain.liquidation import LiquidationPolicy
from margin.domain.margin_warning import MarginWarnings
from margin.services.healing import HealingService
from margin.services.journal import Journal
from margin.services.liquidation import LiquidationService
from margin.services.rate_limits import RateLimits

if TYPE_CHECKING:
    from margin.clients.audit_postgres import AuditPostgresClient
    from margin.clients.control_postgres import ControlPostgresClient
    from margin.clients.funding_postgres import FundingPostgresClient
    from margin.clients.instrument_postgres import InstrumentPostgresClient
    from margin.clients.partition_redis import PartitionRedisClient
    from margin.clients.postgres import PostgresClient
    from margin.clients.settlement_postgres import SettlementPostgresClient
    from margin.services.controls import ControlService
    from margin.services.crossed import CrossedAccountsService
    from margin.services.drain import DrainService
    from margin.services.funding import FundingService
    from margin.services.funding_list import FundingListService
    from margin.services.funds import FundsService
    from margin.services.health import HealthService
    from margin.services.history import HistoryService
    from margin.services.instruments import InstrumentService
    from margin.services.insurance_fund import InsuranceFundService
    from margin.services.layout import Layout
    from margin.services.margin import MarginService
    from margin.services.margin_warning import MarginWarningService
    from margin.services.mark_list import MarkListService
    from margin.services.mark_records import MarkRecordService
    from margin.services.marks import MarkPriceService
    from margin.services.opening import OpeningService
    from margin.services.preview import PreviewService
    from margin.services.rebuilding import RebuildService
    from margin.services.reconcile import ReconcileService
    from margin.services.report import ReportService
    from margin.services.scan import ScanService
    from margin.services.settlement import SettlementService
    from margin.services.stress import StressService
    from margin.services.trading import TradingService
    from margin.services.verification import VerificationService


OPENING_TIMEOUT_S = 30.0
AUDIT_TIMEOUT_S = 10.0
SETTLEMENT_TIMEOUT_S = 5.0
_HISTORIES = (
    *("history_store", "_opening_history", "_control_history"),
    *("_instrument_history", "_funding_history", "_audit_history", "_settlement_history"),
)


def tls_of_postgres(settings: Settings) -> dict[str, Any]:
    """Return the connection parameters of TLS to PostgreSQL, for whoever connects with a driver of their own."""
    return postgres_tls(settings)


class Engine:
    """All services of one process, wired to the real stores.

    Parameters
    ----------
    settings : Settings
        From the environment, or a test's own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def close(self) -> None:
        """Close every connection that was opened."""
        for name in ("_redis", "_opening_redis"):
            if name in self.__dict__:
                await self.__dict__[name].aclose(close_connection_pool=True)
        for name in _HISTORIES:
            if name in self.__dict__:
                await self.__dict__[name].close()

    def postgres_password(self) -> str:
        """Return the password that a connection made now would use, for the one function with a driver of its own."""
        return PostgresLogins(self.settings).login().password

    def functions_password(self) -> str:
        """Return the password that the functions' role is to have; "" where no secret holds one.

        Raises
        ------
        SecretUnavailableError
        """
        return secret_password(self.settings.postgres_functions_secret)

    # --- stores ---

    @cached_property
    def history_store(self) -> PostgresClient:
        """PostgreSQL; its driver is imported only by those who come here."""
        from margin.clients.postgres import PostgresClient

        return PostgresClient(self.settings)

    @cached_property
    def accounts(self) -> AccountRedisClient:
        """Accounts in Redis."""
        return AccountRedisClient(self._redis, self.settings.partitions)

    @cached_property
    def market(self) -> MarketRedisClient:
        """Mark prices and instruments in Redis."""
        return MarketRedisClient(self._redis, self.settings.partitions)

    @cached_property
    def partitions(self) -> PartitionRedisClient:
        """Markers in Redis."""
        from margin.clients.partition_redis import PartitionRedisClient

        return PartitionRedisClient(self._opening_redis, self.settings.partitions)

    # --- use cases ---

    @cached_property
    def trading(self) -> TradingService:
        """Trades."""
        from margin.services.trading import TradingService

        return TradingService(self._journal, self.liquidations)

    @cached_property
    def previews(self) -> PreviewService:
        """Trades that are not executed."""
        from margin.services.preview import PreviewService

        return PreviewService(self.accounts, self._limits)

    @cached_property
    def funds(self) -> FundsService:
        """Deposits and withdrawals."""
        from margin.services.funds import FundsService

        return FundsService(self._journal, self.liquidations)

    @cached_property
    def margin(self) -> MarginService:
        """Margin of one account."""
        from margin.services.margin import MarginService

        return MarginService(self.accounts, self._limits)

    @cached_property
    def report(self) -> ReportService:
        """The margin report."""
        from margin.services.report import ReportService

        settings = self.settings
        return ReportService(
            self.accounts, self.market, ttl_s=settings.report_ttl_s, accounts_max=settings.report_accounts_max
        )

    @cached_property
    def stress(self) -> StressService:
        """Stress tests."""
        from margin.services.stress import StressService

        return StressService(
            self.accounts,
            self.market,
            self.history_store,
            self._liquidation_policy,
            accounts_max=self.settings.report_accounts_max,
        )

    @cached_property
    def marks(self) -> MarkPriceService:
        """Mark prices."""
        from margin.services.marks import MarkPriceService

        return MarkPriceService(self.market, self._crossed, self._limits)

    @cached_property
    def funding(self) -> FundingService:
        """Payments of funding."""
        from margin.clients.funding_redis import FundingRedisClient
        from margin.services.funding import FundingService

        store = FundingRedisClient(self._redis, self.settings.partitions)
        warning_pct = self._warning_level.utilisation_pct
        return FundingService(self._funding_history, store, self._crossed, warning_pct=warning_pct)

    @cached_property
    def funding_list(self) -> FundingListService:
        """Funding that accounts have received and paid, and its rates."""
        from margin.services.funding_list import FundingListService

        return FundingListService(self._funding_history, self.accounts, self._limits)

    @cached_property
    def liquidations(self) -> LiquidationService:
        """Evaluation and liquidation."""
        return LiquidationService(
            self.accounts, self.market, self._journal, policy=self._liquidation_policy, warnings=self._warning_level
        )

    @cached_property
    def warnings(self) -> MarginWarningService:
        """Margin warnings."""
        from margin.services.margin_warning import MarginWarningService

        return MarginWarningService(self.accounts, self._journal, self._warning_level, self.liquidations)

    @cached_property
    def scans(self) -> ScanService:
        """What the schedule does beside mark prices."""
        from margin.services.scan import ScanService

        cycle_s = self.settings.sweep_cycle_s
        return ScanService(self.accounts, self.market, self.liquidations, self.warnings, sweep_cycle_s=cycle_s)

    @cached_property
    def history(self) -> HistoryService:
        """Trade and liquidation history."""
        from margin.services.history import HistoryService

        return HistoryService(self.history_store)

    @cached_property
    def controls(self) -> ControlService:
        """Pause switches; they are set whatever the markers say."""
        from margin.clients.control_redis import ControlRedisClient
        from margin.services.controls import ControlService

        store = ControlRedisClient(self._opening_redis, self.settings.partitions)
        return ControlService(self._control_history, store)

    @cached_property
    def instruments(self) -> InstrumentService:
        """Rules of symbols."""
        from margin.clients.instrument_redis import InstrumentRedisClient
        from margin.services.anchoring import AnchoringService
        from margin.services.instruments import InstrumentService

        store = InstrumentRedisClient(self._redis, self.settings.partitions)
        anchoring = AnchoringService(self.accounts, store, self._warning_level)
        return InstrumentService(self._instrument_history, store, anchoring, self.liquidations)

    @cached_property
    def health(self) -> HealthService:
        """Whether the stores can be used."""
        from margin.services.health import HealthService

        return HealthService(self.partitions, self.history_store)

    @cached_property
    def drain(self) -> DrainService:
        """Pending events."""
        from margin.services.drain import DrainService

        return DrainService(self.accounts, self.history_store, self._journal, self._healing, self.controls)

    @cached_property
    def mark_list(self) -> MarkListService:
        """Mark prices with their ages."""
        from margin.services.mark_list import MarkListService

        return MarkListService(self.market)

    @cached_property
    def mark_records(self) -> MarkRecordService:
        """Mark prices in history."""
        from margin.services.mark_records import MarkRecordService

        return MarkRecordService(self.market, self.history_store, kept_days=self.settings.mark_history_days)

    @cached_property
    def insurance_fund(self) -> InsuranceFundService:
        """The fund as history has it."""
        from margin.services.insurance_fund import InsuranceFundService

        return InsuranceFundService(self._settlement_history)

    @cached_property
    def settlement(self) -> SettlementService:
        """What pays for shortfalls."""
        from margin.services.settlement import SettlementService
        from margin.services.settlement_steps import SettlementSteps

        steps = SettlementSteps(self.accounts, self._journal, self.drain, self.liquidations)
        allowed = self.settings.auto_deleveraging
        return SettlementService(self._settlement_history, steps, self.accounts, self.market, auto_deleveraging=allowed)

    @cached_property
    def rebuilding(self) -> RebuildService:
        """Rebuilds accounts and partitions."""
        from margin.services.rebuilding import RebuildService

        return RebuildService(self._layout(self.settings.partitions), self._opening_history, self.opening)

    @cached_property
    def opening(self) -> OpeningService:
        """Opens partitions."""
        from margin.services.former_layout import FormerLayoutService
        from margin.services.opening import OpeningService

        history = self._opening_history
        former = FormerLayoutService(history, self._layout)
        return OpeningService(self._layout(self.settings.partitions), history, former)

    def _layout(self, partitions: int) -> Layout:
        """Redis divided into some partitions; the clients connect whatever the markers say: it is who writes them."""
        from margin.clients.control_redis import ControlRedisClient
        from margin.clients.funding_redis import FundingRedisClient
        from margin.clients.instrument_redis import InstrumentRedisClient
        from margin.clients.partition_redis import PartitionRedisClient
        from margin.services.controls import ControlService
        from margin.services.drain import DrainService
        from margin.services.funding_restore import FundingRestoreService
        from margin.services.instrument_restore import InstrumentRestoreService
        from margin.services.layout import Layout

        redis, history = self._opening_redis, self._opening_history
        accounts = AccountRedisClient(redis, partitions)
        market = MarketRedisClient(redis, partitions)
        healing = HealingService(accounts, market, self._warning_level)
        controls = ControlService(self._control_history, ControlRedisClient(redis, partitions))
        funding = FundingRestoreService(
            self._funding_history,
            FundingRedisClient(redis, partitions),
            warning_pct=self._warning_level.utilisation_pct,
        )
        return Layout(
            partitions=PartitionRedisClient(redis, partitions),
            accounts=accounts,
            market=market,
            healing=healing,
            controls=controls,
            funding=funding,
            instruments=InstrumentRestoreService(self._instrument_history, InstrumentRedisClient(redis, partitions)),
            drain=DrainService(accounts, history, self._make_journal(accounts, healing), healing, controls),
        )

    @cached_property
    def reconcile(self) -> ReconcileService:
        """Compares the stores."""
        from margin.clients.audit_redis import AuditRedisClient
        from margin.services.reconcile import ReconcileService

        return ReconcileService(self._audit_history, AuditRedisClient(self._redis, self.settings.partitions))

    @cached_property
    def verification(self) -> VerificationService:
        """Verifies history by itself; Redis is not asked."""
        from margin.services.verification import VerificationService

        return VerificationService(self._audit_history)

    @cached_property
    def _redis(self):  # type: ignore[no-untyped-def]  # noqa: ANN202 - the driver's own generic type
        return make_redis(self.settings)

    @cached_property
    def _opening_redis(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return make_redis(self.settings, check_marker=False)

    @cached_property
    def _opening_history(self) -> PostgresClient:
        """PostgreSQL for work in pages, which no caller waits for."""
        from margin.clients.postgres import PostgresClient

        return PostgresClient(dataclasses.replace(self.settings, postgres_timeout_s=OPENING_TIMEOUT_S))

    @cached_property
    def _audit_history(self) -> AuditPostgresClient:
        from margin.clients.audit_postgres import AuditPostgresClient

        return AuditPostgresClient(dataclasses.replace(self.settings, postgres_timeout_s=AUDIT_TIMEOUT_S))

    @cached_property
    def _settlement_history(self) -> SettlementPostgresClient:
        from margin.clients.settlement_postgres import SettlementPostgresClient

        return SettlementPostgresClient(dataclasses.replace(self.settings, postgres_timeout_s=SETTLEMENT_TIMEOUT_S))

    @cached_property
    def _instrument_history(self) -> InstrumentPostgresClient:
        from margin.clients.instrument_postgres import InstrumentPostgresClient

        return InstrumentPostgresClient(self.settings)

    @cached_property
    def _control_history(self) -> ControlPostgresClient:
        from margin.clients.control_postgres import ControlPostgresClient

        return ControlPostgresClient(self.settings)

    @cached_property
    def _funding_history(self) -> FundingPostgresClient:
        from margin.clients.funding_postgres import FundingPostgresClient

        return FundingPostgresClient(self.settings)

    @cached_property
    def _crossed(self) -> CrossedAccountsService:
        """Crossed accounts, evaluated at once or queued."""
        from margin.clients.liquidation_queue import LiquidationQueue
        from margin.services.crossed import CrossedAccountsService

        settings = self.settings
        queue = LiquidationQueue(settings.liquidations_queue_url) if settings.liquidations_queue_url else None
        return CrossedAccountsService(
            self.liquidations,
            self.warnings,
            crossed_inline_max=settings.crossed_inline_max,
            crossed_queued_max=settings.crossed_queued_max,
            queue=queue,
        )

    @cached_property
    def _journal(self) -> Journal:
        return self._make_journal(self.accounts, self._healing)

    @cached_property
    def _liquidation_policy(self) -> LiquidationPolicy:
        settings = self.settings
        return LiquidationPolicy(settings.liquidation_buffer, settings.liquidation_remaining_notional_min)

    @cached_property
    def _healing(self) -> HealingService:
        return HealingService(self.accounts, self.market, self._warning_level)

    @cached_property
    def _warning_level(self) -> MarginWarnings:
        return MarginWarnings(self.settings.margin_warning_pct)

    @cached_property
    def _limits(self) -> RateLimits:
        settings = self.settings
        return RateLimits(
            account_per_s=settings.rate_limit_account_per_s,
            account_burst=settings.rate_limit_account_burst,
            token_per_s=settings.rate_limit_token_per_s,
            token_burst=settings.rate_limit_token_burst,
        )

    def _make_journal(self, accounts: AccountRedisClient, healing: HealingService) -> Journal:
        settings = self.settings
        by = AcknowledgedBy.REDIS if settings.history == HISTORY_DRAIN else AcknowledgedBy.HISTORY
        return Journal(
            accounts,
            self.history_store,
            healing,
            idempotency_ttl_s=settings.idempotency_ttl_s,
            acknowledged_by=by,
            warnings=self._warning_level,
            limits=self._limits,
            idempotency_keys_max=settings.idempotency_keys_max,
        )


_engines: list[Engine] = []


def engine() -> Engine:
    """Return the engine of this process, made of the environment when first asked for."""
    if not _engines:
        settings = Settings.from_environment(os.environ)
        observability.configure(
            publish_metrics=bool(settings.aws_lambda_function_name),
            service=settings.app_name,
            log_level=settings.log_level,
        )
        use(Engine(settings))
    return _engines[0]


def use(other: Engine | None) -> None:
    """Make ``other`` the engine of this process (local server, tests); with None the environment makes the next."""
    _engines[:] = [] if other is None else [other]
