"""What the callers were told: one entry for each operation that they tried."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from enum import StrEnum, unique

_UNIT = Decimal("0.00000001")


@unique
class Kind(StrEnum):
    """What a caller asks for; the engine refuses `TOO_LARGE` always."""

    DEPOSIT = "DEPOSIT"
    WITHDRAWAL = "WITHDRAWAL"
    BUY = "BUY"
    SELL = "SELL"
    TOO_LARGE = "TOO_LARGE"


_SIZES = {
    Kind.DEPOSIT: Decimal(10),
    Kind.WITHDRAWAL: Decimal(1),
    Kind.BUY: Decimal("0.001"),
    Kind.SELL: Decimal("0.001"),
    Kind.TOO_LARGE: Decimal(10_000),
}


@unique
class Told(StrEnum):
    """What a caller knows in the end.

    ``DONE``: answered with 200. ``REFUSED``: answered that nothing happened. ``UNKNOWN``: no answer, or one that is not
    final, and the caller gave no key to ask with. ``NOTHING``: a caller who asks again was never answered.
    """

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    NOTHING = "nothing"


@dataclasses.dataclass(slots=True)
class Operation:
    """One thing that a caller wants to happen once. Its amount is its own among those of its account.

    ``event_id`` is the one that it was told with 200, ``attempts`` how often it was sent.
    """

    number: int
    account_id: int
    kind: Kind
    key: str | None
    amount: Decimal
    told: Told = Told.NOTHING
    event_id: int = 0
    attempts: int = 0
    last_answer: str = ""

    @property
    def symbol_side(self) -> str:
        """Side of a trade, "" of what is none."""
        sides = {Kind.BUY: "BUY", Kind.TOO_LARGE: "BUY", Kind.SELL: "SELL"}
        return sides.get(self.kind, "")


class CallersLedger:
    """All operations of one scenario, and answers that no caller should ever get."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.findings: list[str] = []

    def open(self, account_id: int, kind: Kind, *, keyed: bool, size: Decimal | None = None) -> Operation:
        """Enter a new operation, not sent yet."""
        number = len(self.operations) + 1
        amount = (_SIZES[kind] if size is None else size) + number * _UNIT
        operation = Operation(number, account_id, kind, f"op-{number}" if keyed else None, amount)
        self.operations.append(operation)
        return operation

    def count(self, told: Told) -> int:
        """How many operations ended so."""
        return sum(operation.told is told for operation in self.operations)

    @property
    def attempts(self) -> int:
        """How many requests were sent."""
        return sum(operation.attempts for operation in self.operations)
