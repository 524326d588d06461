"""An engine as `make run` starts it, that wants tokens, with accounts, positions and history to find."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from margin.caller import Scope
from margin_local.tokens.development import DevelopmentKey
from tests.fuzz.hooks import ACCOUNTS, MARKS
from tests.integration.local.runner import home, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.local.runner import Runner

LIFETIME_S = 24 * 3600
PATIENT = {"REDIS_TIMEOUT_S": "10", "POSTGRES_TIMEOUT_S": "10", "POSTGRES_CONNECT_TIMEOUT_S": "10"}
"""A machine that is busy with something else is no 503 of the engine."""
# What uvicorn says of bytes that are no HTTP, and refuses.
_NO_HTTP = "WARNING:  Invalid HTTP request received."


class FuzzedEngine:
    """A running engine with tokens for it."""

    def __init__(self, runner: Runner, key: DevelopmentKey) -> None:
        self._runner = runner
        self._key = key
        self.url = runner.url
        self.operator = self.token(" ".join(Scope), "*")

    def token(self, scopes: str, accounts: str) -> str:
        """Make a token."""
        claims = {"sub": "fuzz", "scope": scopes, "account_ids": accounts}
        return self._key.token(claims, lifetime_s=LIFETIME_S)

    def document(self) -> str:
        """Return the API document as it is served."""
        answer = self._runner.send("GET", "/openapi.json", headers=self._headers())
        assert answer.status == 200, answer.text
        return answer.text

    def furnish(self) -> None:
        """Give it prices, deposits, positions, funding and a liquidation."""
        for symbol, price in MARKS.items():
            self._post("/mark-price", symbol=symbol, price=price)
        for account in ACCOUNTS:
            self._post(f"/accounts/{account}/deposits", amount="1000000000")
            for symbol, price in MARKS.items():
                self._post("/trade", account_id=account, symbol=symbol, side="BUY", quantity="1", price=price)
        self._post("/accounts/7/deposits", amount="11000")
        self._post("/trade", account_id=7, symbol="BTC-PERP", side="BUY", quantity="1", price="50000")
        self._post("/mark-price", symbol="BTC-PERP", price="42000")
        self._post("/mark-price", symbol="BTC-PERP", price=MARKS["BTC-PERP"])
        self._post("/funding", symbol="BTC-PERP", rate="0.0001", timestamp="2026-01-31T08:00:00Z")

    def _post(self, path: str, **body: Any) -> None:
        answer = self._runner.send("POST", path, body, headers=self._headers())
        assert answer.status == 200, answer.text

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.operator}"}

    def errors_in_log(self) -> list[str]:
        """List the lines of its log that tell of a failure, or that are no JSON object."""
        return [line for line in self._runner.stderr.splitlines() if line != _NO_HTTP and not _is_harmless(line)]


def _is_harmless(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and entry.get("level") not in ("ERROR", "CRITICAL")


@contextlib.contextmanager
def fuzzed_engine() -> Iterator[FuzzedEngine]:
    """A furnished engine on stores of its own, which are gone afterwards."""
    with home() as directory:
        key = DevelopmentKey(str(directory / ".data"))
        with running(directory, AUTH="jwt", **PATIENT) as runner:
            engine = FuzzedEngine(runner, key)
            engine.furnish()
            yield engine
