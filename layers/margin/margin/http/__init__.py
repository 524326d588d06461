"""The HTTP face of the engine: exact JSON in, typed answers out, one form for every error.

::

    router = Router()

    class DepositRequest(Request):
        amount: Amount

    class DepositAnswer(Answer):
        account_id: int
        balance: DecimalText

    @router.post("/accounts/{account_id}/deposits", responses=problems(UnknownAccountError))
    @of_account(Scope.ACCOUNTS_WRITE)
    async def deposit(account_id: AccountIdPath, request: DepositRequest, caller: CallerOf) -> DepositAnswer: ...

    app = create_app(router, title="Accounts", version="1.0.0", description="Deposits and withdrawals.")

``wire`` holds the types of single fields, ``authentication`` who sent a request, ``access`` who may, ``route`` what
happens to a request before an endpoint sees it, ``problem`` the one mapping of errors to answers, ``docs`` the pages
of the API document, ``app`` the application around it all.
"""

import margin.loading  # noqa: F401 - first, before all that takes long

# isort: split
from fastapi import Response

from margin.caller import Scope
from margin.http.access import of_account, of_all_accounts, of_market, open_to_all
from margin.http.app import CallerOf, Router, create_app
from margin.http.authentication import Authenticator, anyone, authenticated, authenticator, by_gateway, source_ip
from margin.http.docs import DOCS_PATH, DOCUMENT_PATH, docs_page
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
    "DOCS_PATH",
    "DOCUMENT_PATH",
    "STORE_PROBLEMS",
    "WRITE_PROBLEMS",
    "AccountId",
    "AccountIdPath",
    "AccountIdQuery",
    "Amount",
    "Answer",
    "Authenticator",
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
    "Scope",
    "SideText",
    "Symbol",
    "SymbolPath",
    "SymbolQuery",
    "Timestamp",
    "TimestampText",
    "anyone",
    "authenticated",
    "authenticator",
    "by_gateway",
    "create_app",
    "docs_page",
    "executed",
    "microseconds",
    "of_account",
    "of_all_accounts",
    "of_market",
    "open_to_all",
    "outcome",
    "problem_response",
    "problems",
    "request_id",
    "source_ip",
    "timestamp",
]
