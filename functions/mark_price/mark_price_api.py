"""POST /mark-price, /mark-prices: take mark prices and look at once at everyone they put at risk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin import __version__
from margin.contract.mark_price import (
    MarkPriceAnswer,
    MarkPriceRequest,
    MarkPricesAnswer,
    MarkPricesRequest,
    SymbolAtRisk,
)
from margin.errors import (
    FutureTimestampError,
    InvalidRequestError,
    LimitExceededError,
    OlderMarkPriceError,
    OutcomeUnknownError,
)
from margin.http import STORE_PROBLEMS, Router, create_app, microseconds, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.services.marks import MarkOutcome

PROBLEMS = problems(LimitExceededError, OlderMarkPriceError, OutcomeUnknownError, *STORE_PROBLEMS)

router = Router(tags=["market"])


@router.post("/mark-price", summary="Update a mark price", responses=PROBLEMS)
async def set_mark_price(request: MarkPriceRequest) -> MarkPriceAnswer:
    """Store the price, then liquidate each account that it made liquidatable.

    A price that says it is older than the stored one is refused, so that messages may overtake each other.
    """
    marked = await _set([request])
    return MarkPriceAnswer(
        success=True,
        message="Mark price updated",
        symbol=request.symbol,
        price=request.price,
        at_risk=marked.at_risk,
    )


@router.post("/mark-prices", summary="Update several mark prices in one step", responses=PROBLEMS)
async def set_mark_prices(request: MarkPricesRequest) -> MarkPricesAnswer:
    """Store all the prices, then liquidate each account that they made liquidatable together.

    Nobody is judged between two of them. One that is refused refuses all.
    """
    try:
        marked = await _set(request.prices)
    except FutureTimestampError as error:
        place = [price.symbol for price in request.prices].index(error.symbol)
        raise InvalidRequestError(error.detail, f"prices.{place}.{error.field}") from error
    prices = [
        SymbolAtRisk(symbol=price.symbol, price=price.price, at_risk=marked.at_risk_by_symbol[price.symbol])
        for price in request.prices
    ]
    return MarkPricesAnswer(success=True, message="Mark prices updated", prices=prices, at_risk=marked.at_risk)


async def _set(prices: Sequence[MarkPriceRequest]) -> MarkOutcome:
    times = {price.symbol: microseconds(price.timestamp) for price in prices}
    observed_us = {symbol: time for symbol, time in times.items() if time is not None}
    return await engine().marks.set_marks({price.symbol: price.price for price in prices}, observed_us=observed_us)


app = create_app(router, title="Margin: mark price", version=__version__, description=__doc__ or "")
handler = http_handler(app)
