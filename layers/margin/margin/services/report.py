"""The margin report: every account, worst first, in pages of one snapshot.

The snapshot is taken at the first page, at one set of marks, and kept some minutes, so that a reader who turns the
pages sees every account exactly once. It reads only, whatever it finds.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import uuid
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import plain
from margin.domain.risk import AccountRisk, assess, is_liquidatable
from margin.errors import SnapshotExpiredError
from margin.services.all_accounts import all_accounts
from margin.services.cursors import decode_cursor, encode_cursor, invalid_cursor

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.ports import AccountStore, MarketStore

ROWS_PER_CHUNK = 1000
_SUMMARY = "summary"
_HOPELESS = Decimal("Infinity")


@dataclasses.dataclass(frozen=True, slots=True)
class MarginReport:
    """One page of a report."""

    as_of_us: int
    total_accounts: int
    liquidation_candidates: list[int]
    rows: list[dict[str, Any]]
    next_cursor: str | None


class ReportService:
    """Makes margin reports.

    Parameters
    ----------
    accounts, market : AccountStore, MarketStore
        What is reported on; snapshots are kept in the former.
    ttl_s : int
        How long a snapshot is kept.
    accounts_max : int
        The most accounts that a report covers.
    """

    def __init__(self, accounts: AccountStore, market: MarketStore, *, ttl_s: int, accounts_max: int) -> None:
        self._accounts = accounts
        self._market = market
        self._ttl_s = ttl_s
        self._accounts_max = accounts_max

    async def page(self, *, limit: int, cursor: str | None) -> MarginReport:
        """Answer a page: the first one of a new snapshot, or the one that ``cursor`` points to.

        Raises
        ------
        NoMarkPriceError
            A position cannot be valued, so no report can be made.
        CursorInvalidError, SnapshotExpiredError, LimitExceededError, UnavailableError
        """
        if cursor is not None:
            snapshot_id, offset = _parse_cursor(cursor)
            return await self._kept_page(snapshot_id, offset, limit)
        market = await self._market.market()
        rows = await self._take(market)
        summary = {
            "as_of_us": market.now_us,
            "total": len(rows),
            "candidates": sorted(row["account_id"] for row in rows if row["liquidation_risk"]),
        }
        snapshot_id = uuid.uuid4().hex
        if len(rows) > limit:
            chunks = {
                str(start // ROWS_PER_CHUNK): _pack(rows[start : start + ROWS_PER_CHUNK])
                for start in range(0, len(rows), ROWS_PER_CHUNK)
            }
            await self._accounts.save_report(snapshot_id, {_SUMMARY: _pack(summary), **chunks}, self._ttl_s)
        return _page(summary, rows[:limit], snapshot_id, 0)

    async def _take(self, market: Market) -> list[dict[str, Any]]:
        """Rows of all accounts, worst first: by utilisation, those without equity before all others."""
        assessed = [
            (account, assess(account, market))
            async for page in all_accounts(self._accounts, accounts_max=self._accounts_max)
            for account in page
        ]
        assessed.sort(key=lambda pair: (-_badness(pair[1]), pair[0].account_id))
        return [_row(account, risk, market) for account, risk in assessed]

    async def _kept_page(self, snapshot_id: str, offset: int, limit: int) -> MarginReport:
        summary = await self._kept(snapshot_id, _SUMMARY)
        rows: list[dict[str, Any]] = []
        end = min(offset + limit, summary["total"])
        for chunk in range(offset // ROWS_PER_CHUNK, (end + ROWS_PER_CHUNK - 1) // ROWS_PER_CHUNK):
            rows += await self._kept(snapshot_id, str(chunk))
        first = offset % ROWS_PER_CHUNK
        return _page(summary, rows[first : first + end - offset], snapshot_id, offset)

    async def _kept(self, snapshot_id: str, chunk: str) -> Any:
        packed = await self._accounts.report_chunk(snapshot_id, chunk)
        if packed is None:
            message = f"Reports are kept for {self._ttl_s} s; ask for the first page again."
            raise SnapshotExpiredError(message)
        return json.loads(zlib.decompress(base64.b64decode(packed)))


def _badness(risk: AccountRisk) -> Decimal:
    utilisation = risk.utilisation_pct
    return _HOPELESS if utilisation is None else utilisation


def _row(account: Account, risk: AccountRisk, market: Market) -> dict[str, Any]:
    utilisation = risk.utilisation_pct
    return {
        "account_id": account.account_id,
        "balance": plain(account.balance),
        "equity": plain(risk.equity),
        "initial_margin_required": plain(risk.initial_margin),
        "maintenance_margin_required": plain(risk.maintenance_margin),
        "margin_utilisation_pct": None if utilisation is None else plain(utilisation),
        # Stale marks only ever speak for an account, so one that is above its margin at all marks needs no second look.
        "liquidation_risk": risk.liquidatable and is_liquidatable(account, market),
    }


def _page(summary: dict[str, Any], rows: list[dict[str, Any]], snapshot_id: str, offset: int) -> MarginReport:
    end = offset + len(rows)
    more = end < summary["total"]
    return MarginReport(
        as_of_us=summary["as_of_us"],
        total_accounts=summary["total"],
        liquidation_candidates=summary["candidates"],
        rows=rows,
        next_cursor=encode_cursor("report", snapshot_id, end) if more else None,
    )


def _parse_cursor(cursor: str) -> tuple[str, int]:
    snapshot_id, offset = decode_cursor("report", cursor, str, int)
    if not snapshot_id.isalnum():
        raise invalid_cursor()
    return snapshot_id, offset


def _pack(value: object) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode())).decode()
