"""POST /funding: pay funding; GET /funding/{account_id}: what an account received and paid; GET /funding-rates."""

from __future__ import annotations

from margin import __version__
from margin.contract.funding import FundingAnswer, FundingPaymentsAnswer, FundingRatesAnswer, FundingRequest
from margin.errors import (
    ContentionError,
    CursorInvalidError,
    FundingRateCapError,
    IdempotencyKeyReusedError,
    NoMarkPriceError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RateLimitedError,
    StaleMarkPriceError,
    UnknownAccountError,
)
from margin.http import (
    STORE_PROBLEMS,
    AccountIdPath,
    CallerOf,
    Cursor,
    IdempotencyKey,
    Limit,
    Response,
    Router,
    Scope,
    SymbolQuery,
    Timestamp,
    create_app,
    executed,
    microseconds,
    of_account,
    of_all_accounts,
    of_market,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["funding"])
REFUSALS = (FundingRateCapError, NoMarkPriceError, StaleMarkPriceError)
ANSWERS = executed(FundingAnswer)
ANSWERS[202]["description"] = "In history, but not in force for everybody: it will be within minutes, by itself."


@router.post(
    "/funding",
    summary="Pay funding",
    responses={
        **ANSWERS,
        **problems(
            *REFUSALS,
            IdempotencyKeyReusedError,
            ContentionError,
            OutcomeUnknownError,
            PostgresUnavailableError,
            *STORE_PROBLEMS,
        ),
    },
)
@of_all_accounts(Scope.ADMIN)
async def pay_funding(
    request: FundingRequest, response: Response, caller: CallerOf, idempotency_key: IdempotencyKey = None
) -> FundingAnswer:
    """Let longs pay `rate` times the mark price for each unit to shorts; below 0 the other way round.

    It counts in equity at once, and accounts that it made liquidatable are liquidated. Money moves with the next event
    of each account. Send a key: without one, a repetition pays again.
    """
    paid = await engine().funding.pay(
        request.symbol,
        request.rate,
        caller=caller,
        key=idempotency_key,
        occurred_us=microseconds(request.timestamp),
    )
    outcome(response, pending=not paid.effective, replayed=paid.replayed)
    return FundingAnswer.of(paid)


@router.get(
    "/funding/{account_id}",
    summary="Funding of an account",
    responses=problems(UnknownAccountError, CursorInvalidError, RateLimitedError, *STORE_PROBLEMS),
)
@of_account(Scope.HISTORY_READ)
async def get_funding(
    account_id: AccountIdPath,
    caller: CallerOf,
    symbol: SymbolQuery | None = None,
    since: Timestamp | None = None,
    until: Timestamp | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> FundingPaymentsAnswer:
    """List what the account was paid and paid at `since` or later and before `until`, and what is pending."""
    page = await engine().funding_list.payments(
        account_id,
        symbol=symbol,
        since_us=microseconds(since),
        until_us=microseconds(until),
        limit=limit,
        cursor=cursor,
        caller=caller,
    )
    return FundingPaymentsAnswer.of(page)


@router.get(
    "/funding-rates",
    summary="Funding rates that were paid",
    responses=problems(CursorInvalidError, PostgresUnavailableError),
)
@of_market(Scope.HISTORY_READ)
async def get_funding_rates(
    symbol: SymbolQuery | None = None, limit: Limit = 100, cursor: Cursor = None
) -> FundingRatesAnswer:
    """List payments of one symbol or of all, newest first."""
    return FundingRatesAnswer.of(await engine().funding_list.rates(symbol=symbol, limit=limit, cursor=cursor))


app = create_app(router, title="Margin: funding", version=__version__, description=__doc__ or "")
handler = http_handler(app)
