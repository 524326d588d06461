"""POST /trade: execute a trade under a pre-trade margin check."""

from __future__ import annotations

from fastapi import Response

from margin import __version__
from margin.domain.order import Order
from margin.domain.position import Side
from margin.errors import (
    ContentionError,
    IdempotencyKeyReusedError,
    InLiquidationError,
    InsufficientMarginError,
    NoMarkPriceError,
    OutsidePriceBandError,
    UnavailableError,
    UnknownAccountError,
)
from margin.http import (
    AccountId,
    Answer,
    CallerOf,
    DecimalText,
    IdempotencyKey,
    Price,
    Quantity,
    Request,
    Router,
    SideText,
    Symbol,
    create_app,
    executed,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router()


class TradeRequest(Request):
    """A trade to execute."""

    account_id: AccountId
    symbol: Symbol
    side: SideText
    quantity: Quantity
    price: Price


class TradePosition(Answer):
    """The account's position in the traded symbol."""

    symbol: str
    quantity: DecimalText
    entry_price: DecimalText


class TradeAnswer(Answer):
    """The executed trade and the account after it, at mark prices."""

    success: bool
    message: str
    trade_id: int
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


@router.post(
    "/trade",
    tags=["trading"],
    summary="Execute a trade",
    responses={
        **executed(TradeAnswer),
        **problems(
            InsufficientMarginError,
            OutsidePriceBandError,
            NoMarkPriceError,
            InLiquidationError,
            UnknownAccountError,
            IdempotencyKeyReusedError,
            ContentionError,
            UnavailableError,
        ),
    },
)
async def execute_trade(
    request: TradeRequest, response: Response, caller: CallerOf, idempotency_key: IdempotencyKey = None
) -> TradeAnswer:
    """Execute the trade if equity after it covers the initial margin, or if it only reduces a position and risk."""
    order = Order(request.account_id, request.symbol, Side(request.side), request.quantity, request.price)
    trade = await engine().trading.trade(order, key=idempotency_key, caller=caller)
    outcome(response, pending=not trade.final, replayed=trade.replayed)
    return TradeAnswer.model_validate({"trade_id": trade.event_id, **trade.result})


app = create_app(router, title="Margin: trade", version=__version__, description=__doc__ or "")
handler = http_handler(app)
