"""GET /trades/{account_id} and GET /liquidations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from margin.http.wire import Answer, DecimalText, SideText, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.services.history import HistoryPage


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
    """One page of trades, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "trades": [
                        {
                            "id": 4294967300,
                            "account_id": 1,
                            "symbol": "BTC-PERP",
                            "side": "BUY",
                            "quantity": "0.1",
                            "price": "50000",
                            "notional": "5000",
                            "realised_pnl": "0",
                            "fee": "0",
                            "timestamp": "2026-01-31T12:00:00.000000Z",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    trades: list[Trade]
    next_cursor: str | None

    @classmethod
    def of(cls, page: HistoryPage) -> TradesAnswer:
        """Answer one page."""
        trades = [Trade.model_validate(_with_timestamp(row)) for row in page.rows]
        return cls(trades=trades, next_cursor=page.next_cursor)


class LiquidatedPosition(Answer):
    """A position that a liquidation closed, and at which price."""

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText
    price: DecimalText
    realised_pnl: DecimalText


class Liquidation(Answer):
    """A liquidation; equity and maintenance margin are those before it, `shortfall` what the account could not pay."""

    id: int
    account_id: int
    equity: DecimalText
    maintenance_margin: DecimalText
    reason: str
    positions: list[LiquidatedPosition]
    shortfall: DecimalText
    timestamp: TimestampText


class LiquidationsAnswer(Answer):
    """One page of liquidations, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "liquidations": [
                        {
                            "id": 4294967302,
                            "account_id": 3,
                            "equity": "1000",
                            "maintenance_margin": "3600",
                            "reason": "EQUITY_BELOW_MAINTENANCE",
                            "positions": [
                                {
                                    "symbol": "BTC-PERP",
                                    "quantity": "1",
                                    "entry_price": "50000",
                                    "price": "36000",
                                    "realised_pnl": "-14000",
                                }
                            ],
                            "shortfall": "0",
                            "timestamp": "2026-01-31T12:00:00.000000Z",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    liquidations: list[Liquidation]
    next_cursor: str | None

    @classmethod
    def of(cls, page: HistoryPage) -> LiquidationsAnswer:
        """Answer one page."""
        liquidations = [Liquidation.model_validate(_with_timestamp(row)) for row in page.rows]
        return cls(liquidations=liquidations, next_cursor=page.next_cursor)


def _with_timestamp(row: dict[str, Any]) -> dict[str, Any]:
    fields = dict(row)
    moment = timestamp(fields.pop("timestamp_us"))
    return {**fields, "timestamp": moment}
