"""Whether Redis holds an account as history does, or as history will when it has the events that wait."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from margin.domain.chain import Head, Link, Mismatch, UnreadableError, account_of, follow, shown, shown_positions
from margin.domain.decimals import plain
from margin.domain.event import digest, parse_version
from margin.domain.safe_zone import TriggerSide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from margin.domain.event import StoredEvent
    from margin.ports.audit import HotAccount, HotPosition

_NOTHING = "nothing"


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """What differs; ``judged`` is False where more events wait than were read, so that nothing can be said yet."""

    mismatches: tuple[Mismatch, ...]
    judged: bool = True


def compare(head: Head, hot: HotAccount, later: Sequence[Link] = ()) -> Comparison:
    """Compare an account in Redis with history.

    Parameters
    ----------
    head : Head
        The account in history, read before Redis: in sound operation Redis is never behind it.
    hot : HotAccount
        The account in Redis at one moment.
    later : sequence of Link
        Events behind ``head``, read from history after Redis. An event that Redis has committed is on the pending list
        until history has it, so together with the pending events these lead to Redis' version whatever moved between
        the reads. Without them a difference can be a movement.

    Returns
    -------
    Comparison
        The first mismatch of version and chain, for what follows from it would only repeat it; else every mismatch of
        the state.
    """
    if not hot.version:
        missing = Mismatch("Redis does not hold the account", head.version, _NOTHING)
        return Comparison((missing,) if head.n else ())
    reached = _reach(head, hot, later)
    if reached is None:
        return Comparison((), judged=False)
    if isinstance(reached, Mismatch):
        return Comparison((reached,))
    return Comparison((*_state(reached, hot), *_triggers(hot), *_waiting(reached, hot)))


def _reach(head: Head, hot: HotAccount, later: Sequence[Link]) -> Head | Mismatch | None:
    """Go from history's head to Redis' version; None where that takes more pending events than were read."""
    n = _number(hot.version)
    if n < head.n:
        what = "Redis is behind history" if n >= 0 else "the version in Redis cannot be read"
        return Mismatch(what, head.version, shown(hot.version))
    bridged = _bridge(head, n, [*later, *_links(head, hot.pending)])
    if isinstance(bridged, Mismatch):
        what = f"pending events do not lead from history to Redis: {bridged.what}"
        return Mismatch(what, bridged.expected, bridged.found)
    if bridged.n < n and hot.pending_count > len(hot.pending):
        return None
    if bridged.version == hot.version:
        return bridged
    if not bridged.n:
        return Mismatch("history does not know the account", _NOTHING, hot.version)
    what = "Redis holds another event than history" if bridged.n == n else "no pending event leads to Redis' version"
    return Mismatch(what, bridged.version, hot.version)


def _number(version: str) -> int:
    """Take the number of the last event from a version; -1 where it is none."""
    try:
        return parse_version(version)[0]
    except ValueError:
        return -1


def _bridge(head: Head, n: int, links: Sequence[Link]) -> Head | Mismatch:
    """Follow events from history's head to number ``n``, or as far as they lead."""
    for link in links:
        if head.n < link.n <= n:
            followed = follow(head, link)
            if isinstance(followed, Mismatch):
                return followed
            head = followed
    return head


def _links(head: Head, pending: Sequence[StoredEvent]) -> Iterator[Link]:
    """Make links of pending events; the hash of each is that of its text, as history will take it."""
    for event in pending:
        body = _json(event.body)
        named = body if isinstance(body, dict) else {}
        n, previous = named.get("n"), named.get("previous_event_id")
        yield Link(
            account_id=head.account.account_id,
            n=n if isinstance(n, int) else 0,
            event_id=event.event_id,
            previous_event_id=previous if isinstance(previous, int) else 0,
            hash=digest(event.body),
            body=body,
        )


def _state(head: Head, hot: HotAccount) -> Iterator[Mismatch]:
    if hot.chain_hash != head.hash:
        yield Mismatch("Redis holds another chain hash", head.hash, shown(hot.chain_hash or _NOTHING))
    account_id, held = head.account.account_id, head.account.positions
    try:
        balance = account_of(account_id, hot.balance, {}).balance
    except UnreadableError:
        balance = None
    if balance != head.account.balance:
        yield Mismatch("Redis holds another balance", plain(head.account.balance), shown(hot.balance or _NOTHING))
    for symbol in sorted({*held, *hot.positions}):
        here = hot.positions.get(symbol)
        fields = dataclasses.asdict(here) if here else None
        try:
            found = account_of(account_id, "0", {symbol: fields}).positions.get(symbol)
        except UnreadableError:
            found = None
        if found != held.get(symbol):
            expected = shown_positions({symbol: held[symbol]} if symbol in held else {})
            yield Mismatch(f"Redis holds another position in {symbol}", expected, shown(_shown(symbol, here)))


def _shown(symbol: str, here: HotPosition | None) -> str:
    if here is None:
        return _NOTHING
    text = f"{symbol} {here.quantity} for {here.entry_cost}"
    return text if here.entry_funding in {"0", ""} else f"{text} funded to {here.entry_funding}"


def _triggers(hot: HotAccount) -> Iterator[Mismatch]:
    """Look whether each position has its one trigger; a floor for a long, a ceiling for a short."""
    for symbol, position in sorted(hot.positions.items()):
        expected = TriggerSide.CEILING if position.quantity.startswith("-") else TriggerSide.FLOOR
        if position.quantity and position.sides != (expected,):
            found = " and ".join(position.sides) or _NOTHING
            yield Mismatch(f"triggers of {symbol} are not those of its position", expected, found)


def _waiting(head: Head, hot: HotAccount) -> Iterator[Mismatch]:
    """Look whether the drain finds the account, and whether its pending events end where the account stands."""
    if hot.waits != bool(hot.pending_count):
        states = ("no event is pending", "events are pending")
        found = "the account is named" if hot.waits else "the account is not named"
        yield Mismatch("the index of pending accounts is wrong", states[bool(hot.pending_count)], found)
    if hot.pending and hot.pending_count == len(hot.pending) and hot.pending[-1].event_id != head.event_id:
        found = str(hot.pending[-1].event_id)
        yield Mismatch("the pending events do not end at Redis' version", str(head.event_id), found)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
