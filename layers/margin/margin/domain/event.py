"""Events: what happened to one account, as one link of its chain.

The body of an event is canonical JSON (sorted keys, no spaces, decimals as strings, whole numbers as numbers), so
that its hash can be recomputed by anyone from what history holds. A body names the id and the hash of the event
before it: an edit or a deletion in the middle of a chain is visible. Its own id is not part of it, because Redis
assigns that when the event commits; the next body names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.decimals import plain
from margin.domain.ledger import ledger_amounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.funding import FundingPayment
    from margin.domain.ledger import LedgerLine
    from margin.domain.position import Position

BODY_FORMAT = 1
"""Version of the body's layout; a reader of history can tell old ones from new."""


class EventType(StrEnum):
    """What can happen to an account."""

    DEPOSIT = "DEPOSIT"
    WITHDRAWAL = "WITHDRAWAL"
    TRADE = "TRADE"
    LIQUIDATION = "LIQUIDATION"
    MARGIN_WARNING = "MARGIN_WARNING"
    """Nothing changed but the utilisation of the account, which has reached the level of the warning."""
    CONTRIBUTION = "CONTRIBUTION"
    """Money of the account that went to the insurance fund."""
    SETTLEMENT = "SETTLEMENT"
    """Money of the insurance fund that covered what a liquidation of the account had left unpaid."""
    DELEVERAGING = "DELEVERAGING"
    """A part of a profitable position that was closed at a liquidated account's bankruptcy price."""


class AcknowledgedBy(StrEnum):
    """Which store had an event when its caller was told that it is done."""

    HISTORY = "history"
    REDIS = "redis"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, before it has an id.

    ``n`` counts the account's events from 1. ``positions`` holds the symbols that the event changed (None: closed).
    ``detail`` is the record of its type (a trade, a liquidation), ``result`` what the caller is answered, ``funding``
    what the account received or paid before all else, see :func:`funding_entries`. All values are JSON values already.

    ``acknowledged_by`` says for how long the key stands for this event alone: for ever where history has to take the
    event before the caller is told, else for as long as Redis remembers the key.
    """

    type: EventType
    account_id: int
    n: int
    previous_event_id: int
    previous_hash: str
    at_us: int
    key: str
    request_hash: str
    subject: str | None
    source_ip: str | None
    balance: str
    positions: Mapping[str, Mapping[str, str] | None]
    ledger: Sequence[tuple[str, str]]
    detail: Mapping[str, object]
    result: Mapping[str, object]
    acknowledged_by: AcknowledgedBy = AcknowledgedBy.HISTORY
    funding: Sequence[Mapping[str, str]] = ()

    def body(self) -> str:
        """Canonical JSON of the event."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return canonical({"format": BODY_FORMAT, **fields})


@dataclasses.dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the stores carry it: its id and its body."""

    event_id: int
    body: str


def canonical(value: object) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def version_of(n: int, event_id: int) -> str:
    """Version of an account after its ``n``-th event."""
    return f"{n}:{event_id}"


def parse_version(version: str) -> tuple[int, int]:
    """``n`` and the id of the last event; (0, 0) for an account that has none."""
    if not version:
        return 0, 0
    n, _, event_id = version.partition(":")
    return int(n), int(event_id)


def position_changes(before: Account | None, after: Account) -> dict[str, dict[str, str] | None]:
    """Positions that differ between two states of an account, by symbol; None for one that is closed."""
    old = before.positions if before is not None else {}
    changes: dict[str, dict[str, str] | None] = {}
    for symbol in sorted({*old, *after.positions}):
        position = after.positions.get(symbol)
        if position == old.get(symbol):
            continue
        changes[symbol] = None if position is None else position_entry(position)
    return changes


def position_entry(position: Position) -> dict[str, str]:
    """Write a position as JSON; its entry funding only where there is some."""
    fields = {"quantity": plain(position.quantity), "entry_cost": plain(position.entry_cost)}
    return {**fields, "entry_funding": plain(position.entry_funding)} if position.entry_funding else fields


def funding_entries(payments: Sequence[FundingPayment]) -> list[dict[str, str]]:
    """Write payments as JSON: symbol, quantity, index, amount."""
    return [
        {
            "symbol": payment.symbol,
            "quantity": plain(payment.quantity),
            "index": plain(payment.index),
            "amount": plain(payment.amount),
        }
        for payment in payments
    ]


def ledger_entries(lines: Sequence[LedgerLine]) -> list[tuple[str, str]]:
    """Ledger lines as JSON pairs."""
    return [(name, plain(amount)) for name, amount in ledger_amounts(lines)]
