"""The HTTP face of the engine: exact JSON in, typed answers out, one form for every error.

::

    router = Router()

    class DepositRequest(Request):
        amount: Amount

    class DepositAnswer(Answer):
        account_id: int
        balance: DecimalText

    @router.post("/accounts/{account_id}/deposits", responses=problems(UnknownAccountError))
    async def deposit(account_id: AccountIdPath, request: DepositRequest, caller: CallerOf) -> DepositAnswer: ...

    app = create_app(router, title="Accounts", version="1.0.0", description="Deposits and withdrawals.")

``wire`` holds the types of single fields, ``route`` what happens to a request before an endpoint sees it, ``problem``
the one mapping of errors to answers, ``app`` the application around it all.
"""

import margin.loading  # noqa: F401 - first, before all that takes long

# isort: split
from fastapi import Response

from margin.http.app import CallerOf, Router, create_app
from margin.http.outcome import executed, outcome
from margin.http.problem import STORE_PROBLEMS, WRITE_PROBLEMS, Problem, problem_response, problems, request_id
from margin.http.route import BODY_BYTES_MAX, ExactRoute
from margin.http.wire import (
    AccountId,
    AccountIdPath,
    AccountIdQuery,
    Amount,
    Answer,
    Cursor,
    DecimalText,
    IdempotencyKey,
    Limit,
    ObservedAt,
    Price,
    Quantity,
    Request,
    SideText,
    Symbol,
    SymbolPath,
    SymbolQuery,
    Timestamp,
    TimestampText,
    microseconds,
    timestamp,
)

__all__ = [
    "BODY_BYTES_MAX",
    "STORE_PROBLEMS",
    "WRITE_PROBLEMS",
    "AccountId",
    "AccountIdPath",
    "AccountIdQuery",
    "Amount",
    "Answer",
    "CallerOf",
    "Cursor",
    "DecimalText",
    "ExactRoute",
    "IdempotencyKey",
    "Limit",
    "ObservedAt",
    "Price",
    "Problem",
    "Quantity",
    "Request",
    "Response",
    "Router",
    "SideText",
    "Symbol",
    "SymbolPath",
    "SymbolQuery",
    "Timestamp",
    "TimestampText",
    "create_app",
    "executed",
    "microseconds",
    "outcome",
    "problem_response",
    "problems",
    "request_id",
    "timestamp",
]
