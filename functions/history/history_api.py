"""GET /trades/{account_id} and GET /liquidations: what happened, newest first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from margin import __version__
from margin.errors import CursorInvalidError, UnavailableError, UnknownAccountError
from margin.http import (
    AccountIdPath,
    AccountIdQuery,
    Answer,
    Cursor,
    DecimalText,
    Limit,
    Router,
    SideText,
    SymbolQuery,
    Timestamp,
    TimestampText,
    create_app,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["history"])

_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)


class Trade(Answer):
    """An executed trade."""

    id: int
    account_id: int
    symbol: str
    side: SideText
    quantity: DecimalText
    price: DecimalText
    notional: DecimalText
    realised_pnl: DecimalText
    fee: DecimalText
    timestamp: TimestampText


class TradesAnswer(Answer):
    """One page of trades."""

    trades: list[Trade]
    next_cursor: str | None


class LiquidatedPosition(Answer):
    """A position that a liquidation closed, and at which price."""

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText
    price: DecimalText
    realised_pnl: DecimalText


class Liquidation(Answer):
    """A liquidation; equity and maintenance margin are those before it."""

    id: int
    account_id: int
    equity: DecimalText
    maintenance_margin: DecimalText
    reason: str
    positions: list[LiquidatedPosition]
    shortfall: DecimalText
    timestamp: TimestampText


class LiquidationsAnswer(Answer):
    """One page of liquidations."""

    liquidations: list[Liquidation]
    next_cursor: str | None


@router.get(
    "/trades/{account_id}",
    summary="Trade history of an account, newest first",
    responses=problems(CursorInvalidError, UnknownAccountError, UnavailableError),
)
async def get_trades(
    account_id: AccountIdPath,
    symbol: SymbolQuery | None = None,
    since: Timestamp | None = None,
    until: Timestamp | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> TradesAnswer:
    """Trades at `since` or later and before `until`; times have an offset, such as 2026-01-31T12:00:00Z."""
    page = await engine().history.trades(
        account_id,
        symbol=symbol,
        since_us=_microseconds(since),
        until_us=_microseconds(until),
        limit=limit,
        cursor=cursor,
    )
    return TradesAnswer(
        trades=[Trade.model_validate(_with_timestamp(row)) for row in page.rows], next_cursor=page.next_cursor
    )


@router.get(
    "/liquidations",
    summary="Liquidation history, newest first",
    responses=problems(CursorInvalidError, UnavailableError),
)
async def get_liquidations(
    account_id: AccountIdQuery | None = None, limit: Limit = 100, cursor: Cursor = None
) -> LiquidationsAnswer:
    """Liquidations of one account, or of all."""
    page = await engine().history.liquidations(account_id=account_id, limit=limit, cursor=cursor)
    return LiquidationsAnswer(
        liquidations=[Liquidation.model_validate(_with_timestamp(row)) for row in page.rows],
        next_cursor=page.next_cursor,
    )


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def _with_timestamp(row: dict[str, Any]) -> dict[str, Any]:
    fields = dict(row)
    fields["timestamp"] = _EPOCH + fields.pop("timestamp_us") * _MICROSECOND
    return fields


app = create_app(router, title="Margin: history", version=__version__, description=__doc__ or "")
handler = http_handler(app)
