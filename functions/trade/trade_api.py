"""POST /trade: execute a trade under a pre-trade margin check. POST /trade/preview: say what it would come to."""

from __future__ import annotations

from margin import __version__
from margin.contract.preview import PreviewAnswer
from margin.contract.trade import TradeAnswer, TradeRequest
from margin.errors import (
    InLiquidationError,
    InstrumentStatusError,
    InsufficientMarginError,
    LimitExceededError,
    NoMarkPriceError,
    NotActiveError,
    NotReducingError,
    OutsidePriceBandError,
    PositionLimitError,
    PriceOffTickError,
    QuantityOffLotError,
    QuantityTooLargeError,
    QuantityTooSmallError,
    RateLimitedError,
    RedisUnavailableError,
    StaleMarkPriceError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.http import (
    WRITE_PROBLEMS,
    CallerOf,
    IdempotencyKey,
    Response,
    Router,
    Scope,
    create_app,
    executed,
    of_account,
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
    InstrumentStatusError,
    NotReducingError,
    QuantityOffLotError,
    QuantityTooSmallError,
    QuantityTooLargeError,
    PositionLimitError,
    PriceOffTickError,
    UnknownAccountError,
)


@router.post(
    "/trade",
    summary="Execute a trade",
    responses={**executed(TradeAnswer), **problems(*REFUSALS, *WRITE_PROBLEMS)},
)
@of_account(Scope.TRADE_WRITE)
async def execute_trade(
    request: TradeRequest, response: Response, caller: CallerOf, idempotency_key: IdempotencyKey = None
) -> TradeAnswer:
    """Execute the trade if equity after it covers the initial margin, or if it only reduces a position and risk."""
    trade = await engine().trading.trade(request.order(), key=idempotency_key, caller=caller)
    outcome(response, pending=not trade.final, replayed=trade.replayed)
    return TradeAnswer.of(trade)


@router.post(
    "/trade/preview",
    summary="Say what a trade would come to",
    responses=problems(UnknownAccountError, RateLimitedError, RedisUnavailableError, StateNotLoadedError),
)
@of_account(Scope.POSITIONS_READ, Scope.TRADE_WRITE)
async def preview_trade(request: TradeRequest, caller: CallerOf) -> PreviewAnswer:
    """Decide the trade as `/trade` would at this moment, and change nothing.

    A refusal is part of the answer. So is the largest quantity that each side would accept at this price: that much is
    executed, one lot more is not.
    """
    return PreviewAnswer.of(await engine().previews.preview(request.order(), caller))


app = create_app(router, title="Margin: trade", version=__version__, description=__doc__ or "")
handler = http_handler(app)
