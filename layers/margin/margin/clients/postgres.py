"""History in PostgreSQL: the chain of events of each account and what is derived from it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from margin.clients.postgres_pool import Lease, PostgresPool, Row
from margin.domain.account import Account
from margin.domain.event import StoredEvent, canonical, digest, version_of
from margin.domain.ledger import LedgerAccount
from margin.domain.position import Position
from margin.errors import PostgresUnavailableError
from margin.ports import Appended, HistoryAccount, HistoryKey, LiquidationQuery, StoredResult, TradeQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from margin.config import Settings


def _read_sql(name: str) -> str:
    """Read a statement without its comments and indentation: the driver parses one of over 4096 bytes at each call."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if not line.lstrip().startswith("--"))


_APPEND = _read_sql("append_events.sql")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_OPENING_LOCK = 7_305_461_209
"""Advisory lock of the one that opens partitions; any constant does."""

_SECOND_LOOK = """
    select wanted.account_id, wanted.n,
        same_place.event_id as present_id, same_place.hash as present_hash, same_key.event_id as key_id,
        accounts.n as head_n, accounts.event_id as head_id, accounts.chain_hash as head_hash
    from unnest(%(account_ids)s::bigint[], %(ns)s::bigint[], %(keys)s::text[]) as wanted (account_id, n, key)
    left join events as same_place on (same_place.account_id, same_place.n) = (wanted.account_id, wanted.n)
    left join events as same_key on (same_key.account_id, same_key.key) = (wanted.account_id, wanted.key)
    left join accounts on accounts.account_id = wanted.account_id
"""
_LOOKS_MAX = 8
"""How often to look again when others store events of the same account at the same time."""

_TRADES = """
    select id, account_id, symbol, side, quantity, price, notional, realised_pnl, fee, occurred_at
    from trades
    where account_id = %(account_id)s
        and (%(symbol)s::text is null or symbol = %(symbol)s)
        and (%(since)s::timestamptz is null or occurred_at >= %(since)s)
        and (%(until)s::timestamptz is null or occurred_at < %(until)s)
        and (%(before_id)s::bigint is null or id < %(before_id)s)
    order by id desc
    limit %(limit)s
"""
_LIQUIDATIONS = """
    select id, account_id, equity, maintenance_margin, reason, positions, shortfall, occurred_at
    from liquidations
    where (%(account_id)s::bigint is null or account_id = %(account_id)s)
        and (%(before_at)s::timestamptz is null or (occurred_at, id) < (%(before_at)s, %(before_id)s::bigint))
    order by occurred_at desc, id desc
    limit %(limit)s
"""
_ACCOUNTS = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where account_id > %(after)s
    order by account_id
    limit %(limit)s
"""
_LEDGER_SUMS = """
    select ledger_account, sum(amount) as amount
    from ledger_lines
    where ledger_account = any(%(ledger_accounts)s::text[])
    group by ledger_account
"""
_RESULT = """
    select event_id, request_hash, body -> 'result' as result
    from events
    where account_id = %(account_id)s and key = %(key)s
"""
_ACCOUNT = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where account_id = %(account_id)s
"""
_LIVE_KEYS = """
    select key, event_id, request_hash, body -> 'result' as result,
        extract(epoch from occurred_at + make_interval(secs => %(ttl_s)s) - now())::float8 as ttl_s
    from events
    where account_id = %(account_id)s and occurred_at > now() - make_interval(secs => %(ttl_s)s)
    order by occurred_at desc
    limit %(limit)s
"""
LIVE_KEYS_MAX = 1000
"""Those that a client is likely to repeat; one beyond is recalled from history when it comes."""


class PostgresClient:
    """Implements `margin.ports.History`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)
        self._idempotency_ttl_s = settings.idempotency_ttl_s

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def reserve(self) -> AsyncIterator[PostgresWriter]:
        """Take a connection, to be sure of it before anything is written elsewhere.

        Raises
        ------
        PostgresUnavailableError
        """
        async with self._pool.lease() as lease:
            yield PostgresWriter(lease, idempotency_ttl_s=self._idempotency_ttl_s)

    async def account_exists(self, account_id: int) -> bool:
        """Whether any event of the account is in history."""
        return bool(await self._pool.query("select 1 as found from accounts where account_id = %s", [account_id]))

    async def trades(self, query: TradeQuery) -> list[dict[str, Any]]:
        """Trades of one account, newest first."""
        rows = await self._pool.query(
            _TRADES,
            {
                "account_id": query.account_id,
                "symbol": query.symbol,
                "since": _moment(query.since_us),
                "until": _moment(query.until_us),
                "before_id": query.before_id,
                "limit": query.limit,
            },
        )
        return [_with_timestamp(row) for row in rows]

    async def liquidations(self, query: LiquidationQuery) -> list[dict[str, Any]]:
        """Liquidations, newest first."""
        before_us, before_id = query.before if query.before is not None else (None, None)
        rows = await self._pool.query(
            _LIQUIDATIONS,
            {
                "account_id": query.account_id,
                "before_at": _moment(before_us),
                "before_id": before_id,
                "limit": query.limit,
            },
        )
        return [_with_timestamp(row) for row in rows]

    async def accounts(self, after_account_id: int, limit: int) -> list[HistoryAccount]:
        """State after the last event of some accounts, in order of their ids."""
        rows = await self._pool.query(_ACCOUNTS, {"after": after_account_id, "limit": limit})
        return [_history_account(row) for row in rows]

    async def next_epoch(self) -> int:
        """Take a new epoch."""
        rows = await self._pool.query("select nextval('epochs') as epoch")
        return int(rows[0]["epoch"])

    @contextlib.asynccontextmanager
    async def opening_lock(self) -> AsyncIterator[bool]:
        """Hold the right to open partitions for as long as the context lasts; False when another holds it."""
        async with self._pool.lease() as lease:
            rows = await lease.fetch("select pg_try_advisory_lock(%s) as taken", [_OPENING_LOCK])
            taken = bool(rows[0]["taken"])
            try:
                yield taken
            finally:
                # The lock is the session's: it goes with the connection, whatever state that is in.
                lease.discard()

    async def ledger_sums(self, ledger_accounts: Sequence[LedgerAccount]) -> dict[LedgerAccount, Decimal]:
        """Sum of each of some ledger accounts over all accounts; all of them together are zero."""
        rows = await self._pool.query(_LEDGER_SUMS, {"ledger_accounts": [str(name) for name in ledger_accounts]})
        return {LedgerAccount(row["ledger_account"]): row["amount"] for row in rows}

    async def check(self) -> None:
        """Raise when PostgreSQL cannot be used or has no schema.

        Raises
        ------
        PostgresUnavailableError
        """
        (state,) = await self._pool.query(
            "select to_regclass('epochs') is not null as migrated,"
            " current_setting('transaction_read_only') as read_only"
        )
        if not state["migrated"]:
            message = "PostgreSQL has no schema of the engine; run the migrations."
            raise PostgresUnavailableError(message)
        if state["read_only"] == "on":
            message = "PostgreSQL is read-only."
            raise PostgresUnavailableError(message)


class PostgresWriter:
    """Implements `margin.ports.HistoryWriter` on one reserved connection."""

    def __init__(self, lease: Lease, *, idempotency_ttl_s: int) -> None:
        self._lease = lease
        self._idempotency_ttl_s = idempotency_ttl_s

    async def account(self, account_id: int) -> HistoryAccount | None:
        """State after the last event of one account; None when history does not know it."""
        rows = await self._lease.fetch(_ACCOUNT, {"account_id": account_id})
        return next((_history_account(row) for row in rows), None)

    async def live_keys(self, account_id: int) -> list[HistoryKey]:
        """Idempotency keys of an account that Redis should still know, the newest if there are very many."""
        parameters = {"account_id": account_id, "ttl_s": self._idempotency_ttl_s, "limit": LIVE_KEYS_MAX}
        return [
            HistoryKey(row["key"], row["event_id"], row["request_hash"], canonical(row["result"]), row["ttl_s"])
            for row in await self._lease.fetch(_LIVE_KEYS, parameters)
        ]

    async def result(self, account_id: int, key: str) -> StoredResult | None:
        """Recall what an idempotency key did, however long ago; None when it did nothing."""
        for row in await self._lease.fetch(_RESULT, {"account_id": account_id, "key": key}):
            return StoredResult(row["event_id"], row["request_hash"], canonical(row["result"]))
        return None

    async def append(self, events: Sequence[StoredEvent]) -> dict[int, Appended]:
        """Store events of any accounts; those of one account must be in order and without a hole.

        One round trip when all are new. What the statement left alone is looked at a second time: stored already by
        another (the rest is then stored), or a fork, or behind a gap.

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
            taken = await self._insert([link for chain in links.values() for link in chain])
        except _RejectedError:
            taken = set()
        return {
            account_id: Appended(tuple(link.event.event_id for link in chain))
            if account_id in taken
            else await self._second_look(chain)
            for account_id, chain in links.items()
        }

    async def _insert(self, links: Sequence[_Link]) -> set[int]:
        """Accounts whose events were stored by this very statement; none when one of the keys is in history already."""
        parameters = {
            "event_ids": [link.event.event_id for link in links],
            "hashes": [link.hash for link in links],
            "bodies": [link.event.body for link in links],
        }
        try:
            rows = await self._lease.fetch(_APPEND, parameters)
        except psycopg.errors.UniqueViolation:
            return set()
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise _RejectedError from error
        return {row["account_id"] for row in rows}

    async def _second_look(self, chain: Sequence[_Link]) -> Appended:
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
                while rest and seen[rest[0].n].holds(rest[0]):
                    stored.append(rest.pop(0).event.event_id)
                if not rest:
                    break
                first = rest[0]
                if seen[first.n].stands_in_the_way_of(first):
                    key_used_by = None if seen[first.n].key_id is None else first.event.event_id
                    return Appended(tuple(stored), forked=True, key_used_by=key_used_by)
                if seen[first.n].head_n < first.n - 1:
                    return Appended(tuple(stored), gap=True)
                if first.account_id in await self._insert(rest[:at_once]):
                    stored += [link.event.event_id for link in rest[:at_once]]
                    rest = rest[at_once:]
                    if not rest:
                        break
                    continue
            except _RejectedError:
                if at_once == 1 or len(rest) == 1:
                    return Appended(tuple(stored), rejected=True)
            # One at a time from here on, so that what stands before an event that is refused is kept.
            at_once = 1
        return Appended(tuple(stored))

    async def _look(self, chain: Sequence[_Link]) -> dict[int, _Place]:
        parameters = {
            "account_ids": [link.account_id for link in chain],
            "ns": [link.n for link in chain],
            "keys": [link.key for link in chain],
        }
        try:
            rows = await self._lease.fetch(_SECOND_LOOK, parameters)
        except psycopg.DataError as error:
            raise _RejectedError from error
        return {
            row["n"]: _Place(
                present_id=row["present_id"],
                present_hash=row["present_hash"],
                key_id=row["key_id"],
                head_n=row["head_n"] or 0,
                head_id=row["head_id"] or 0,
                head_hash=row["head_hash"] or "",
            )
            for row in rows
        }


class _RejectedError(Exception):
    """PostgreSQL refuses an event as it is, whoever tries again."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Link:
    """An event with what its place in the chain is."""

    event: StoredEvent
    account_id: int
    n: int
    previous_event_id: int
    previous_hash: str
    key: str
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
            hash=digest(event.body),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """What history holds where an event wants to go: the event there, the event of its key, the last event."""

    present_id: int | None
    present_hash: str | None
    key_id: int | None
    head_n: int
    head_id: int
    head_hash: str

    def holds(self, link: _Link) -> bool:
        """Whether the very event is there already."""
        return self.present_id == link.event.event_id and self.present_hash == link.hash

    def stands_in_the_way_of(self, link: _Link) -> bool:
        """Whether the event can never be stored: its place, its key or its predecessor is another event's."""
        if self.present_id is not None or self.key_id is not None:
            return not self.holds(link)
        predecessor = (link.previous_event_id, link.previous_hash)
        return self.head_n == link.n - 1 and (self.head_id, self.head_hash) != predecessor


def _moment(microseconds: int | None) -> dt.datetime | None:
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def _with_timestamp(row: Row) -> dict[str, Any]:
    occurred_at = row.pop("occurred_at")
    return {**row, "timestamp_us": (occurred_at - _EPOCH) // _MICROSECOND}


def _history_account(row: Row) -> HistoryAccount:
    positions = {
        symbol: Position(symbol, Decimal(fields["quantity"]), Decimal(fields["entry_cost"]))
        for symbol, fields in row["positions"].items()
    }
    account = Account(row["account_id"], row["balance"], positions)
    return HistoryAccount(version_of(row["n"], row["event_id"]), row["chain_hash"], account)
