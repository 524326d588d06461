"""Chains of events made by hand, to be given to history directly."""

from __future__ import annotations

from margin.domain.event import Event, EventType, StoredEvent, digest
from margin.ports.history import ReadAt

READ_AT = ReadAt(partition=0, partitions=1, epoch=2**20)
"""As if read from Redis after every opening."""

AT_US = 1_700_000_000_000_000


def chain(
    account_id: int,
    count: int,
    *,
    after: StoredEvent | None = None,
    n: int = 1,
    id_offset: int = 0,
    name: str = "",
    subject: str | None = None,
) -> list[StoredEvent]:
    """Make ``count`` deposits of 1, the first of them with number ``n`` and, if it has a predecessor, ``after`` it.

    Another ``id_offset`` and ``name`` make other events for the same places.
    """
    events: list[StoredEvent] = []
    previous = after
    for number in range(n, n + count):
        body = _body(account_id, number, previous, key=f"{name}{number}", subject=subject)
        previous = StoredEvent(id_offset + account_id * 1000 + number, body)
        events.append(previous)
    return events


def chain_with_keys(account_id: int, keys: list[str], *, after: StoredEvent, n: int) -> list[StoredEvent]:
    """Make deposits with the given idempotency keys."""
    events: list[StoredEvent] = []
    previous = after
    for number, key in enumerate(keys, start=n):
        previous = StoredEvent(account_id * 1000 + number, _body(account_id, number, previous, key=key))
        events.append(previous)
    return events


def _body(account_id: int, n: int, previous: StoredEvent | None, *, key: str, subject: str | None = None) -> str:
    return Event(
        type=EventType.DEPOSIT,
        account_id=account_id,
        n=n,
        previous_event_id=previous.event_id if previous else 0,
        previous_hash=digest(previous.body) if previous else "",
        at_us=AT_US + n,
        key=key,
        request_hash="-",
        subject=subject,
        source_ip=None,
        balance=str(n),
        positions={},
        ledger=[("cash", "1"), ("external", "-1")],
        detail={"amount": "1"},
        result={"balance": str(n)},
    ).body()
