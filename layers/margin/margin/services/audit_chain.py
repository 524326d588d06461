"""Whether what history holds of one account is sound: its chain, what is derived from each event, and its row."""

from __future__ import annotations

import dataclasses
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from margin.domain.chain import (
    Head,
    Mismatch,
    UnreadableError,
    account_of,
    follow,
    leap,
    ledger_of,
    resume,
    shown,
    shown_positions,
)
from margin.domain.deleveraging_record import verify_deleveraging
from margin.domain.event import AcknowledgedBy, EventType
from margin.domain.liquidation_record import verify_liquidation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.ports.audit import AuditedAccount, AuditedEvent

_VERIFIED = {EventType.LIQUIDATION: verify_liquidation, EventType.DELEVERAGING: verify_deleveraging}
_TRADES = (EventType.TRADE,)
_LIQUIDATIONS = (EventType.LIQUIDATION, EventType.DELEVERAGING)
"""Events that have a row in each of the two tables."""

_TRADE_TEXTS = ("symbol", "side")
_TRADE_AMOUNTS = ("quantity", "price", "notional", "realised_pnl", "fee")
_LIQUIDATION_TEXTS = ("reason", "positions")
_LIQUIDATION_AMOUNTS = ("equity", "maintenance_margin", "shortfall")


def ownerless(table: str) -> Mismatch:
    """Say of rows in a table that their account has no row in accounts: they were left behind by it, or forged."""
    return Mismatch(f"rows in {table} are of an account that has none in accounts", "a row in accounts", "none")


def head_of(row: AuditedAccount) -> Head:
    """Where an account stands according to its row.

    Raises
    ------
    UnreadableError
        The row's state is not one that the engine writes.
    """
    return Head(row.n, row.event_id, row.chain_hash, account_of(row.account_id, row.balance, row.positions))


class ChainAudit:
    """Follows one account's events from the first to the one that its row names.

    Of each event the first mismatch is kept, and the next event is judged by itself. What the row and the numbers of
    derived rows should be is judged only where every event is sound, because it would follow from what is not. Where
    each event's lines are those of its body and its cash is the change of its balance, an account's cash lines together
    are its balance, and all lines of all accounts are zero.

    Parameters
    ----------
    row : AuditedAccount
        The account's row, read before its events.
    """

    def __init__(self, row: AuditedAccount) -> None:
        self.row = row
        self.events = 0
        self._head = Head.unopened(row.account_id)
        self._counts = {"ledger_lines": 0, "trades": 0, "liquidations": 0}
        self._mismatches: list[Mismatch] = []

    def take(self, event: AuditedEvent) -> None:
        """Judge the next event; those that came after the row was read are left out."""
        if event.link.n > self.row.n:
            return
        self.events += 1
        if event.link.n > self._head.n + 1:
            self._missing(event.link.n)
            self._head = leap(self._head, event.link)
        followed = follow(self._head, event.link)
        if isinstance(followed, Mismatch):
            self._found(event, followed)
            if event.link.n > self._head.n:
                self._head = resume(self._head, event.link)
            return
        before, self._head = self._head, followed
        if (mismatch := _derived(event) or _misjudged(before, followed, event.link.body)) is not None:
            self._found(event, mismatch)
            return
        self._counts["ledger_lines"] += len(event.lines)
        self._counts["trades"] += event.trade is not None
        self._counts["liquidations"] += event.liquidation is not None

    def end(self) -> list[Mismatch]:
        """Judge the row after the last event; all that was found."""
        if self._head.n < self.row.n:
            self._missing(self.row.n + 1)
        return self._mismatches or [*self._of_row(), *self._of_counts()]

    def _found(self, event: AuditedEvent, mismatch: Mismatch) -> None:
        link = event.link
        self._mismatches.append(dataclasses.replace(mismatch, n=link.n, event_id=link.event_id))

    def _missing(self, next_n: int) -> None:
        first, last = self._head.n + 1, next_n - 1
        what = f"event {first} is missing" if first == last else f"events {first} to {last} are missing"
        found = f"event {next_n}" if last < self.row.n else "nothing"
        self._mismatches.append(Mismatch(what, f"event {first}", found, n=first))

    def _of_row(self) -> list[Mismatch]:
        head, row = self._head, self.row
        try:
            stored = head_of(row)
        except UnreadableError as error:
            return [Mismatch("the row in accounts cannot be read", "a state of the engine", str(error))]
        pairs = {
            "version": (head.version, stored.version),
            "chain hash": (head.hash, stored.hash),
            "balance": (head.account.balance, stored.account.balance),
            "positions": (dict(head.account.positions), dict(stored.account.positions)),
        }
        return [
            Mismatch(f"the {name} in accounts is not what the events come to", _shown(expected), _shown(found))
            for name, (expected, found) in pairs.items()
            if expected != found
        ]

    def _of_counts(self) -> list[Mismatch]:
        row = self.row
        if row.events != self.events:
            return [Mismatch("events go on behind the row in accounts", str(self.events), str(row.events))]
        stored = {"ledger_lines": row.ledger_lines, "trades": row.trades, "liquidations": row.liquidations}
        return [
            Mismatch(f"{name} has rows that belong to no event", str(self._counts[name]), str(found))
            for name, found in stored.items()
            if self._counts[name] != found
        ]


def _shown(value: object) -> str:
    return shown_positions(value) if isinstance(value, dict) else shown(value)


def _derived(event: AuditedEvent) -> Mismatch | None:
    """Compare an event's columns and derived rows with its body, which is known to be the one that was hashed."""
    n, body = event.link.n, event.link.body
    for name, stored in event.columns.items():
        expected = body.get(name, AcknowledgedBy.HISTORY if name == "acknowledged_by" else None)
        if stored != expected:
            return Mismatch(f"column {name} of event {n} is not what its body says", shown(expected), shown(stored))
    stated = list(enumerate(ledger_of(body), start=1))
    lines = [(line, (account, _amount(amount))) for line, account, amount in event.lines]
    if lines != stated:
        return Mismatch(f"ledger lines of event {n} are not those of its body", _lines(stated), _lines(lines))
    trade = _expected(body, _TRADES, _TRADE_TEXTS, _TRADE_AMOUNTS)
    liquidation = _expected(body, _LIQUIDATIONS, _LIQUIDATION_TEXTS, _LIQUIDATION_AMOUNTS)
    rows = {
        "trades": (trade, _read(event.trade, _TRADE_TEXTS, _TRADE_AMOUNTS)),
        "liquidations": (liquidation, _read(event.liquidation, _LIQUIDATION_TEXTS, _LIQUIDATION_AMOUNTS)),
    }
    for table, (expected, found) in rows.items():
        if expected != found:
            return Mismatch(f"the row in {table} is not what event {n} says", shown(expected), shown(found))
    return None


def _misjudged(before: Head, after: Head, body: Mapping[str, Any]) -> Mismatch | None:
    """Recompute a liquidation or a deleveraging from what is recorded of it."""
    verify = _VERIFIED.get(body["type"])
    if verify is None or not before.certain:
        return None
    wrong = verify(body["detail"], before.account, after.account, ledger_of(body))
    return Mismatch(f"event {after.n}: {wrong[0].what}", wrong[0].expected, wrong[0].found) if wrong else None


def _expected(
    body: Mapping[str, Any], event_types: tuple[EventType, ...], texts: tuple[str, ...], amounts: tuple[str, ...]
) -> dict[str, Any] | None:
    """Make the row that an event must have in a table, None for none."""
    if body.get("type") not in event_types:
        return None
    detail = body.get("detail")
    return _read({**(detail if isinstance(detail, dict) else {}), "at_us": body.get("at_us")}, texts, amounts)


def _read(fields: Mapping[str, Any] | None, texts: tuple[str, ...], amounts: tuple[str, ...]) -> dict[str, Any] | None:
    if fields is None:
        return None
    read: dict[str, Any] = {name: fields.get(name) for name in texts}
    return {**read, **{name: _amount(fields.get(name)) for name in (*amounts, "at_us")}}


def _amount(value: Any) -> Decimal | str:
    """Read an amount as a number; whatever is none stays what it is, and equals no number."""
    try:
        return Decimal(str(value))
    except InvalidOperation:
        return shown(value)


def _lines(lines: list[tuple[int, tuple[str, Any]]]) -> str:
    return shown(", ".join(f"{line} {account} {amount}" for line, (account, amount) in lines) or "none")
