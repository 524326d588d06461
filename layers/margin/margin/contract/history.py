"""GET /trades/{account_id}, GET /liquidations and GET /mark-prices/{symbol}/history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from margin.http.wire import Answer, DecimalText, LiquidityText, SideText, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.services.history import HistoryPage


class Trade(Answer):
    """An executed trade; a `fee` below 0 is a rebate.

    `reduce_only` is what the order asked for, false where its event is from before that was recorded.
    """

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
    reduce_only: bool
    liquidity: LiquidityText
    client_order_id: str | None


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
                            "reduce_only": False,
                            "liquidity": "TAKER",
                            "client_order_id": None,
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
    """What a liquidation closed of a position: how much, at which price, and what is left.

    `mark_age_s` is how old that mark price was; at its `bankruptcy_price`, closing everything would have left the
    account nothing. What an early version of the engine did not record is null.
    """

    symbol: str
    quantity: DecimalText
    remaining: DecimalText | None = None
    entry_price: DecimalText
    price: DecimalText
    mark_age_s: DecimalText | None = None
    bankruptcy_price: DecimalText | None = None
    realised_pnl: DecimalText
    fee: DecimalText | None = None


class LiquidationInputs(Answer):
    """All that a liquidation was decided on, enough to recompute it; times in microseconds since 1970.

    `waiting` are prices that were set aside beside marks that were in doubt for them.
    """

    balance: DecimalText
    positions: dict[str, dict[str, str]]
    marks: dict[str, dict[str, str | int | None]]
    instruments: dict[str, dict[str, Any]]
    funding_indexes: dict[str, DecimalText] = Field(default_factory=dict)
    waiting: dict[str, DecimalText] = Field(default_factory=dict)
    now_us: int
    buffer: DecimalText
    remaining_notional_min: DecimalText


_RECORDED = ("equity_after", "maintenance_margin_after", "fee", "rules", "inputs")


class Liquidation(Answer):
    """A liquidation, with equity and maintenance margin before and after it.

    `fee` is what the insurance fund received, `shortfall` what the account could not pay, `rules` the version of the
    rules by which it can be recomputed from `inputs`.
    """

    id: int
    account_id: int
    equity: DecimalText
    maintenance_margin: DecimalText
    equity_after: DecimalText | None = None
    maintenance_margin_after: DecimalText | None = None
    reason: str
    positions: list[LiquidatedPosition]
    fee: DecimalText | None = None
    shortfall: DecimalText
    timestamp: TimestampText
    rules: int | None = None
    inputs: LiquidationInputs | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Liquidation:
        """Answer one row: what is derived from its event, and the rest of the record."""
        fields = _with_timestamp(row)
        record = fields.pop("record") or {}
        recorded = {name: record.get(name) for name in _RECORDED}
        return cls.model_validate({**fields, **recorded})


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
                            "equity_after": "1000",
                            "maintenance_margin_after": "909.0909",
                            "reason": "EQUITY_BELOW_MAINTENANCE",
                            "positions": [
                                {
                                    "symbol": "BTC-PERP",
                                    "quantity": "0.74747475",
                                    "remaining": "0.25252525",
                                    "entry_price": "50000",
                                    "price": "36000",
                                    "mark_age_s": "0.000412",
                                    "bankruptcy_price": "35000",
                                    "realised_pnl": "-10464.6465",
                                    "fee": "0",
                                }
                            ],
                            "fee": "0",
                            "shortfall": "0",
                            "timestamp": "2026-01-31T12:00:00.000000Z",
                            "rules": 2,
                            "inputs": {
                                "balance": "15000",
                                "positions": {"BTC-PERP": {"quantity": "1", "entry_cost": "50000"}},
                                "marks": {
                                    "BTC-PERP": {
                                        "price": "36000",
                                        "stamp_us": 1769860799999588,
                                        "observed_us": None,
                                    }
                                },
                                "instruments": {
                                    "BTC-PERP": {
                                        "symbol": "BTC-PERP",
                                        "tiers": [
                                            {"notional_cap": None, "initial_rate": "0.2", "maintenance_rate": "0.1"}
                                        ],
                                        "taker_fee": "0",
                                        "price_band": "0.2",
                                        "lot_size": "0.00000001",
                                        "min_quantity": "0.00000001",
                                        "liquidation_fee_cap": "0",
                                        "mark_max_age_s": None,
                                        "version": 0,
                                    }
                                },
                                "now_us": 1769860800000000,
                                "buffer": "0.1",
                                "remaining_notional_min": "10",
                            },
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
        liquidations = [Liquidation.of(row) for row in page.rows]
        return cls(liquidations=liquidations, next_cursor=page.next_cursor)


class PastMarkPrice(Answer):
    """A mark price that a symbol had; `timestamp` is when it was stored."""

    symbol: str
    price: DecimalText
    source: str | None
    timestamp: TimestampText


class MarkPriceHistoryAnswer(Answer):
    """One page of mark prices, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "mark_prices": [
                        {
                            "symbol": "BTC-PERP",
                            "price": "51000",
                            "source": "index-1",
                            "timestamp": "2026-01-31T12:00:00.250000Z",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    mark_prices: list[PastMarkPrice]
    next_cursor: str | None

    @classmethod
    def of(cls, page: HistoryPage) -> MarkPriceHistoryAnswer:
        """Answer one page."""
        mark_prices = [PastMarkPrice.model_validate(_with_timestamp(row)) for row in page.rows]
        return cls(mark_prices=mark_prices, next_cursor=page.next_cursor)


def _with_timestamp(row: dict[str, Any]) -> dict[str, Any]:
    fields = dict(row)
    moment = timestamp(fields.pop("timestamp_us"))
    return {**fields, "timestamp": moment}
