"""Trade and liquidation history, in pages."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.ledger import LedgerAccount
from margin.errors import UnknownAccountError
from margin.ports.queries import LiquidationQuery, MarkSampleQuery, TradeQuery
from margin.services.cursors import decode_cursor, encode_cursor, require_moment

if TYPE_CHECKING:
    from margin.ports.history import History


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryPage:
    """Rows, newest first, and the cursor of the next page (None on the last)."""

    rows: list[dict[str, Any]]
    next_cursor: str | None


class HistoryService:
    """Reads history.

    Parameters
    ----------
    history : History
        Where events are final.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    async def trades(
        self,
        account_id: int,
        *,
        symbol: str | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> HistoryPage:
        """Trades of an account; ``since_us`` is inclusive, ``until_us`` exclusive.

        Raises
        ------
        UnknownAccountError, CursorInvalidError, UnavailableError
        """
        before_id = None
        if cursor is not None:
            (before_id,) = decode_cursor(f"trades:{account_id}", cursor, int)
        rows = await self._history.trades(
            TradeQuery(
                account_id=account_id,
                symbol=symbol,
                since_us=since_us,
                until_us=until_us,
                before_id=before_id,
                limit=limit + 1,
            )
        )
        if not rows and not await self._history.account_exists(account_id):
            raise UnknownAccountError(account_id)
        more = len(rows) > limit
        rows = rows[:limit]
        return HistoryPage(rows, encode_cursor(f"trades:{account_id}", rows[-1]["id"]) if more else None)

    async def mark_prices(
        self,
        symbol: str,
        *,
        since_us: int | None = None,
        until_us: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> HistoryPage:
        """Mark prices that a symbol had, as sampled; ``since_us`` is inclusive, ``until_us`` exclusive.

        Raises
        ------
        CursorInvalidError, UnavailableError
        """
        before_us = None
        if cursor is not None:
            (before_us,) = decode_cursor(f"mark-prices:{symbol}", cursor, int)
            require_moment(before_us)
        rows = await self._history.mark_samples(
            MarkSampleQuery(symbol=symbol, since_us=since_us, until_us=until_us, before_us=before_us, limit=limit + 1)
        )
        more = len(rows) > limit
        rows = rows[:limit]
        return HistoryPage(rows, encode_cursor(f"mark-prices:{symbol}", rows[-1]["timestamp_us"]) if more else None)

    async def fund_deficit(self) -> Decimal:
        """Compute what liquidated accounts could not pay and the insurance fund does not cover; 0 when it does.

        Raises
        ------
        PostgresUnavailableError
        """
        sums = await self._history.ledger_sums([LedgerAccount.INSURANCE, LedgerAccount.UNCOVERED])
        return max(Decimal(0), -sum(sums.values(), start=Decimal(0)))

    async def liquidations(
        self, *, account_id: int | None = None, limit: int = 100, cursor: str | None = None
    ) -> HistoryPage:
        """Liquidations of an account or of all accounts, with their records: fewer than ``limit`` where these are long.

        Raises
        ------
        CursorInvalidError, UnavailableError
        """
        before = None
        if cursor is not None:
            at_us, before_id = decode_cursor("liquidations", cursor, int, int)
            require_moment(at_us)
            before = (at_us, before_id)
        page = await self._history.liquidations(LiquidationQuery(account_id=account_id, before=before, limit=limit))
        last = page.rows[-1] if page.rows else {}
        next_cursor = encode_cursor("liquidations", last["timestamp_us"], last["id"]) if page.more else None
        return HistoryPage(page.rows, next_cursor)
