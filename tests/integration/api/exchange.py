"""The engine behind its Lambda handlers, on real servers: requests go in as API Gateway sends them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import accounts_api
import controls_api
import funding_api
import history_api
import instruments_api
import margin_report_api
import mark_price_api
import positions_api
import risk_api
import status_api
import trade_api
from margin import runtime
from margin.lambda_entry import LOOP
from tests.events import LambdaContext, api_gateway_event

if TYPE_CHECKING:
    from margin.config import Settings
    from tests.integration.api.stores import Stores

HANDLERS = {
    "trade": trade_api.handler,
    "positions": positions_api.handler,
    "mark-price": mark_price_api.handler,
    "mark-prices": mark_price_api.handler,
    "history": history_api.handler,
    "funding": funding_api.handler,
    "funding-rates": funding_api.handler,
    "margin-report": margin_report_api.handler,
    "risk": risk_api.handler,
    "trades": history_api.handler,
    "liquidations": history_api.handler,
    "insurance-fund": history_api.handler,
    "accounts": accounts_api.handler,
    "controls": controls_api.handler,
    "instruments": instruments_api.handler,
    "health": status_api.handler,
}
"""The function that the gateway hands a path to, by the first part of the path, or by a part after it."""

SCHEDULE = {
    "version": "0",
    "id": "cdc73f9d-aea9-11e3-9d5a-835b769c0d9c",
    "detail-type": "Scheduled Event",
    "source": "aws.scheduler",
    "account": "123456789012",
    "time": "2026-01-31T12:00:00Z",
    "region": "eu-central-1",
    "resources": ["arn:aws:scheduler:eu-central-1:123456789012:schedule/default/margin"],
    "detail": "{}",
}


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer of a function."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Exchange:
    """The engine of one test, or of several that only look."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self.settings = settings
        self.stores = stores
        self._engine: runtime.Engine | None = None

    def start(self, **changes: Any) -> None:
        """Begin with empty stores; ``changes`` are settings that differ."""
        self.stores.clear()
        self.restart(**changes)
        assert self._engine is not None
        LOOP.run_until_complete(self._engine.opening.open())

    def restart(self, **changes: Any) -> None:
        """Go on with a new engine, as another execution environment would."""
        self.stop()
        self._engine = runtime.Engine(dataclasses.replace(self.settings, **changes))
        runtime.use(self._engine)

    def stop(self) -> None:
        runtime.use(None)
        if self._engine is not None:
            LOOP.run_until_complete(self._engine.close())
            self._engine = None

    def call(self, method: str, path: str, body: Any = None, *, function: str = "", **options: Any) -> Reply:
        """Send a request to the function that its path belongs to, or to the one that is named."""
        parts = path.split("/")[1:]
        handler = HANDLERS[function or (parts[-1] if parts[0] == "mark-prices" else parts[0])]
        answer = handler(api_gateway_event(method, path, body, **options), LambdaContext())
        assert answer["isBase64Encoded"] is False
        return Reply(answer["statusCode"], answer["headers"], answer["body"])

    def get(self, path: str, **query: Any) -> Any:
        """The answer to a request that is expected to succeed."""
        reply = self.call("GET", path, query={name: str(value) for name, value in query.items()})
        assert reply.status == 200, reply.text
        return reply.json

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request that is expected to succeed."""
        reply = self.call("POST", path, body)
        assert reply.status == 200, reply.text
        return reply.json

    def deposit(self, account_id: int, amount: str) -> Any:
        return self.post(f"/accounts/{account_id}/deposits", amount=amount)

    def mark(self, symbol: str, price: str) -> Any:
        return self.post("/mark-price", symbol=symbol, price=price)

    def trade(self, account_id: int, side: str, quantity: str, price: str, symbol: str = "BTC-PERP") -> Any:
        return self.post("/trade", account_id=account_id, symbol=symbol, side=side, quantity=quantity, price=price)


PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "request_id"}


def assert_problem(reply: Reply, status: int, code: str, field: str | None = None) -> str:
    """Check an error answer in full and return its sentence."""
    assert reply.status == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json
    assert set(problem) - {"errors"} == PROBLEM_FIELDS | ({"field"} if field else set())
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field)
    assert problem["type"] == f"urn:margin:problem:{code.lower().replace('_', '-')}"
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert problem["title"]
    return str(problem["detail"])
