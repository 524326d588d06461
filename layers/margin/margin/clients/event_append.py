"""Step 4 of the write path: appending events to their chains, in order and each once, whoever else does the same."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from typing import TYPE_CHECKING

import psycopg

from margin.domain.event import AcknowledgedBy, StoredEvent, digest
from margin.ports.history import Appended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.clients.postgres_pool import Lease
    from margin.ports.history import ReadAt

_APPEND = """
    select append_events_and_deleveragings(
        %(partition)s, %(partitions)s, %(epoch)s, %(event_ids)s::bigint[], %(hashes)s::text[], %(bodies)s::jsonb[]
    ) as account_id
"""
_SECOND_LOOK = """
    select wanted.account_id, wanted.n,
        same_place.event_id as present_id, same_place.hash as present_hash, same_key.event_id as key_id,
        same_id.n as id_n,
        accounts.n as head_n, accounts.event_id as head_id, accounts.chain_hash as head_hash
    from unnest(%(account_ids)s::bigint[], %(ns)s::bigint[], %(event_ids)s::bigint[], %(keys)s::text[])
        as wanted (account_id, n, event_id, key)
    left join events as same_place on (same_place.account_id, same_place.n) = (wanted.account_id, wanted.n)
    left join events as same_key on (same_key.account_id, same_key.key) = (wanted.account_id, wanted.key)
        and same_key.acknowledged_by = 'history'
    left join events as same_id on (same_id.account_id, same_id.event_id) = (wanted.account_id, wanted.event_id)
    left join accounts on accounts.account_id = wanted.account_id
"""
_FENCE_CLOSED = 0
"""What the statement answers in the place of an account when the fence is closed."""

_LOOKS_MAX = 8
"""How often to look again when others store events of the same account at the same time."""


class EventAppend:
    """Appends on one reserved connection.

    Parameters
    ----------
    lease : Lease
        The connection.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        """Store events of accounts of one partition; those of one account must be in order and without a hole.

        One round trip when all are new. What the statement left alone is looked at a second time: stored already by
        another (the rest is then stored), or a fork, or behind a gap. Accounts do not hinder each other. Where the
        partition was opened anew since ``read_at``, nothing is stored, and what was not stored before is fenced.

        Raises
        ------
        PostgresUnavailableError
            Whether the events were stored is not known; appending them again finds out.
        """
        links: dict[int, list[_Link]] = defaultdict(list)
        for event in events:
            link = _Link.of(event)
            links[link.account_id].append(link)
        try:
            whole = await self._insert_all(list(links.values()), read_at)
            rest = [chain for account_id, chain in links.items() if account_id not in whole]
            whole |= await self._stored_by_others(rest)
            return {
                account_id: Appended(tuple(link.event.event_id for link in chain))
                if account_id in whole
                else await self._second_look(chain, read_at)
                for account_id, chain in links.items()
            }
        except _FencedError:
            return {account_id: await self._behind_fence(chain) for account_id, chain in links.items()}

    async def _behind_fence(self, chain: Sequence[_Link]) -> Appended:
        """Tell which events of an account are in history, now that no more of them gets there."""
        try:
            seen = await self._look(chain)
        except _RejectedError:
            return Appended((), fenced=True)
        held = itertools.takewhile(lambda link: seen[link.account_id, link.n].holds(link), chain)
        stored = tuple(link.event.event_id for link in held)
        return Appended(stored, fenced=len(stored) < len(chain))

    async def _insert_all(self, chains: Sequence[Sequence[_Link]], read_at: ReadAt) -> set[int]:
        """Accounts whose events were stored; a statement that one event spoils is tried again in halves."""
        try:
            return await self._insert([link for chain in chains for link in chain], read_at)
        except _RejectedError:
            if len(chains) == 1:
                return set()
            middle = len(chains) // 2
            first = await self._insert_all(chains[:middle], read_at)
            return first | await self._insert_all(chains[middle:], read_at)

    async def _stored_by_others(self, chains: Sequence[Sequence[_Link]]) -> set[int]:
        """Accounts all of whose events are in history: another drain took the same."""
        if not chains:
            return set()
        try:
            seen = await self._look([link for chain in chains for link in chain])
        except _RejectedError:
            return set()
        return {
            chain[0].account_id for chain in chains if all(seen[link.account_id, link.n].holds(link) for link in chain)
        }

    async def _insert(self, links: Sequence[_Link], read_at: ReadAt) -> set[int]:
        """Accounts whose events were stored by this very statement.

        Raises
        ------
        _RejectedError
            One of the events spoils the statement.
        _FencedError
            The partition was opened anew since the events were read.
        """
        parameters = {
            "partition": read_at.partition,
            "partitions": read_at.partitions,
            "epoch": read_at.epoch,
            "event_ids": [link.event.event_id for link in links],
            "hashes": [link.hash for link in links],
            "bodies": [link.event.body for link in links],
        }
        try:
            rows = await self._lease.fetch(_APPEND, parameters)
        except psycopg.errors.UniqueViolation as error:
            raise _KeyUsedError from error
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise _RejectedError from error
        accounts = {row["account_id"] for row in rows}
        if _FENCE_CLOSED in accounts:
            raise _FencedError
        return accounts

    async def _second_look(self, chain: Sequence[_Link], read_at: ReadAt) -> Appended:
        """Find out why the events of an account were left alone, and store those that can be.

        Others may store the same events at the same time, so a failed insertion says nothing by itself: only what is
        seen in history decides. The loop ends, because each turn that stores nothing means that another has stored
        something.
        """
        stored: list[int] = []
        rest = list(chain)
        at_once = len(rest)
        for _ in range(len(chain) + _LOOKS_MAX):
            try:
                seen = await self._look(rest)
                while rest and seen[rest[0].account_id, rest[0].n].holds(rest[0]):
                    stored.append(rest.pop(0).event.event_id)
                if not rest:
                    break
                first = rest[0]
                hindrance = seen[first.account_id, first.n].hindrance(first, tuple(stored))
                if hindrance is not None:
                    return hindrance
                if first.account_id in await self._insert(rest[:at_once], read_at):
                    stored += [link.event.event_id for link in rest[:at_once]]
                    rest = rest[at_once:]
                    if not rest:
                        break
                    continue
            except _KeyUsedError:
                pass
            except _RejectedError:
                if at_once == 1 or len(rest) == 1:
                    return Appended(tuple(stored), rejected=True)
            # One at a time from here on, so that what stands before an event that is refused is kept.
            at_once = 1
        return Appended(tuple(stored))

    async def _look(self, chain: Sequence[_Link]) -> dict[tuple[int, int], _Place]:
        parameters = {
            "account_ids": [link.account_id for link in chain],
            "ns": [link.n for link in chain],
            "event_ids": [link.event.event_id for link in chain],
            "keys": [link.key if link.key_is_for_ever else None for link in chain],
        }
        try:
            rows = await self._lease.fetch(_SECOND_LOOK, parameters)
        except psycopg.DataError as error:
            raise _RejectedError from error
        return {
            (row["account_id"], row["n"]): _Place(
                present_id=row["present_id"],
                present_hash=row["present_hash"],
                key_id=row["key_id"],
                id_n=row["id_n"],
                head_n=row["head_n"] or 0,
                head_id=row["head_id"] or 0,
                head_hash=row["head_hash"] or "",
            )
            for row in rows
        }


class _RejectedError(Exception):
    """PostgreSQL refuses an event as it is, whoever tries again."""


class _FencedError(Exception):
    """Events were read from Redis before it was opened anew."""


class _KeyUsedError(_RejectedError):
    """An idempotency key, or a place in a chain, is taken; a look says by whom."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Link:
    """An event with what its place in the chain is."""

    event: StoredEvent
    account_id: int
    n: int
    previous_event_id: int
    previous_hash: str
    key: str
    key_is_for_ever: bool
    hash: str

    @classmethod
    def of(cls, event: StoredEvent) -> _Link:
        body = json.loads(event.body)
        return cls(
            event=event,
            account_id=body["account_id"],
            n=body["n"],
            previous_event_id=body["previous_event_id"],
            previous_hash=body["previous_hash"],
            key=body["key"],
            key_is_for_ever=body.get("acknowledged_by", AcknowledgedBy.HISTORY) == AcknowledgedBy.HISTORY,
            hash=digest(event.body),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """What history holds where an event wants to go: the event there, those of its key and of its id, the last one."""

    present_id: int | None
    present_hash: str | None
    key_id: int | None
    id_n: int | None
    head_n: int
    head_id: int
    head_hash: str

    def holds(self, link: _Link) -> bool:
        """Whether the very event is there already."""
        return self.present_id == link.event.event_id and self.present_hash == link.hash

    def hindrance(self, link: _Link, stored: tuple[int, ...]) -> Appended | None:
        """Why the event cannot be stored after those before it were; None when nothing seen here hinders it."""
        if self._stands_in_the_way_of(link):
            key_used_by = None if self.key_id is None else link.event.event_id
            return Appended(stored, forked=True, key_used_by=key_used_by)
        return Appended(stored, gap=True) if self.head_n < link.n - 1 else None

    def _stands_in_the_way_of(self, link: _Link) -> bool:
        """Whether the event can never be stored: its place, its key or its predecessor is another event's."""
        if self.present_id is not None or self.key_id is not None or self.id_n is not None:
            return not self.holds(link)
        predecessor = (link.previous_event_id, link.previous_hash)
        return self.head_n == link.n - 1 and (self.head_id, self.head_hash) != predecessor
