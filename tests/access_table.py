"""Who may call what, as it was decided: written down here again, so that the code is not compared with itself."""

from __future__ import annotations

import dataclasses
from enum import Enum, unique
from typing import Any

SCOPES = frozenset(
    {"trade:write", "positions:read", "history:read", "accounts:write", "marks:write", "risk:read", "admin"}
)
SYMBOL = "BTC-PERP"
PRICE = "50000"


@unique
class Of(Enum):
    """What an operation is about."""

    ACCOUNT = "one account"
    ALL_ACCOUNTS = "all accounts"
    MARKET = "the market"
    PAGE = "any valid token sees it"
    OPEN = "no token is needed"


@dataclasses.dataclass(frozen=True)
class Call:
    """A request that is right, and who may send it.

    ``path`` is the route's, with ``{account_id}`` and ``{symbol}`` to be filled in; ``query`` and ``body`` belong to
    the example.
    """

    method: str
    path: str
    of: Of
    scopes: frozenset[str] = frozenset()
    query: str = ""
    body: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}{'?' if self.query else ''}{self.query}"

    def url(self, account_id: int) -> str:
        """Return path and query about an account."""
        text = f"{self.path}?{self.query}" if self.query else self.path
        return text.replace("{account_id}", str(account_id)).replace("{symbol}", SYMBOL)

    def content(self, account_id: int) -> dict[str, Any] | None:
        """Return the body about an account."""
        return self.body | {"account_id": account_id} if self.body and "account_id" in self.body else self.body


def _call(
    method: str, path: str, of: Of, scopes: str = "", *, query: str = "", body: dict[str, Any] | None = None
) -> Call:
    return Call(method, path, of, frozenset(scopes.split()), query, body)


_ORDER = {"account_id": 0, "symbol": SYMBOL, "side": "BUY", "quantity": "0.001", "price": PRICE}
_PRICES = {"prices": [{"symbol": SYMBOL, "price": PRICE}]}
_SHOCKS = {"shocks": [{"name": "down", "moves": [{"symbol": SYMBOL, "move": "-0.1"}]}]}
_ONE = {"amount": "1"}
_ACTIVE = {"state": "active", "reason": "a test"}

CALLS = (
    _call("POST", "/trade", Of.ACCOUNT, "trade:write", body=_ORDER),
    _call("POST", "/trade/preview", Of.ACCOUNT, "positions:read trade:write", body=_ORDER),
    _call("GET", "/positions/{account_id}", Of.ACCOUNT, "positions:read"),
    _call("POST", "/mark-price", Of.MARKET, "marks:write", body=_PRICES["prices"][0]),
    _call("POST", "/mark-prices", Of.MARKET, "marks:write", body=_PRICES),
    _call("GET", "/mark-prices", Of.MARKET, "positions:read marks:write risk:read"),
    _call("GET", "/mark-prices/{symbol}/history", Of.MARKET, "history:read"),
    _call("POST", "/funding", Of.ALL_ACCOUNTS, "admin", body={"symbol": SYMBOL, "rate": "0.0001"}),
    _call("GET", "/funding/{account_id}", Of.ACCOUNT, "history:read"),
    _call("GET", "/funding-rates", Of.MARKET, "history:read"),
    _call("GET", "/margin-report", Of.ALL_ACCOUNTS, "risk:read"),
    _call("GET", "/risk/ladder", Of.ALL_ACCOUNTS, "risk:read", query="symbol={symbol}"),
    _call("POST", "/risk/shocks", Of.ALL_ACCOUNTS, "risk:read", body=_SHOCKS),
    _call("GET", "/trades/{account_id}", Of.ACCOUNT, "history:read"),
    _call("GET", "/liquidations", Of.ACCOUNT, "history:read", query="account_id={account_id}"),
    _call("GET", "/liquidations", Of.ALL_ACCOUNTS, "history:read"),
    _call("GET", "/insurance-fund", Of.ALL_ACCOUNTS, "risk:read"),
    _call("POST", "/accounts/{account_id}/deposits", Of.ACCOUNT, "accounts:write", body=_ONE),
    _call("POST", "/accounts/{account_id}/withdrawals", Of.ACCOUNT, "accounts:write", body=_ONE),
    _call("POST", "/accounts/{account_id}/insurance-contributions", Of.ACCOUNT, "accounts:write", body=_ONE),
    _call("GET", "/controls", Of.ALL_ACCOUNTS, "admin"),
    _call("PUT", "/controls/engine", Of.ALL_ACCOUNTS, "admin", body=_ACTIVE),
    _call("PUT", "/controls/symbols/{symbol}", Of.ALL_ACCOUNTS, "admin", body=_ACTIVE),
    _call("PUT", "/controls/accounts/{account_id}", Of.ACCOUNT, "admin", body=_ACTIVE),
    _call("GET", "/instruments", Of.MARKET, "positions:read trade:write admin"),
    _call("GET", "/instruments/{symbol}", Of.MARKET, "positions:read trade:write admin"),
    _call("PUT", "/instruments/{symbol}", Of.ALL_ACCOUNTS, "admin", body={"tick_size": "0.00000001"}),
    _call("GET", "/openapi.json", Of.PAGE),
    _call("GET", "/docs", Of.PAGE),
    _call("GET", "/health", Of.OPEN),
)

GUARDED = tuple(call for call in CALLS if call.of is not Of.OPEN)
SCOPED = tuple(call for call in GUARDED if call.of is not Of.PAGE)
OF_AN_ACCOUNT = tuple(call for call in SCOPED if call.of is Of.ACCOUNT)
OF_ALL_ACCOUNTS = tuple(call for call in SCOPED if call.of is Of.ALL_ACCOUNTS)
