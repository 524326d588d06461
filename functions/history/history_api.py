"""What happened, newest first: GET /trades/{account_id}, /liquidations, /mark-prices/{symbol}/history.

And GET /insurance-fund: who pays for it.
"""

from __future__ import annotations

from margin import __version__
from margin.contract.history import LiquidationsAnswer, MarkPriceHistoryAnswer, TradesAnswer
from margin.contract.insurance_fund import InsuranceFundAnswer
from margin.errors import CursorInvalidError, UnknownAccountError
from margin.http import (
    STORE_PROBLEMS,
    AccountIdPath,
    AccountIdQuery,
    Cursor,
    Limit,
    Router,
    Scope,
    SymbolPath,
    SymbolQuery,
    Timestamp,
    create_app,
    microseconds,
    of_account,
    of_all_accounts,
    of_market,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine

router = Router(tags=["history"])


@router.get(
    "/trades/{account_id}",
    summary="Trade history of an account, newest first",
    responses=problems(CursorInvalidError, UnknownAccountError, *STORE_PROBLEMS),
)
@of_account(Scope.HISTORY_READ)
async def get_trades(
    account_id: AccountIdPath,
    symbol: SymbolQuery | None = None,
    since: Timestamp | None = None,
    until: Timestamp | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> TradesAnswer:
    """Trades at `since` or later and before `until`; times have an offset, such as 2026-01-31T12:00:00Z."""
    since_us, until_us = microseconds(since), microseconds(until)
    return TradesAnswer.of(
        await engine().history.trades(
            account_id, symbol=symbol, since_us=since_us, until_us=until_us, limit=limit, cursor=cursor
        )
    )


@router.get(
    "/liquidations",
    summary="Liquidation history, newest first",
    responses=problems(CursorInvalidError, *STORE_PROBLEMS),
)
@of_account(Scope.HISTORY_READ)
async def get_liquidations(
    account_id: AccountIdQuery | None = None, limit: Limit = 100, cursor: Cursor = None
) -> LiquidationsAnswer:
    """Liquidations of one account, or of all; those of the reason `AUTO_DELEVERAGING` paid for another account's.

    Each comes with all that it was decided on, so a page ends at 4 MB of that, and can have fewer than `limit`.
    """
    return LiquidationsAnswer.of(await engine().history.liquidations(account_id=account_id, limit=limit, cursor=cursor))


@router.get(
    "/mark-prices/{symbol}/history",
    summary="Mark prices that a symbol had, newest first",
    responses=problems(CursorInvalidError, *STORE_PROBLEMS),
)
@of_market(Scope.HISTORY_READ)
async def get_mark_price_history(
    symbol: SymbolPath,
    since: Timestamp | None = None,
    until: Timestamp | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> MarkPriceHistoryAnswer:
    """Mark prices stored at `since` or later and before `until`: a sample a minute, where the price changed.

    They are kept for `MARK_HISTORY_DAYS` days.
    """
    since_us, until_us = microseconds(since), microseconds(until)
    return MarkPriceHistoryAnswer.of(
        await engine().history.mark_prices(symbol, since_us=since_us, until_us=until_us, limit=limit, cursor=cursor)
    )


@router.get(
    "/insurance-fund",
    summary="Balance of the insurance fund, and what it has still to pay",
    responses=problems(*STORE_PROBLEMS),
)
@of_all_accounts(Scope.RISK_READ)
async def get_insurance_fund() -> InsuranceFundAnswer:
    """Only what is final in history counts; the oldest 100 open shortfalls are listed."""
    return InsuranceFundAnswer.of(await engine().insurance_fund.fund())


app = create_app(router, title="Margin: history", version=__version__, description=__doc__ or "")
handler = http_handler(app)
