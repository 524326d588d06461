"""How accounts, events and idempotency results are written in Redis, and read there: texts, no I/O."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.instrument_json import parse_instrument
from margin.domain.account import Account
from margin.domain.decimals import plain
from margin.domain.event import StoredEvent
from margin.domain.market import Mark, Market
from margin.domain.position import Position
from margin.domain.safe_zone import Trigger, TriggerSide
from margin.ports import AccountRow, StoredResult
from margin.ports.history import RememberedKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.instrument import Instrument
    from margin.ports import AccountLoad, Commit
    from margin.ports.history import HistoryKey


def mark_of(price: str, stamp: str, kept_time: str | None) -> Mark:
    """Read a mark and when it was observed, which nobody knows where the time that is kept belongs to another stamp.

    A release that keeps no times replaces price and stamp, and leaves the time of the mark before.
    """
    of, _, time = (kept_time or "").partition(":")
    return Mark(Decimal(price), int(stamp), int(time) if time and of == stamp else None)


def market_and_positions(rows: list[list[str]], now_us: int) -> tuple[Market, dict[str, Position]]:
    """Read rows of symbol, quantity, entry cost, mark price, its stamp, kept time, instrument; empty where none is."""
    marks: dict[str, Mark] = {}
    instruments: dict[str, Instrument] = {}
    positions: dict[str, Position] = {}
    for symbol, quantity, entry_cost, price, stamp, time, instrument in rows:
        if quantity:
            positions[symbol] = Position(symbol, Decimal(quantity), Decimal(entry_cost))
        if price:
            marks[symbol] = mark_of(price, stamp, time)
        if instrument:
            instruments[symbol] = parse_instrument(instrument)
    return Market(marks, instruments, now_us), positions


def account_row(account_id: str, balance: str, version: str, positions: list[list[str]]) -> AccountRow:
    """Read an account of a page."""
    held = {symbol: Position(symbol, Decimal(quantity), Decimal(cost)) for symbol, quantity, cost in positions}
    return AccountRow(version, Account(int(account_id), Decimal(balance), held))


def trigger_of(symbol: str, floor: str, ceiling: str) -> Trigger | None:
    """Read the trigger of a position; one on both sides is none that anything can be said of."""
    if bool(floor) is bool(ceiling):
        return None
    if floor:
        return Trigger(symbol, TriggerSide.FLOOR, float(floor))
    return Trigger(symbol, TriggerSide.CEILING, float(ceiling))


def position_fields(symbol: str, account: Account) -> list[str]:
    """Write a position, or that the account has none in the symbol."""
    position = account.positions.get(symbol)
    if position is None:
        return [symbol, ""]
    return [symbol, plain(position.quantity), plain(position.entry_price), plain(position.entry_cost)]


def trigger_fields(triggers: Mapping[str, Trigger]) -> list[list[str]]:
    """Write triggers, their scores as text that reads back as the very same double."""
    return [[trigger.symbol, str(trigger.side), repr(trigger.score)] for trigger in triggers.values()]


def commit_fields(commit: Commit) -> dict[str, Any]:
    """Write a commit, as its script takes it."""
    event = commit.event
    return {
        "account_id": str(event.account_id),
        "epoch": str(commit.epoch),
        "expected_version": commit.expected_version,
        "n": str(event.n),
        "at_us": str(event.at_us),
        "key": event.key,
        "key_ttl_ms": str(commit.key_ttl_s * 1000),
        "wants_pending": commit.wants_pending,
        "request_hash": event.request_hash,
        "result": commit.result,
        "body": commit.body,
        "event_hash": commit.event_hash,
        "balance": event.balance,
        "positions": [position_fields(symbol, commit.account) for symbol in event.positions],
        "triggers": trigger_fields(commit.triggers),
        "warnings": trigger_fields(commit.warnings),
        "warned": "1" if commit.warned else "",
        "instruments": [[symbol, str(version)] for symbol, version in commit.instrument_versions.items()],
        "controls": [list(control) for control in commit.controls.items()],
        "hold": commit.hold,
        "marks": [[symbol, plain(price)] for symbol, price in commit.marks.items()],
    }


def load_fields(load: AccountLoad) -> dict[str, Any]:
    """Write the loading of an account, as its script takes it."""
    account = load.row.account
    return {
        "account_id": str(account.account_id),
        "expected_version": load.expected_version,
        "guard": load.guard,
        "forked_event_id": "" if load.forked_event_id is None else str(load.forked_event_id),
        "version": load.row.version,
        "chain_hash": load.row.chain_hash,
        "balance": plain(account.balance),
        "positions": [position_fields(symbol, account) for symbol in account.positions],
        "swept_symbols": list(load.swept_symbols),
        "triggers": trigger_fields(load.triggers),
        "warnings": trigger_fields(load.warnings),
        "keys": [[key.key, key_record(key), str(ttl_ms(key.ttl_s))] for key in load.keys],
        "kept_keys": list(load.kept_keys),
    }


def entry_digest(event: StoredEvent) -> str:
    """Digest of an event as it stands on a pending list, to tell it from any other."""
    return hashlib.sha1(f"{event.event_id} {event.body}".encode(), usedforsecurity=False).hexdigest()


def stored_events(entries: Sequence[str]) -> tuple[StoredEvent, ...]:
    """Read entries of a pending list."""
    split = (entry.partition(" ") for entry in entries)
    return tuple(StoredEvent(int(event_id), body) for event_id, _, body in split)


def stored_result(record: str, pending: Sequence[str]) -> StoredResult:
    """Read what an idempotency key stands for, with the account's pending events."""
    event_id, request_hash, result = record.split("\n", 2)
    return StoredResult(int(event_id), request_hash, result, stored_events(pending))


def remembered_key(name: str, record: str) -> RememberedKey:
    """Read whose an idempotency key is, by its name, and of which event."""
    account_id, _, key = name.partition(":")
    event_id, _, _ = record.partition("\n")
    return RememberedKey(int(account_id), key, int(event_id))


def key_record(key: HistoryKey) -> str:
    """Write what an idempotency key stands for."""
    return f"{key.event_id}\n{key.request_hash}\n{key.result}"


def ttl_ms(ttl_s: float) -> int:
    """Write a time to live; one that has ended is the shortest there is."""
    return max(1, int(ttl_s * 1000))
