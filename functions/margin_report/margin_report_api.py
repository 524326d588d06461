"""GET /margin-report: margin utilisation of all accounts, worst first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from margin import __version__
from margin.errors import CursorInvalidError, NoMarkPriceError, SnapshotExpiredError, UnavailableError
from margin.http import Answer, Cursor, DecimalText, Limit, Router, TimestampText, create_app, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["risk"])


class AccountDetail(Answer):
    """One account of the report."""

    account_id: int
    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    liquidation_risk: bool


class MarginReportAnswer(Answer):
    """One page of a snapshot taken at `as_of`; total and candidates are of the whole snapshot."""

    as_of: TimestampText
    total_accounts: int
    liquidation_candidates: list[int]
    accounts_detail: list[AccountDetail]
    next_cursor: str | None


@router.get(
    "/margin-report",
    summary="Margin utilisation of all accounts, worst first",
    responses=problems(NoMarkPriceError, CursorInvalidError, SnapshotExpiredError, UnavailableError),
)
async def get_margin_report(limit: Limit = 100, cursor: Cursor = None) -> MarginReportAnswer:
    """Without a cursor a new snapshot is taken; with one, a page of the snapshot that it points into."""
    report = await engine().report.page(limit=limit, cursor=cursor)
    return MarginReportAnswer(
        as_of=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=report.as_of_us),
        total_accounts=report.total_accounts,
        liquidation_candidates=report.liquidation_candidates,
        accounts_detail=[AccountDetail.model_validate(row) for row in report.rows],
        next_cursor=report.next_cursor,
    )


app = create_app(router, title="Margin: report", version=__version__, description=__doc__ or "")
handler = http_handler(app)
