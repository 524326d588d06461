"""What clients ask for, and what they are told."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.caller import Caller
from margin.domain.order import Order
from margin.domain.position import Side
from margin.errors import MarginError, OutcomeUnknownError

if TYPE_CHECKING:
    from margin.services.journal import Outcome
    from tests.simulation.engine import Engine

_CALLER = Caller(subject="simulation", source_ip="192.0.2.7")


class Kind(StrEnum):
    """What is asked for, by the type of the event that it makes."""

    DEPOSIT = "DEPOSIT"
    WITHDRAWAL = "WITHDRAWAL"
    TRADE = "TRADE"
    CONTRIBUTION = "CONTRIBUTION"


@dataclasses.dataclass(slots=True, kw_only=True)
class Ask:
    """One thing that a client wants to happen once, however often it sends it.

    ``amount`` is what moves, or the quantity of a trade. ``adopted``: it had no key, and repeats under that which an
    answer named; no seed chose that one.
    """

    number: int
    kind: Kind
    account_id: int
    amount: Decimal
    key: str | None
    symbol: str = ""
    side: str = ""
    price: Decimal = Decimal(0)
    adopted: bool = False

    async def send(self, engine: Engine) -> Outcome:
        """Ask a process."""
        match self.kind:
            case Kind.DEPOSIT:
                return await engine.funds.deposit(self.account_id, self.amount, key=self.key, caller=_CALLER)
            case Kind.WITHDRAWAL:
                return await engine.funds.withdraw(self.account_id, self.amount, key=self.key, caller=_CALLER)
            case Kind.CONTRIBUTION:
                return await engine.funds.contribute(self.account_id, self.amount, key=self.key, caller=_CALLER)
            case Kind.TRADE:
                order = Order(self.account_id, self.symbol, Side(self.side), self.amount, self.price)
                return await engine.trading.trade(order, key=self.key, caller=_CALLER)

    def adopt_key(self, reply: Reply) -> None:
        """Take the key that the engine made and names where it cannot say what happened."""
        if self.key is None and isinstance(reply.error, OutcomeUnknownError):
            self.key, self.adopted = reply.error.detail.rpartition(": ")[2], True

    def other(self, number: int) -> Ask:
        """Make another request under the same key."""
        return dataclasses.replace(self, number=number, amount=self.amount + Decimal(1))

    def detail(self) -> dict[str, str]:
        """What the event's record must say, of what the client chose."""
        if self.kind is not Kind.TRADE:
            return {"amount": _text(self.amount)}
        amounts = {"quantity": _text(self.amount), "price": _text(self.price)}
        return {"symbol": self.symbol, "side": self.side, **amounts}

    def __str__(self) -> str:
        order = f" {self.side} {self.symbol} at {_text(self.price)}" if self.kind is Kind.TRADE else ""
        key = "that it was told" if self.adopted else self.key
        return f"#{self.number} {self.kind}{order} {_text(self.amount)} of {self.account_id}, key {key}"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What came back: an outcome, an error, or nothing because the process died."""

    outcome: Outcome | None = None
    error: MarginError | None = None

    def __str__(self) -> str:
        if self.outcome is not None:
            status = "200" if self.outcome.final else "202"
            return f"{status} {self.outcome.event_id}{' replayed' if self.outcome.replayed else ''}"
        return "nothing" if self.error is None else f"{self.error.status} {self.error.code}"


def _text(amount: Decimal) -> str:
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
