"""How accounts, events and idempotency results are written in Redis, and read there: texts, no I/O."""

from __future__ import annotations

import functools
import hashlib
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.instrument_json import parse_instrument
from margin.domain.account import Account
from margin.domain.decimals import plain
from margin.domain.event import StoredEvent
from margin.domain.funding import Funding, Shift
from margin.domain.mark_jump import MarkCandidate
from margin.domain.market import Mark, Market
from margin.domain.position import Position
from margin.domain.safe_zone import Trigger, TriggerSide
from margin.ports import AccountRow, StoredResult
from margin.ports.history import RememberedKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.instrument import Instrument
    from margin.ports import AccountLoad, Anchor, Commit
    from margin.ports.history import HistoryKey


def mark_of(price: str, stamp: str, kept_time: str | None) -> Mark:
    """Read a mark and when it was observed, which nobody knows where the time that is kept belongs to another stamp.

    A release that keeps no times replaces price and stamp, and leaves the time of the mark before.
    """
    of, _, time = (kept_time or "").partition(":")
    return Mark(Decimal(price), int(stamp), int(time) if time and of == stamp else None)


def candidate_of(kept: str, stamp: str | None) -> MarkCandidate | None:
    """Read a price that waits to be confirmed; None where there is none, or it was held against another mark.

    It stands behind the stamp of that mark and the moment at which it came.
    """
    if not kept:
        return None
    of, _, time, price, source = kept.split(":", 4)
    return MarkCandidate(Decimal(price), int(time), source or None) if of == stamp else None


def market_of(rows: list[list[Any]], now_us: int) -> Market:
    """Read rows of symbol, mark, instrument and funding; empty where there is none.

    Of a mark there are its price, its stamp, the time that is kept, and what waits to be confirmed.
    """
    marks: dict[str, Mark] = {}
    instruments: dict[str, Instrument] = {}
    staged: dict[str, Instrument] = {}
    funding: dict[str, Funding] = {}
    waiting: dict[str, Decimal] = {}
    for symbol, (price, stamp, time, kept), instrument, paid in rows:
        if price:
            marks[symbol] = mark_of(price, stamp, time)
            candidate = candidate_of(kept, stamp)
            if candidate is not None:
                waiting[symbol] = candidate.price
        if instrument:
            instruments[symbol], following = parse_instrument(instrument)
            if following is not None:
                staged[symbol] = following
        if paid:
            funding[symbol] = funding_of(paid)
    return Market(marks, instruments, now_us, funding, staged, waiting)


def positions_of(rows: list[list[str]]) -> dict[str, Position]:
    """Read rows of symbol, quantity, entry cost and entry funding; those without a quantity are none."""
    return {
        symbol: Position(symbol, Decimal(quantity), Decimal(entry_cost), Decimal(entry_funding))
        for symbol, quantity, entry_cost, entry_funding in rows
        if quantity
    }


@functools.lru_cache(maxsize=2000)
def funding_of(text: str) -> Funding:
    """Read the funding of a symbol: n, index, and the shifts of floors and ceilings, of liquidation and the warning."""
    n, index, *shifts = text.split(" ")
    floor, ceiling, warning_floor, warning_ceiling = map(Decimal, shifts)
    return Funding(int(n), Decimal(index), Shift(floor, ceiling), Shift(warning_floor, warning_ceiling))


def funding_text(funding: Funding) -> str:
    """Write the funding of a symbol."""
    shifts = (funding.liquidation, funding.warning)
    amounts = [funding.index, *(amount for shift in shifts for amount in (shift.floor, shift.ceiling))]
    return " ".join([str(funding.n), *map(plain, amounts)])


def account_row(account_id: str, balance: str, version: str, positions: list[list[str]]) -> AccountRow:
    """Read an account of a page."""
    return AccountRow(version, Account(int(account_id), Decimal(balance), positions_of(positions)))


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
    amounts = (position.quantity, position.entry_price, position.entry_cost, position.entry_funding)
    return [symbol, *map(plain, amounts)]


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
        "keys_max": str(commit.keys_max),
        "keys_max_binds": commit.keys_max_binds,
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
        "instruments": [list(version) for version in commit.instrument_versions.items()],
        "funding": [[symbol, str(n)] for symbol, n in commit.funding.items()],
        "controls": [list(control) for control in commit.controls.items()],
        "hold": commit.hold,
        "marks": [[symbol, plain(price), _waiting(symbol, commit)] for symbol, price in commit.marks.items()],
    }


def anchor_fields(anchor: Anchor, epoch: int | None) -> tuple[str | int, ...]:
    """Write the triggers of an account, as their script takes them; None stands for any epoch."""
    used = [list(version) for version in anchor.instrument_versions.items()]
    placed = json.dumps([trigger_fields(anchor.triggers), trigger_fields(anchor.warnings), used])
    seen_in = "" if epoch is None else epoch
    return anchor.account_id, anchor.version, placed, seen_in, "1" if anchor.warned else ""


def _waiting(symbol: str, commit: Commit) -> str:
    return plain(commit.waiting[symbol]) if symbol in commit.waiting else ""


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
        "instruments": [list(version) for version in load.instrument_versions.items()],
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
