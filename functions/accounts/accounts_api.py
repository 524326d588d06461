"""POST /accounts/{account_id}/deposits, /withdrawals, /insurance-contributions: money in, out, and to the fund."""

from __future__ import annotations

from margin import __version__
from margin.contract.accounts import MoneyAnswer, MoneyRequest
from margin.errors import (
    InsufficientWithdrawableError,
    NoMarkPriceError,
    NotActiveError,
    StaleMarkPriceError,
    UnknownAccountError,
)
from margin.http import (
    WRITE_PROBLEMS,
    AccountIdPath,
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

router = Router(tags=["accounts"])
REFUSALS = (
    InsufficientWithdrawableError,
    NoMarkPriceError,
    StaleMarkPriceError,
    NotActiveError,
    UnknownAccountError,
)


@router.post(
    "/accounts/{account_id}/deposits",
    summary="Deposit money; the first deposit opens the account",
    responses={**executed(MoneyAnswer), **problems(*WRITE_PROBLEMS)},
)
@of_account(Scope.ACCOUNTS_WRITE)
async def deposit(
    account_id: AccountIdPath,
    request: MoneyRequest,
    response: Response,
    caller: CallerOf,
    idempotency_key: IdempotencyKey = None,
) -> MoneyAnswer:
    """Credit the account's balance."""
    moved = await engine().funds.deposit(account_id, request.amount, key=idempotency_key, caller=caller)
    outcome(response, pending=not moved.final, replayed=moved.replayed)
    return MoneyAnswer.of(moved)


@router.post(
    "/accounts/{account_id}/withdrawals",
    summary="Withdraw money, at most what is withdrawable",
    responses={**executed(MoneyAnswer), **problems(*REFUSALS, *WRITE_PROBLEMS)},
)
@of_account(Scope.ACCOUNTS_WRITE)
async def withdraw(
    account_id: AccountIdPath,
    request: MoneyRequest,
    response: Response,
    caller: CallerOf,
    idempotency_key: IdempotencyKey = None,
) -> MoneyAnswer:
    """Debit the account's balance. Pay out only on 200: a 202 is not final."""
    moved = await engine().funds.withdraw(account_id, request.amount, key=idempotency_key, caller=caller)
    outcome(response, pending=not moved.final, replayed=moved.replayed)
    return MoneyAnswer.of(moved)


@router.post(
    "/accounts/{account_id}/insurance-contributions",
    summary="Give money to the insurance fund, at most what is withdrawable",
    responses={**executed(MoneyAnswer), **problems(*REFUSALS, *WRITE_PROBLEMS)},
)
@of_account(Scope.ACCOUNTS_WRITE)
async def contribute(
    account_id: AccountIdPath,
    request: MoneyRequest,
    response: Response,
    caller: CallerOf,
    idempotency_key: IdempotencyKey = None,
) -> MoneyAnswer:
    """Debit the account's balance and credit the insurance fund. It is not given back."""
    moved = await engine().funds.contribute(account_id, request.amount, key=idempotency_key, caller=caller)
    outcome(response, pending=not moved.final, replayed=moved.replayed)
    return MoneyAnswer.of(moved)


app = create_app(router, title="Margin: accounts", version=__version__, description=__doc__ or "")
handler = http_handler(app)
