"""A small application behind the real Lambda handler, for the tests of this folder."""

import dataclasses
import json
from decimal import Decimal
from typing import Any

from fastapi import Response

from margin.errors import (
    ContentionError,
    InsufficientMarginError,
    MarginError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.http import (
    AccountId,
    AccountIdPath,
    Answer,
    CallerOf,
    Cursor,
    DecimalText,
    IdempotencyKey,
    Limit,
    Price,
    Quantity,
    Request,
    Router,
    Scope,
    SideText,
    Symbol,
    SymbolQuery,
    Timestamp,
    TimestampText,
    create_app,
    executed,
    of_account,
    outcome,
    problems,
)
from margin.lambda_entry import http_handler
from tests.events import LambdaContext, api_gateway_event

router = Router()
raised: list[Exception] = []


class TradeRequest(Request):
    account_id: AccountId
    symbol: Symbol
    side: SideText
    quantity: Quantity
    price: Price


received: list[TradeRequest] = []


class TradeAnswer(Answer):
    account_id: int
    symbol: str
    quantity: DecimalText
    notional: DecimalText
    margin_utilisation_pct: DecimalText | None
    subject: str | None
    source_ip: str | None
    idempotency_key: str | None


class HistoryAnswer(Answer):
    account_id: int
    limit: int
    cursor: str | None
    symbol: str | None
    since: TimestampText | None


@router.post(
    "/trade",
    responses=executed(TradeAnswer)
    | problems(InsufficientMarginError, UnknownAccountError, ContentionError, StateNotLoadedError),
)
@of_account(Scope.TRADE_WRITE)
async def execute_trade(
    request: TradeRequest, response: Response, caller: CallerOf, idempotency_key: IdempotencyKey = None
) -> TradeAnswer:
    """Execute a trade."""
    received.append(request)
    if raised:
        raise raised.pop()
    outcome(response, pending=request.symbol == "PENDING", replayed=request.symbol == "REPLAYED")
    return TradeAnswer(
        account_id=request.account_id,
        symbol=request.symbol,
        quantity=request.quantity,
        notional=request.quantity * request.price,
        margin_utilisation_pct=None if request.symbol == "NONE" else Decimal("-0.00"),
        subject=caller.subject,
        source_ip=caller.source_ip,
        idempotency_key=idempotency_key,
    )


@router.get("/trades/{account_id}")
@of_account(Scope.HISTORY_READ)
async def list_trades(
    account_id: AccountIdPath,
    limit: Limit = 100,
    cursor: Cursor = None,
    symbol: SymbolQuery | None = None,
    since: Timestamp | None = None,
) -> HistoryAnswer:
    """List an account's trades."""
    return HistoryAnswer(account_id=account_id, limit=limit, cursor=cursor, symbol=symbol, since=since)


app = create_app(router, title="Exchange", version="1.0.0", description="An exchange for tests.")
handler = http_handler(app)

TRADE = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": 0.1, "price": 50000}


@dataclasses.dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(method: str, path: str, body: Any = None, **options: Any) -> Reply:
    answer = handler(api_gateway_event(method, path, body, **options), LambdaContext())
    assert answer["isBase64Encoded"] is False
    return Reply(answer["statusCode"], answer["headers"], answer["body"])


def trade(**changes: Any) -> Reply:
    """Post a good trade with some fields changed."""
    return call("POST", "/trade", TRADE | changes)


def trade_text(**changes: str) -> Reply:
    """Post a good trade with some fields replaced by raw JSON text."""
    fields = {name: json.dumps(value) for name, value in TRADE.items()} | changes
    return call("POST", "/trade", "{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}")


def fail_with(error: MarginError | Exception) -> None:
    """Let the next trade raise ``error`` in the endpoint."""
    raised.append(error)
