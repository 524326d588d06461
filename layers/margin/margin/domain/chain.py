"""What makes an account's chain of events sound, told from recorded events alone.

Each event counts one on from the one before it and names its id and hash; its own hash is that of its body; its lines
in the ledger add up to zero, the line of CASH is the change of its balance, and that of FUNDING what was due. Bodies
come from a store that anybody may have written to, so nothing in them is taken for granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from margin.domain.account import Account
from margin.domain.decimals import exact, plain, round_down
from margin.domain.event import canonical, digest, version_of
from margin.domain.ledger import LedgerAccount
from margin.domain.position import Position

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Head",
    "Link",
    "Mismatch",
    "UnreadableError",
    "account_of",
    "fold",
    "follow",
    "leap",
    "ledger_of",
    "resume",
    "shown",
]

_SHOWN_MAX = 200
_EXPONENT_MAX = 100
"""Beyond any number of the engine; what is larger would be written with as many digits."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that is not as it must be: ``what`` is a sentence, the others what should be and what is there.

    ``n`` and ``event_id`` are of the event that it is about, None where there is none.
    """

    what: str
    expected: str
    found: str
    n: int | None = None
    event_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An event as it is recorded: its place, and its body as JSON values (anything at all, if it was tampered with)."""

    account_id: int
    n: int
    event_id: int
    previous_event_id: int
    hash: str
    body: Any


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stands after an event: its number, id and hash, and the state that all events came to.

    ``certain`` is False behind an event that something is wrong with: hash and balance are not to be relied on then.
    """

    n: int
    event_id: int
    hash: str
    account: Account
    certain: bool = True

    @classmethod
    def unopened(cls, account_id: int) -> Head:
        """Return where every chain begins."""
        return cls(0, 0, "", Account(account_id, Decimal(0), {}))

    @property
    def version(self) -> str:
        """Version of the account at this point, "" before its first event."""
        return version_of(self.n, self.event_id) if self.n else ""


class UnreadableError(ValueError):
    """A recorded state or body is not what the engine writes."""


def follow(head: Head, link: Link) -> Head | Mismatch:
    """Go one event further, or say what is wrong with it; the first thing, for the rest would follow from it."""
    mismatch = _misplaced(head, link) or _unlinked(head, link)
    if mismatch is not None:
        return mismatch
    try:
        after = Head(link.n, link.event_id, link.hash, fold(head.account, link.body))
        return _unbooked(head, after, link.body) or _misfunded(head, after, link.body) or after
    except (UnreadableError, ArithmeticError) as error:
        return Mismatch(f"event {link.n} cannot be read", "a body of the engine", shown(error))


def resume(head: Head, link: Link) -> Head:
    """Go on behind an event that something is wrong with, so that what comes after it can be judged by itself."""
    try:
        account = fold(head.account, link.body)
    except UnreadableError:
        account = head.account
    return Head(link.n, link.event_id, link.hash, account, certain=False)


def leap(head: Head, link: Link) -> Head:
    """Stand right before an event, whatever is missing between."""
    return Head(link.n - 1, link.previous_event_id, "", head.account, certain=False)


def fold(account: Account, body: Any) -> Account:
    """Return the account after an event: the body's balance, and the positions that it says have changed.

    Raises
    ------
    UnreadableError
        The body is not one that the engine writes.
    """
    try:
        after = Account(account.account_id, _decimal(body["balance"]), account.positions)
        for symbol, fields in body["positions"].items():
            after = after.with_position(symbol, None if fields is None else _position(symbol, fields))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"{type(error).__name__} in the balance or the positions") from error
    return after


def account_of(account_id: int, balance: Any, positions: Any) -> Account:
    """Make an account of a recorded state: a number as text or Decimal, and positions as in a body.

    Raises
    ------
    UnreadableError
        The state is not one that the engine writes.
    """
    nothing = Account(account_id, Decimal(0), {})
    return fold(nothing, {"balance": balance, "positions": positions})


def ledger_of(body: Any) -> list[tuple[str, Decimal]]:
    """Ledger lines of a body, in its order.

    Raises
    ------
    UnreadableError
        The body is not one that the engine writes.
    """
    try:
        return [(str(LedgerAccount(name)), _decimal(amount)) for name, amount in body["ledger"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"{type(error).__name__} in the ledger") from error


def shown(value: object) -> str:
    """Write any recorded value for a person, cut off where it is long."""
    text = str(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def shown_positions(positions: Mapping[str, Position]) -> str:
    """Write positions for a person."""
    texts = (_shown_position(position) for _, position in sorted(positions.items()))
    return shown(", ".join(texts) or "nothing")


def _shown_position(position: Position) -> str:
    text = f"{position.symbol} {plain(position.quantity)} for {plain(position.entry_cost)}"
    return f"{text} funded to {plain(position.entry_funding)}" if position.entry_funding else text


def _misplaced(head: Head, link: Link) -> Mismatch | None:
    n = head.n + 1
    if link.n > n:
        return Mismatch(f"event {n} is missing", str(n), str(link.n))
    if link.n < n:
        return Mismatch(f"event {link.n} is one too many", str(n), str(link.n))
    return None


def _unlinked(head: Head, link: Link) -> Mismatch | None:
    """Compare an event in its place with its own hash and with the event before it."""
    n = link.n
    recomputed = digest(canonical(link.body))
    if recomputed != link.hash:
        return Mismatch(f"event {n} does not have the hash of its body", recomputed, shown(link.hash))
    before: dict[str, object] = {"account_id": link.account_id, "n": n, "previous_event_id": head.event_id}
    if head.certain:
        before["previous_hash"] = head.hash
    named = {name: link.body.get(name) for name in before} if isinstance(link.body, dict) else {}
    if named != before or link.previous_event_id != head.event_id:
        found = f"{named}, in its column {link.previous_event_id}"
        return Mismatch(f"event {n} does not name the one before it", shown(before), shown(found))
    if link.event_id <= head.event_id:
        return Mismatch(f"the id of event {n} does not rise", f"above {head.event_id}", str(link.event_id))
    return None


@exact
def _unbooked(before: Head, after: Head, body: Any) -> Mismatch | None:
    """Compare an event's ledger lines with each other and with what it did to the balance."""
    lines = ledger_of(body)
    total = sum((amount for _, amount in lines), start=Decimal(0))
    if total != 0:
        return Mismatch(f"the ledger of event {after.n} does not sum to zero", "0", str(total))
    if not before.certain:
        return None
    cash = sum((amount for name, amount in lines if name == LedgerAccount.CASH), start=Decimal(0))
    change = after.account.balance - before.account.balance
    if cash != change:
        return Mismatch(f"the cash of event {after.n} is not the change of its balance", str(change), str(cash))
    return None


@exact
def _misfunded(before: Head, after: Head, body: Any) -> Mismatch | None:
    """Recompute what an event settled of the account's funding from the positions before it, and compare the ledger."""
    payments = _payments(body)
    if not before.certain:
        return None
    total, seen = Decimal(0), set()
    for symbol, quantity, index, amount in payments:
        position = before.account.positions.get(symbol)
        if position is None or position.quantity != quantity or symbol in seen:
            held = "nothing more" if position is None or symbol in seen else plain(position.quantity)
            return Mismatch(f"event {after.n} settles funding of {symbol} that is not held", held, plain(quantity))
        due = round_down(position.pending_funding(index))
        if due != amount:
            what = f"the funding of {symbol} in event {after.n} is not what was due"
            return Mismatch(what, plain(due), plain(amount))
        seen.add(symbol)
        total += amount
    booked = sum((amount for name, amount in ledger_of(body) if name == LedgerAccount.FUNDING), start=Decimal(0))
    if booked != -total:
        what = f"the funding in the ledger of event {after.n} is not what its positions received and paid"
        return Mismatch(what, plain(-total), plain(booked))
    return None


def _payments(body: Any) -> list[tuple[str, Decimal, Decimal, Decimal]]:
    """Symbol, quantity, index and amount of each payment; events from before there was funding have none."""
    try:
        return [
            (str(one["symbol"]), _decimal(one["quantity"]), _decimal(one["index"]), _decimal(one["amount"]))
            for one in body.get("funding", ())
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"{type(error).__name__} in the funding") from error


def _position(symbol: str, fields: Mapping[str, Any]) -> Position:
    entry_funding = _decimal(fields.get("entry_funding", "0"))
    return Position(symbol, _decimal(fields["quantity"]), _decimal(fields["entry_cost"]), entry_funding)


def _decimal(value: Any) -> Decimal:
    """Read a number; a JSON number is none of ours, and a float would not be exact."""
    if not isinstance(value, str | Decimal):
        raise TypeError("not a decimal string")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ValueError("not a number") from None
    if not number.is_finite() or abs(number.adjusted()) > _EXPONENT_MAX:
        raise ValueError("not a number of the engine")
    return number
