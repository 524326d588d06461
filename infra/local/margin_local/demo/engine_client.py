"""The engine's HTTP interface over kept connections, one for each thread."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from margin.config import is_loopback
from margin_local.demo.engine_process import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["TOKEN_VARIABLE", "Answer", "EngineClient"]

TOKEN_VARIABLE = "MARGIN_TOKEN"  # noqa: S105 - a name
"""Of the environment: the token for an engine that wants one."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_TIMEOUT_S = 30.0
# Below the time after which a server closes a connection that nobody uses: a request is never sent into a closed one.
_IDLE_MAX_S = 2.0
_UNAVAILABLE_TRIES_MAX = 5
_UNAVAILABLE_WAIT_S = 0.5
_LIQUIDATIONS_PER_PAGE = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body of an answer; in problems ``code`` says what was wrong."""

    status: int
    body: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the request was executed: 200, or 202 while history is pending."""
        return self.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED)

    @property
    def code(self) -> str:
        """Code of a refusal."""
        return str(self.body.get("code", self.status))


class EngineClient:
    """Sends requests; safe to use from several threads.

    Parameters
    ----------
    url : str
        Where the engine answers, such as ``http://127.0.0.1:8000``.
    token : str
        Sent with every request; none is sent when it is empty.

    Raises
    ------
    EngineError
        When it is no HTTP address, or the token is none or would be sent to another machine for everybody to read.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise EngineError(f"{url} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise EngineError(f"{url} is no address of an engine; write for example http://127.0.0.1:8000")
        self._secure = parts.scheme == "https"
        if token and not _TOKEN.fullmatch(token):
            raise EngineError(f"{TOKEN_VARIABLE} is not a token: it must be what make token prints, or an issuer gives")
        if token and not self._secure and not is_loopback(self._host):
            raise EngineError(f"{url} is another machine: a token is sent there with https alone")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._path = parts.path.rstrip("/")
        self._local = threading.local()

    def close(self) -> None:
        """Close the connection of this thread; the next request opens another."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()

    def check_health(self) -> None:
        """Ask whether the engine can work.

        Raises
        ------
        EngineError
        """
        self._require(self._send("GET", "/health"))

    def get(self, path: str) -> Answer:
        """Ask for something that is no method's here, once."""
        return self._send("GET", path)

    def deposit(self, account_id: int, amount: str, key: str) -> Answer:
        """Deposit money; the first deposit opens the account."""
        return self._send_until_available(
            "POST", f"/accounts/{account_id}/deposits", {"amount": amount}, {"Idempotency-Key": key}
        )

    def trade(self, body: Mapping[str, object], key: str) -> Answer:
        """Send a trade."""
        return self._send_until_available("POST", "/trade", body, {"Idempotency-Key": key})

    def set_mark_price(self, symbol: str, price: str) -> Answer:
        """Send a mark price once; the caller sees to 503 itself, since no key tells a second one from the first."""
        return self._send("POST", "/mark-price", {"symbol": symbol, "price": price})

    def set_mark_prices(self, prices: Mapping[str, str]) -> Answer:
        """Send mark prices of one moment in one request, once, as :meth:`set_mark_price` does."""
        if len(prices) == 1:
            ((symbol, price),) = prices.items()
            return self.set_mark_price(symbol, price)
        body = {"prices": [{"symbol": symbol, "price": price} for symbol, price in prices.items()]}
        return self._send("POST", "/mark-prices", body)

    def set_instrument(self, symbol: str, rules: Mapping[str, object]) -> Answer:
        """Give a symbol rules; the same ones again do no harm."""
        return self._send_until_available("PUT", f"/instruments/{symbol}", rules)

    def instrument(self, symbol: str) -> dict[str, Any]:
        """Rules of a symbol, as GET /instruments answers them.

        Raises
        ------
        EngineError
        """
        return self._require(self._send_until_available("GET", f"/instruments/{symbol}")).body

    def account(self, account_id: int) -> dict[str, Any]:
        """Balance and open positions of an account, as GET /positions answers them.

        Raises
        ------
        EngineError
        """
        return self._require(self._send_until_available("GET", f"/positions/{account_id}")).body

    def insurance_fund(self) -> dict[str, Any]:
        """Balance of the insurance fund and what liquidated accounts left unpaid, as GET /insurance-fund answers it.

        Raises
        ------
        EngineError
        """
        return self._require(self._send_until_available("GET", "/insurance-fund")).body

    def liquidation_pages(self) -> Iterator[list[dict[str, Any]]]:
        """Liquidations of all accounts, newest first, page by page.

        Raises
        ------
        EngineError
        """
        cursor: str | None = None
        while True:
            query = {"limit": str(_LIQUIDATIONS_PER_PAGE), **({} if cursor is None else {"cursor": cursor})}
            answer = self._require(self._send_until_available("GET", f"/liquidations?{urlencode(query)}"))
            yield answer.body["liquidations"]
            cursor = answer.body["next_cursor"]
            if cursor is None:
                return

    def _require(self, answer: Answer) -> Answer:
        if not answer.accepted:
            raise EngineError(f"{self.url} answers {answer.status} {answer.code}: {answer.body.get('detail', '')}")
        return answer

    def _send_until_available(
        self, method: str, path: str, body: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send again on 503: reads and requests with a key may be."""
        for _ in range(_UNAVAILABLE_TRIES_MAX):
            answer = self._send(method, path, body, headers)
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            time.sleep(_UNAVAILABLE_WAIT_S)
        return answer

    def _send(
        self, method: str, path: str, body: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = self._connection()
        sent = {"Accept": "application/json", **self._headers, **(headers or {})}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, self._path + path, content, sent)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = str(error) or type(error).__name__
            raise EngineError(f"{self.url} does not answer {method} {path}: {reason}") from error
        self._local.used_s = time.monotonic()
        return Answer(response.status, _object(raw))

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = self._local.connection = kind(self._host, self._port, timeout=_TIMEOUT_S)
        elif time.monotonic() - self._local.used_s > _IDLE_MAX_S:
            connection.close()
        self._local.used_s = time.monotonic()
        return connection


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
