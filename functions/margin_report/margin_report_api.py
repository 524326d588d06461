"""GET /margin-report: margin utilisation of all accounts, worst first."""

from __future__ import annotations

from margin import __version__
from margin.contract.margin_report import MarginReportAnswer
from margin.errors import CursorInvalidError, LimitExceededError, NoMarkPriceError, SnapshotExpiredError
from margin.http import STORE_PROBLEMS, Cursor, Limit, Router, Scope, create_app, of_all_accounts, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["risk"])


@router.get(
    "/margin-report",
    summary="Margin utilisation of all accounts, worst first",
    responses=problems(NoMarkPriceError, CursorInvalidError, LimitExceededError, SnapshotExpiredError, *STORE_PROBLEMS),
)
@of_all_accounts(Scope.RISK_READ)
async def get_margin_report(limit: Limit = 100, cursor: Cursor = None) -> MarginReportAnswer:
    """Without a cursor a new snapshot is taken; with one, a page of the snapshot that it points into."""
    return MarginReportAnswer.of(await engine().report.page(limit=limit, cursor=cursor))


app = create_app(router, title="Margin: report", version=__version__, description=__doc__ or "")
handler = http_handler(app)
