"""POST /trade."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field, StrictBool

from margin.domain.order import Liquidity, Order
from margin.domain.position import Side
from margin.http.wire import (
    AccountId,
    Answer,
    ClientOrderId,
    DecimalText,
    LiquidityText,
    Price,
    Quantity,
    Request,
    SideText,
    Symbol,
)

if TYPE_CHECKING:
    from margin.services.journal import Outcome


class TradeRequest(Request):
    """A trade to execute."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": 0.1, "price": 50000},
                {"account_id": 1, "symbol": "BTC-PERP", "side": "SELL", "quantity": "0.05", "price": "50250.5"},
                {
                    "account_id": 1,
                    "symbol": "BTC-PERP",
                    "side": "SELL",
                    "quantity": "0.05",
                    "price": "50250.5",
                    "reduce_only": True,
                    "liquidity": "MAKER",
                    "client_order_id": "grid-17/SELL/3",
                },
            ]
        }
    )

    account_id: AccountId
    symbol: Symbol
    side: SideText
    quantity: Quantity
    price: Price
    reduce_only: StrictBool = Field(
        default=False, description="Refuse the trade (`REDUCE_ONLY`) unless it makes a position smaller, or closes it."
    )
    liquidity: LiquidityText = "TAKER"
    client_order_id: ClientOrderId | None = None

    def order(self) -> Order:
        """Return the order that the domain knows."""
        return Order(
            self.account_id,
            self.symbol,
            Side(self.side),
            self.quantity,
            self.price,
            reduce_only=self.reduce_only,
            liquidity=Liquidity(self.liquidity),
            client_order_id=self.client_order_id,
        )


class TradePosition(Answer):
    """The account's position in the traded symbol."""

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText


class TradeFigures(Answer):
    """What a trade comes to, and the account after it at mark prices; `position` is null when the trade closes it.

    A `fee` below 0 is a rebate. `client_order_id` is null when the request had none.
    """

    account_id: int
    symbol: str
    side: SideText
    quantity: DecimalText
    price: DecimalText
    notional: DecimalText
    realised_pnl: DecimalText
    fee: DecimalText
    balance: DecimalText
    equity: DecimalText
    initial_margin_required: DecimalText
    maintenance_margin_required: DecimalText
    margin_utilisation_pct: DecimalText | None
    position: TradePosition | None
    reduce_only: bool = False
    liquidity: LiquidityText = "TAKER"
    client_order_id: str | None = None


class _Executed(Answer):
    success: bool
    message: str
    trade_id: int


class TradeAnswer(TradeFigures, _Executed):
    """The executed trade, and the account after it at mark prices; `position` is null when the trade closed it.

    A `fee` below 0 is a rebate. `client_order_id` is null when the request had none.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "message": "Trade executed",
                    "trade_id": 4294967300,
                    "account_id": 1,
                    "symbol": "BTC-PERP",
                    "side": "BUY",
                    "quantity": "0.1",
                    "price": "50000",
                    "notional": "5000",
                    "realised_pnl": "0",
                    "fee": "0",
                    "balance": "100000",
                    "equity": "100000",
                    "initial_margin_required": "1000",
                    "maintenance_margin_required": "500",
                    "margin_utilisation_pct": "0.5",
                    "position": {"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"},
                    "reduce_only": False,
                    "liquidity": "TAKER",
                    "client_order_id": None,
                }
            ]
        }
    )

    @classmethod
    def of(cls, trade: Outcome) -> TradeAnswer:
        """Answer an executed trade; its id is the event's."""
        return cls.model_validate({"trade_id": trade.event_id, **trade.result})
