"""POST /mark-price: take a mark price and look at once at everyone it puts at risk."""

from __future__ import annotations

from margin import __version__
from margin.contract.mark_price import MarkPriceAnswer, MarkPriceRequest
from margin.errors import LimitExceededError, OutcomeUnknownError
from margin.http import STORE_PROBLEMS, Router, create_app, problems
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["market"])


@router.post(
    "/mark-price",
    summary="Update a mark price",
    responses=problems(LimitExceededError, OutcomeUnknownError, *STORE_PROBLEMS),
)
async def set_mark_price(request: MarkPriceRequest) -> MarkPriceAnswer:
    """Store the price, then liquidate each account that it made liquidatable."""
    marked = await engine().marks.set_marks({request.symbol: request.price})
    return MarkPriceAnswer(
        success=True,
        message="Mark price updated",
        symbol=request.symbol,
        price=request.price,
        at_risk=marked.at_risk,
    )


app = create_app(router, title="Margin: mark price", version=__version__, description=__doc__ or "")
handler = http_handler(app)
