"""Log and metrics: the singletons, and the few names that metrics may have.

Counts are kept in memory and published once per invocation as one line in CloudWatch's embedded metric format, and only
where `configure` said so: on a laptop and in tests they stay silent. There is no tracer: it costs 110 ms and 30 MB at a
cold start, while the platform's own tracing and the correlation id in every log line cost nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum, unique
from typing import Any, TextIO

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

SERVICE = "margin"
NAMESPACE = "Margin"

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")


@unique
class MetricName(StrEnum):
    """Every metric of the engine that counts."""

    ACCESS_REFUSED = "AccessRefused"
    REQUESTS_LIMITED = "RequestsLimited"
    TRADES_EXECUTED = "TradesExecuted"
    TRADES_REFUSED = "TradesRefused"
    LIQUIDATIONS = "Liquidations"
    LIQUIDATION_MISSES = "LiquidationMisses"
    LIQUIDATION_SHORTFALLS = "LiquidationShortfalls"
    LIQUIDATIONS_PUT_OFF = "LiquidationsPutOff"
    MARGIN_WARNINGS = "MarginWarnings"
    SETTLEMENTS = "Settlements"
    DELEVERAGINGS = "Deleveragings"
    MARK_PRICES = "MarkPrices"
    MARK_PRICES_SET_ASIDE = "MarkPricesSetAside"
    FUNDING_PAYMENTS = "FundingPayments"
    FUNDING_NOT_APPLIED = "FundingNotApplied"
    INSTRUMENTS_NOT_COMPLETED = "InstrumentsNotCompleted"
    ACCOUNTS_EVALUATED = "AccountsEvaluated"
    HISTORY_PENDING = "HistoryPending"
    HISTORY_FORKS = "HistoryForks"
    HISTORY_BLOCKED = "HistoryBlocked"
    COMMIT_CONFLICTS = "CommitConflicts"
    STORE_UNAVAILABLE = "StoreUnavailable"
    RECONCILE_DIFFERENCES = "ReconcileDifferences"


@unique
class GaugeName(StrEnum):
    """Every metric of the engine that measures; the unit stands last in the name."""

    HISTORY_PENDING_AGE = "HistoryPendingAgeS"
    MARK_AGE = "MarkAgeS"
    INSURANCE_FUND_DEFICIT = "InsuranceFundDeficit"
    INSURANCE_FUND_BALANCE = "InsuranceFundBalanceQuote"
    UNCOVERED_SHORTFALLS = "UncoveredShortfallsQuote"
    RECONCILE_AGE = "ReconcileAgeS"


logger = Logger(service=SERVICE, utc=True, use_rfc3339=True, serialize_stacktrace=False)
metrics = Metrics(namespace=NAMESPACE, service=SERVICE)


class _Publication:
    """What was counted since the last flush, and whether a flush publishes it."""

    def __init__(self) -> None:
        self.enabled = False
        self.counts: Counter[MetricName] = Counter()
        self.gauges: dict[GaugeName, float] = {}


_publication = _Publication()


def configure(
    *, publish_metrics: bool, service: str = SERVICE, log_level: str = "INFO", stream: TextIO | None = None
) -> None:
    """Set how this process logs and whether it publishes metrics; the composition root calls it once.

    Parameters
    ----------
    publish_metrics : bool
        True inside Lambda, where a line on stdout becomes a metric.
    service : str
        Dimension of the metrics: two deployments in one account have different ones.
    log_level : str
        The least severe level that is logged.
    stream : TextIO or None
        Where the log goes instead of stdout.
    """
    if stream is not None:
        logger.registered_handler.setStream(stream)  # type: ignore[attr-defined]  # ours is a StreamHandler
    metrics.provider.service = service
    _publication.enabled = publish_metrics
    logger.setLevel(log_level)


def count(name: MetricName, value: int = 1) -> None:
    """Add ``value`` to a metric of the present invocation."""
    _publication.counts[name] += value


def measure(name: GaugeName, value: float) -> None:
    """Set a metric of the present invocation to what it is now."""
    _publication.gauges[name] = value


def counted(name: MetricName) -> int:
    """Return what was counted since the last flush."""
    return _publication.counts[name]


def flush_metrics() -> None:
    """Publish the counts of the invocation as one line, if publishing is on, and start at zero again."""
    counts, gauges = dict(_publication.counts), dict(_publication.gauges)
    _publication.counts.clear()
    _publication.gauges.clear()
    if not _publication.enabled or not (counts or gauges):
        return
    for name, value in counts.items():
        metrics.add_metric(name=name.value, unit=MetricUnit.Count, value=value)
    for gauge, measured in gauges.items():
        unit = MetricUnit.Seconds if gauge.value.endswith("S") else MetricUnit.NoUnit
        metrics.add_metric(name=gauge.value, unit=unit, value=measured)
    metrics.flush_metrics()


def correlation_id(event: dict[str, Any]) -> str | None:
    """Return the id that ties the log lines of one request together across functions.

    The caller's ``X-Request-Id`` if it is harmless to print, else the gateway's request id; for other events their id,
    or the first queue message's.
    """
    headers = event.get("headers") or {}
    records = event.get("Records") or [{}]
    candidates = (
        *(value for name, value in headers.items() if name.lower() == "x-request-id"),
        (event.get("requestContext") or {}).get("requestId"),
        event.get("id"),
        records[0].get("messageId"),
    )
    return next((text for text in candidates if isinstance(text, str) and _CORRELATION_ID.fullmatch(text)), None)
