"""POST /accounts/{account_id}/deposits and /withdrawals: money in and out."""

from __future__ import annotations

from fastapi import Response

from margin import __version__
from margin.errors import (
    ContentionError,
    IdempotencyKeyReusedError,
    InsufficientWithdrawableError,
    LimitExceededError,
    NoMarkPriceError,
    StaleMarkPriceError,
    UnavailableError,
    UnknownAccountError,
)
from margin.http import (
    AccountIdPath,
    Amount,
    Answer,
    CallerOf,
    DecimalText,
    IdempotencyKey,
    Request,
    Router,
    create_app,
    executed,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from margin.runtime import engine
from margin.services.journal import Outcome

router = Router(tags=["accounts"])


class MoneyRequest(Request):
    """Money to move."""

    amount: Amount


class MoneyAnswer(Answer):
    """The account after the movement; equity and withdrawable are null while a position has no mark price."""

    account_id: int
    balance: DecimalText
    equity: DecimalText | None
    withdrawable: DecimalText | None
    entry_id: int


_CONFLICTS = (IdempotencyKeyReusedError, ContentionError, UnavailableError)


@router.post(
    "/accounts/{account_id}/deposits",
    summary="Deposit money; the first deposit opens the account",
    responses={**executed(MoneyAnswer), **problems(LimitExceededError, *_CONFLICTS)},
)
async def deposit(
    account_id: AccountIdPath,
    request: MoneyRequest,
    response: Response,
    caller: CallerOf,
    idempotency_key: IdempotencyKey = None,
) -> MoneyAnswer:
    """Credit the account's balance."""
    return _answer(
        response, await engine().funds.deposit(account_id, request.amount, key=idempotency_key, caller=caller)
    )


@router.post(
    "/accounts/{account_id}/withdrawals",
    summary="Withdraw money, at most what is withdrawable",
    responses={
        **executed(MoneyAnswer),
        **problems(
            InsufficientWithdrawableError, NoMarkPriceError, StaleMarkPriceError, UnknownAccountError, *_CONFLICTS
        ),
    },
)
async def withdraw(
    account_id: AccountIdPath,
    request: MoneyRequest,
    response: Response,
    caller: CallerOf,
    idempotency_key: IdempotencyKey = None,
) -> MoneyAnswer:
    """Debit the account's balance. Pay out only on 200: a 202 is not final."""
    return _answer(
        response, await engine().funds.withdraw(account_id, request.amount, key=idempotency_key, caller=caller)
    )


def _answer(response: Response, moved: Outcome) -> MoneyAnswer:
    outcome(response, pending=not moved.final, replayed=moved.replayed)
    return MoneyAnswer.model_validate({"entry_id": moved.event_id, **moved.result})


app = create_app(router, title="Margin: accounts", version=__version__, description=__doc__ or "")
handler = http_handler(app)
