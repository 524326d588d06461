"""POST /trade: execute a trade under a pre-trade margin check."""

from __future__ import annotations

from margin import __version__
from margin.contract.trade import TradeAnswer, TradeRequest
from margin.errors import (
    InLiquidationError,
    InsufficientMarginError,
    LimitExceededError,
    NoMarkPriceError,
    NotActiveError,
    OutsidePriceBandError,
    StaleMarkPriceError,
    UnknownAccountError,
)
from margin.http import (
    WRITE_PROBLEMS,
    CallerOf,
    IdempotencyKey,
    Response,
    Router,
    create_app,
    executed,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["trading"])
REFUSALS = (
    InsufficientMarginError,
    OutsidePriceBandError,
    NoMarkPriceError,
    StaleMarkPriceError,
    InLiquidationError,
    NotActiveError,
    LimitExceededError,
    UnknownAccountError,
)


@router.post(
    "/trade",
    summary="Execute a trade",
    responses={**executed(TradeAnswer), **problems(*REFUSALS, *WRITE_PROBLEMS)},
)
async def execute_trade(
    request: TradeRequest, response: Response, caller: CallerOf, idempotency_key: IdempotencyKey = None
) -> TradeAnswer:
    """Execute the trade if equity after it covers the initial margin, or if it only reduces a position and risk."""
    trade = await engine().trading.trade(request.order(), key=idempotency_key, caller=caller)
    outcome(response, pending=not trade.final, replayed=trade.replayed)
    return TradeAnswer.of(trade)


app = create_app(router, title="Margin: trade", version=__version__, description=__doc__ or "")
handler = http_handler(app)
