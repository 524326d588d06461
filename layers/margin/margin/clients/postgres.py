"""History in PostgreSQL: accounts, keys, trades, liquidations, the ledger, openings, last mark prices."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.event_append import EventAppend
from margin.clients.postgres_pool import Lease, PostgresPool, Row
from margin.config import HISTORY_DRAIN
from margin.domain.account import Account
from margin.domain.event import StoredEvent, canonical, version_of
from margin.domain.ledger import LedgerAccount
from margin.domain.market import Mark
from margin.domain.position import Position
from margin.errors import MarginError, PostgresUnavailableError
from margin.ports import StoredResult
from margin.ports.history import Appended, HistoryAccount, HistoryKey, ReadAt, RememberedKey
from margin.ports.queries import LiquidationPage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from margin.caller import Caller
    from margin.config import Settings
    from margin.ports.opening import OpeningRecord
    from margin.ports.queries import LiquidationQuery, MarkSampleQuery, TradeQuery


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_OPENING_LOCK = 7_305_461_209
"""Advisory lock of the one that opens partitions; any constant does."""

# What the table has no columns for is in the event; one from before these fields says nothing of them.
_TRADES = """
    select page.*,
        coalesce((detail ->> 'reduce_only')::boolean, false) as reduce_only,
        coalesce(detail ->> 'liquidity', 'TAKER') as liquidity,
        detail ->> 'client_order_id' as client_order_id
    from (
        select id, account_id, symbol, side, quantity, price, notional, realised_pnl, fee, occurred_at
        from trades
        where account_id = %(account_id)s
            and (%(symbol)s::text is null or symbol = %(symbol)s)
            and (%(since)s::timestamptz is null or occurred_at >= %(since)s)
            and (%(until)s::timestamptz is null or occurred_at < %(until)s)
            and (%(before_id)s::bigint is null or id < %(before_id)s)
        order by id desc
        limit %(limit)s
    ) as page
    left join lateral (
        select events.body -> 'detail' as detail
        from events
        where events.account_id = page.account_id and events.event_id = page.id
        limit 1
    ) as event on true
    order by page.id desc
"""
# Record by record, so that none is read which the page has no room for: one can be a thousand times as long as another.
_LIQUIDATIONS = """
    with recursive newest as materialized (
        select *, row_number() over (order by occurred_at desc, id desc) as number
        from (
            select id, account_id, equity, maintenance_margin, reason, positions, shortfall, occurred_at
            from liquidations
            where (%(account_id)s::bigint is null or account_id = %(account_id)s)
                and (%(before_at)s::timestamptz is null or (occurred_at, id) < (%(before_at)s, %(before_id)s::bigint))
            order by occurred_at desc, id desc
            limit %(limit)s + 1
        ) as one_beyond
    ), records as (
        select 0::bigint as number, 0::bigint as bytes, null::jsonb as record
        union all
        select newest.number, records.bytes + coalesce(octet_length(detail.record::text), 0), detail.record
        from records
        join newest on newest.number = records.number + 1 and newest.number <= %(limit)s
        left join lateral (
            select events.body -> 'detail' as record
            from events
            where events.account_id = newest.account_id and events.event_id = newest.id
        ) as detail on true
        where records.bytes <= %(bytes_max)s
    )
    select id, account_id, equity, maintenance_margin, reason, positions, shortfall, occurred_at, record,
        (select count(*) from newest) as found
    from records join newest using (number)
    where records.bytes <= %(bytes_max)s or number = 1
    order by number
"""
_ACCOUNTS = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where account_id > %(after)s and mod(account_id, %(partitions)s) = %(partition)s
    order by account_id
    limit %(limit)s
"""
_RECENT_ACCOUNTS = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where changed_at > now() - make_interval(secs => %(since_s)s)
    order by changed_at desc
    limit %(limit)s
"""
# A sample that is there already is of the very same price: a stamp is given once. Nothing is swallowed that differs.
_SAVE_MARKS = """
    with given as (
        select *
        from unnest(
            %(symbols)s::text[], %(prices)s::numeric[], %(stamps)s::bigint[], %(sources)s::text[],
            %(subjects)s::text[], %(source_ips)s::text[]
        ) as given (symbol, price, stamp_us, source, subject, source_ip)
        order by symbol
    ), sampled as (
        insert into mark_price_samples (symbol, at, price, source, subject, source_ip)
        select symbol, timestamptz 'epoch' + stamp_us * interval '1 microsecond', price, source, subject, source_ip
        from given
        where not exists (
            select
            from (
                select samples.price, samples.source, samples.subject, samples.source_ip
                from mark_price_samples as samples
                where samples.symbol = given.symbol
                    and samples.at < timestamptz 'epoch' + given.stamp_us * interval '1 microsecond'
                order by samples.at desc
                limit 1
            ) as last
            where last.price = given.price and (last.source, last.subject, last.source_ip)
                is not distinct from (given.source, given.subject, given.source_ip)
        )
        on conflict (symbol, at) do nothing
    )
    insert into mark_prices (symbol, price, stamp_us)
    select symbol, price, stamp_us
    from given
    on conflict (symbol) do update set price = excluded.price, stamp_us = excluded.stamp_us
    where mark_prices.stamp_us < excluded.stamp_us
"""
# Two that clean up at once take different rows instead of waiting for each other. Redis' clock may be ahead: what
# PostgreSQL refuses to delete, because it is not a day old, is left for later.
_FORGET_SAMPLES = """
    delete from mark_price_samples
    where (symbol, at) in (
        select symbol, at
        from mark_price_samples
        where at < least(%(before)s::timestamptz, now() - interval '1 day')
        order by at
        limit %(limit)s
        for update skip locked
    )
    returning symbol
"""
_SAMPLES = """
    select symbol, price, source, at as occurred_at
    from mark_price_samples
    where symbol = %(symbol)s
        and (%(since)s::timestamptz is null or at >= %(since)s)
        and (%(until)s::timestamptz is null or at < %(until)s)
        and (%(before)s::timestamptz is null or at < %(before)s)
    order by at desc
    limit %(limit)s
"""
_RECORD_OPENING = """
    insert into openings (epoch, partition, partitions, run_id, accounts, loaded, subject, source_ip)
    values (
        %(epoch)s, %(partition)s, %(partitions)s, %(run_id)s, %(accounts)s, %(loaded)s, %(subject)s::text,
        %(source_ip)s::text
    )
"""
_RECORD_REBUILD = """
    insert into account_rebuilds (account_id, dropped, restored, subject, source_ip)
    values (%(account_id)s, %(dropped)s, %(restored)s, %(subject)s::text, %(source_ip)s::text)
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
    where account_id = %(account_id)s and key = %(key)s and acknowledged_by = 'history'
"""
_ACCOUNT = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where account_id = %(account_id)s
"""
_KNOWN_KEYS = """
    select account_id, key, event_id
    from events join unnest(%(account_ids)s::bigint[], %(keys)s::text[], %(event_ids)s::bigint[])
        as wanted (account_id, key, event_id) using (account_id, event_id, key)
"""
_LIVE_KEYS = """
    select live.*
    from unnest(%(account_ids)s::bigint[]) as wanted (account_id)
    cross join lateral (
        select account_id, key, event_id, request_hash, body -> 'result' as result,
            extract(epoch from occurred_at + make_interval(secs => %(ttl_s)s) - now())::float8 as ttl_s
        from events
        where events.account_id = wanted.account_id and occurred_at > now() - make_interval(secs => %(ttl_s)s)
        order by occurred_at desc, n desc
        limit %(limit)s
    ) as live
"""
_OLDER_KEYS = """
    select account_id, key, event_id, request_hash, body -> 'result' as result,
        extract(epoch from occurred_at + make_interval(secs => %(ttl_s)s) - now())::float8 as ttl_s
    from events
    where account_id = %(account_id)s and occurred_at > now() - make_interval(secs => %(ttl_s)s)
        and (occurred_at, n) < (
            select before.occurred_at, before.n from events as before
            where before.account_id = %(account_id)s and before.event_id = %(before_event_id)s
        )
        and (acknowledged_by = 'redis' or not %(recalled)s)
    order by occurred_at desc, n desc
    limit %(limit)s
"""
LIVE_KEYS_MAX = 1000
"""Those that a client is likely to repeat. One beyond is recalled from history when it comes, but where Redis alone
acknowledges: nobody asks history there, and it takes such a key again. Those are all put back, as many at once."""


class PostgresClient:
    """Implements `margin.ports.history.History`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)
        self._idempotency_ttl_s = settings.idempotency_ttl_s
        self._recalls = settings.history != HISTORY_DRAIN

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
            yield PostgresWriter(lease, idempotency_ttl_s=self._idempotency_ttl_s, recalls=self._recalls)

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

    async def liquidations(self, query: LiquidationQuery) -> LiquidationPage:
        """Liquidations, newest first, each with the record of its event."""
        before_us, before_id = query.before if query.before is not None else (None, None)
        rows = await self._pool.query(
            _LIQUIDATIONS,
            {
                "account_id": query.account_id,
                "before_at": _moment(before_us),
                "before_id": before_id,
                "limit": query.limit,
                "bytes_max": query.bytes_max,
            },
        )
        more = bool(rows) and rows[0]["found"] > len(rows)
        for row in rows:
            del row["found"]
        return LiquidationPage([_with_timestamp(row) for row in rows], more)

    async def accounts(
        self, after_account_id: int, limit: int, *, partition: int = 0, partitions: int = 1
    ) -> list[HistoryAccount]:
        """State after the last event of some accounts of a partition, in order of their ids."""
        parameters = {"after": after_account_id, "limit": limit, "partition": partition, "partitions": partitions}
        return [_history_account(row) for row in await self._pool.query(_ACCOUNTS, parameters)]

    async def known_accounts(self, account_ids: Sequence[int]) -> set[int]:
        """Which of some accounts have an event in history."""
        query = "select account_id from accounts where account_id = any(%s::bigint[])"
        return {row["account_id"] for row in await self._pool.query(query, [list(account_ids)])}

    async def known_keys(self, keys: Sequence[RememberedKey]) -> set[RememberedKey]:
        """Which of some idempotency keys stand for the very event in history that Redis says."""
        parameters = {
            "account_ids": [key.account_id for key in keys],
            "keys": [key.key for key in keys],
            "event_ids": [key.event_id for key in keys],
        }
        rows = await self._pool.query(_KNOWN_KEYS, parameters) if keys else []
        return {RememberedKey(row["account_id"], row["key"], row["event_id"]) for row in rows}

    async def recent_accounts(self, since_s: float, limit: int) -> list[HistoryAccount]:
        """State of the accounts that changed in the last seconds, the latest first."""
        rows = await self._pool.query(_RECENT_ACCOUNTS, {"since_s": since_s, "limit": limit})
        return [_history_account(row) for row in rows]

    async def save_marks(self, marks: Mapping[str, Mark]) -> None:
        """Keep the last mark prices, where a later one that is kept already stays, and sample them all."""
        symbols = list(marks)
        await self._pool.query(
            _SAVE_MARKS,
            {
                "symbols": symbols,
                "prices": [marks[symbol].price for symbol in symbols],
                "stamps": [marks[symbol].stamp_us for symbol in symbols],
                "sources": [marks[symbol].source for symbol in symbols],
                "subjects": [marks[symbol].subject for symbol in symbols],
                "source_ips": [marks[symbol].source_ip for symbol in symbols],
            },
        )

    async def marks(self) -> dict[str, Mark]:
        """Mark prices that were kept last, by symbol; no more than Redis takes."""
        rows = await self._pool.query("select symbol, price, stamp_us from mark_prices order by symbol")
        return {row["symbol"]: Mark(row["price"], row["stamp_us"]) for row in rows}

    async def forget_mark_samples(self, before_us: int, limit: int) -> int:
        """Take the oldest mark prices that are from before a moment out of their history; how many."""
        return len(await self._pool.query(_FORGET_SAMPLES, {"before": _moment(before_us), "limit": limit}))

    async def mark_samples(self, query: MarkSampleQuery) -> list[dict[str, Any]]:
        """Mark prices that a symbol had, newest first."""
        rows = await self._pool.query(
            _SAMPLES,
            {
                "symbol": query.symbol,
                "since": _moment(query.since_us),
                "until": _moment(query.until_us),
                "before": _moment(query.before_us),
                "limit": query.limit,
            },
        )
        return [_with_timestamp(row) for row in rows]

    async def next_epoch(self) -> int:
        """Take a new epoch."""
        rows = await self._pool.query("select nextval('epochs') as epoch")
        return int(rows[0]["epoch"])

    async def raise_fence(self, partition: int, partitions: int, epoch: int) -> int:
        """Take no event any more that was read from a partition under an earlier epoch; answers the fence's epoch.

        Waits for the appends under way: what history holds afterwards is all that it will get from before.
        """
        rows = await self._pool.query("select raise_fence(%s, %s, %s) as epoch", [partition, partitions, epoch])
        return int(rows[0]["epoch"])

    async def record_opening(self, record: OpeningRecord) -> None:
        """Remember that a partition was opened."""
        await self._pool.query(_RECORD_OPENING, dataclasses.asdict(record))

    async def record_rebuild(self, account_id: int, dropped: str, restored: str, caller: Caller) -> None:
        """Remember that an account in Redis was made anew: the version that was there, the one that is, and for whom.

        Raises
        ------
        PostgresUnavailableError
        """
        parameters = {
            "account_id": account_id,
            "dropped": dropped,
            "restored": restored,
            "subject": caller.subject,
            "source_ip": caller.source_ip,
        }
        await self._pool.query(_RECORD_REBUILD, parameters)

    async def opening_basis(self, partition: int, partitions: int) -> int:
        """Epoch of the last opening of a partition, or of any in another number of partitions; 0 before the first."""
        query = "select max(epoch) as epoch from openings where partition = %s or partitions <> %s"
        rows = await self._pool.query(query, [partition, partitions])
        return int(rows[0]["epoch"] or 0)

    async def last_partitions(self) -> int | None:
        """Into how many partitions Redis was divided at the last opening; None before the first."""
        rows = await self._pool.query("select partitions from openings order by epoch desc, partition desc limit 1")
        return int(rows[0]["partitions"]) if rows else None

    @contextlib.asynccontextmanager
    async def opening_lock(self) -> AsyncIterator[bool]:
        """Hold the right to open partitions for as long as the context lasts; False when another holds it."""
        async with self._pool.lease() as lease:
            rows = await lease.fetch("select pg_try_advisory_lock(%s) as taken", [_OPENING_LOCK])
            taken, answers = bool(rows[0]["taken"]), False
            try:
                yield taken
                answers = True
            except MarginError as error:
                answers = not isinstance(error, PostgresUnavailableError)
                raise
            finally:
                if taken and answers:
                    # A server takes its time to notice that a session has ended, and whoever goes on comes at once.
                    with contextlib.suppress(PostgresUnavailableError):
                        await lease.fetch("select pg_advisory_unlock(%s)", [_OPENING_LOCK])
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
    """Implements `margin.ports.history.HistoryWriter` on one reserved connection."""

    def __init__(self, lease: Lease, *, idempotency_ttl_s: int, recalls: bool = True) -> None:
        self._lease = lease
        self._recalls = recalls
        self._idempotency_ttl_s = idempotency_ttl_s

    async def account(self, account_id: int) -> HistoryAccount | None:
        """State after the last event of one account; None when history does not know it."""
        rows = await self._lease.fetch(_ACCOUNT, {"account_id": account_id})
        return next((_history_account(row) for row in rows), None)

    async def live_keys(self, account_ids: Sequence[int]) -> dict[int, list[HistoryKey]]:
        """Idempotency keys that Redis should still know, by account, oldest first; of very many the newest."""
        if not account_ids:
            return {}
        parameters = {"account_ids": list(account_ids), "ttl_s": self._idempotency_ttl_s, "limit": LIVE_KEYS_MAX}
        keys: dict[int, list[HistoryKey]] = defaultdict(list)
        for row in reversed(await self._lease.fetch(_LIVE_KEYS, parameters)):
            keys[row["account_id"]].append(_history_key(row))
        return keys

    @property
    def live_keys_max(self) -> int:
        """How many live keys of one account are read at most."""
        return LIVE_KEYS_MAX

    async def older_keys(self, account_id: int, before_event_id: int) -> list[HistoryKey]:
        """Live keys of events before this one, newest first, `live_keys_max` at most; no end but an empty answer.

        Only those that nobody would recall: where requests are acknowledged by history, these are the keys of events
        that Redis alone acknowledged before.
        """
        parameters = {
            "account_id": account_id,
            "before_event_id": before_event_id,
            "ttl_s": self._idempotency_ttl_s,
            "recalled": self._recalls,
            "limit": LIVE_KEYS_MAX,
        }
        return [_history_key(row) for row in await self._lease.fetch(_OLDER_KEYS, parameters)]

    async def has_event(self, account_id: int, event_id: int, event_hash: str) -> bool:
        """Whether history has this very event of an account."""
        query = "select 1 as found from events where account_id = %s and event_id = %s and hash = %s"
        return bool(await self._lease.fetch(query, [account_id, event_id, event_hash]))

    async def result(self, account_id: int, key: str) -> StoredResult | None:
        """Recall what an idempotency key did, however long ago; None when it did nothing."""
        for row in await self._lease.fetch(_RESULT, {"account_id": account_id, "key": key}):
            return StoredResult(row["event_id"], row["request_hash"], canonical(row["result"]))
        return None

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        """Store events of accounts of one partition; see `margin.clients.event_append`."""
        return await EventAppend(self._lease).append(events, read_at)


def _moment(microseconds: int | None) -> dt.datetime | None:
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def _with_timestamp(row: Row) -> dict[str, Any]:
    occurred_at = row.pop("occurred_at")
    return {**row, "timestamp_us": (occurred_at - _EPOCH) // _MICROSECOND}


def _history_key(row: Row) -> HistoryKey:
    return HistoryKey(row["key"], row["event_id"], row["request_hash"], canonical(row["result"]), row["ttl_s"])


def _history_account(row: Row) -> HistoryAccount:
    positions = {
        symbol: Position(
            symbol,
            Decimal(fields["quantity"]),
            Decimal(fields["entry_cost"]),
            Decimal(fields.get("entry_funding", "0")),
        )
        for symbol, fields in row["positions"].items()
    }
    account = Account(row["account_id"], row["balance"], positions)
    return HistoryAccount(version_of(row["n"], row["event_id"]), row["chain_hash"], account)
