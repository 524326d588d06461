"""POST /mark-price, /mark-prices: take mark prices, look at once at everyone they put at risk; GET /mark-prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin import __version__
from margin.caller import Caller
from margin.contract.mark_price import (
    MarkPriceAnswer,
    MarkPriceListAnswer,
    MarkPriceRequest,
    MarkPricesAnswer,
    MarkPricesRequest,
)
from margin.errors import (
    FutureTimestampError,
    InvalidRequestError,
    LimitExceededError,
    OlderMarkPriceError,
    OutcomeUnknownError,
    RateLimitedError,
)
from margin.http import (
    STORE_PROBLEMS,
    CallerOf,
    Response,
    Router,
    Scope,
    SymbolQuery,
    create_app,
    microseconds,
    of_market,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.services.marks import MarkOutcome

PROBLEMS = problems(LimitExceededError, OlderMarkPriceError, OutcomeUnknownError, RateLimitedError, *STORE_PROBLEMS)
STORED = "In force."
SET_ASIDE = "Not in force because it moves too far, or one of several does: a later price has to confirm it."

router = Router(tags=["market"])


@router.post(
    "/mark-price",
    summary="Update a mark price",
    responses={200: {"description": STORED}, 202: {"model": MarkPriceAnswer, "description": SET_ASIDE}, **PROBLEMS},
    response_model_exclude_unset=True,
)
@of_market(Scope.MARKS_WRITE)
async def set_mark_price(request: MarkPriceRequest, response: Response, caller: CallerOf) -> MarkPriceAnswer:
    """Store the price, then liquidate each account that it made liquidatable.

    A price that says it is older than the stored one is refused, so that messages may overtake each other. One that is
    further from the mark than the instrument's `mark_jump_max` is set aside until a later one confirms it; meanwhile
    the mark counts as stale. A message that is sent twice confirms itself unless it has a `timestamp`, by which it is
    known again: without one, the same price counts once within a second only.
    """
    marked = await _set([request], response, caller)
    return MarkPriceAnswer.of(request, marked)


@router.post(
    "/mark-prices",
    summary="Update several mark prices in one step",
    responses={200: {"description": STORED}, 202: {"model": MarkPricesAnswer, "description": SET_ASIDE}, **PROBLEMS},
    response_model_exclude_unset=True,
)
@of_market(Scope.MARKS_WRITE)
async def set_mark_prices(request: MarkPricesRequest, response: Response, caller: CallerOf) -> MarkPricesAnswer:
    """Store all the prices, then liquidate each account that they made liquidatable together.

    Nobody is judged between two of them. One that is refused refuses all; one that is set aside, only itself, and no
    position in its symbol is closed until it is confirmed or dropped.
    """
    try:
        marked = await _set(request.prices, response, caller)
    except FutureTimestampError as error:
        place = [price.symbol for price in request.prices].index(error.symbol)
        raise InvalidRequestError(error.detail, f"prices.{place}.{error.field}") from error
    return MarkPricesAnswer.of(request, marked)


@router.get("/mark-prices", summary="Mark prices in force, with their ages", responses=problems(*STORE_PROBLEMS))
@of_market(Scope.POSITIONS_READ, Scope.MARKS_WRITE, Scope.RISK_READ)
async def get_mark_prices(symbol: SymbolQuery | None = None) -> MarkPriceListAnswer:
    """All symbols, or one, as of one moment; with a price that waits to be confirmed, where there is one."""
    return MarkPriceListAnswer.of(await engine().mark_list.mark_prices(symbol=symbol))


async def _set(prices: Sequence[MarkPriceRequest], response: Response, caller: Caller) -> MarkOutcome:
    times = {price.symbol: microseconds(price.timestamp) for price in prices}
    marked = await engine().marks.set_marks(
        {price.symbol: price.price for price in prices},
        observed_us={symbol: time for symbol, time in times.items() if time is not None},
        sources={price.symbol: price.source for price in prices if price.source is not None},
        caller=caller,
    )
    if marked.set_aside:
        response.status_code = 202
    return marked


app = create_app(router, title="Margin: mark price", version=__version__, description=__doc__ or "")
handler = http_handler(app)
