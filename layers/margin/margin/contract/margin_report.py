"""GET /margin-report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict

from margin.http.wire import Answer, DecimalText, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.services.report import MarginReport


class AccountDetail(Answer):
    """One account of the report; utilisation is null where no equity is left to cover maintenance margin.

    `liquidation_risk` says that it is to be liquidated, with the benefit of the doubt about stale marks, as in
    /positions; utilisation is that at the marks, however old.
    """

    account_id: int
    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    liquidation_risk: bool


class MarginReportAnswer(Answer):
    """One page of the snapshot taken at `as_of`; total and candidates are those of the whole snapshot."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "as_of": "2026-01-31T12:00:00.000000Z",
                    "total_accounts": 3,
                    "liquidation_candidates": [],
                    "accounts_detail": [
                        {
                            "account_id": 1,
                            "balance": "100000",
                            "equity": "98600",
                            "initial_margin_required": "720",
                            "maintenance_margin_required": "360",
                            "margin_utilisation_pct": "0.37",
                            "liquidation_risk": False,
                        }
                    ],
                    "next_cursor": "WyJyZXBvcnQiLCAiMzQ0MWFiZThiZWQ0NDk5ZGFhYjNkZmQwMjlmNjgwNTMiLCAxXQ",
                }
            ]
        }
    )

    as_of: TimestampText
    total_accounts: int
    liquidation_candidates: list[int]
    accounts_detail: list[AccountDetail]
    next_cursor: str | None

    @classmethod
    def of(cls, report: MarginReport) -> MarginReportAnswer:
        """Answer one page."""
        return cls(
            as_of=timestamp(report.as_of_us),
            total_accounts=report.total_accounts,
            liquidation_candidates=report.liquidation_candidates,
            accounts_detail=[AccountDetail.model_validate(row) for row in report.rows],
            next_cursor=report.next_cursor,
        )
