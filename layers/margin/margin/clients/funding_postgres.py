"""Payments of funding in PostgreSQL, and what accounts received and paid of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.postgres_pool import PostgresPool, Row
from margin.errors import OutcomeUnknownError, PostgresUnavailableError
from margin.ports.funding import KnownFunding, RecordedFunding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.config import Settings
    from margin.ports.funding import FundingRate, PaymentQuery, RateQuery

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

_COLUMNS = """
    symbol, n, rate, mark_price, funding_index, key, request_hash, at_risk, applied_at is not null as applied,
    (extract(epoch from occurred_at) * 1000000)::bigint as occurred_us
"""
# The number and the key are unique: of two that come at the same time the second writes nothing, and looks again.
_RECORD = f"""
    insert into funding_rates
        (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash, subject, source_ip)
    select %(symbol)s, coalesce(last.n, 0) + 1, %(rate)s, %(mark_price)s, %(rise)s,
        coalesce(last.funding_index, 0) + %(rise)s, %(occurred_at)s, %(key)s, %(request_hash)s, %(subject)s::text,
        %(source_ip)s::text
    from (select 1) as one
    left join (
        select n, funding_index from funding_rates where symbol = %(symbol)s order by n desc limit 1
    ) as last on true
    on conflict do nothing
    returning {_COLUMNS}
"""  # noqa: S608 - constants of this module
_RECORDED = f"select {_COLUMNS} from funding_rates where symbol = %(symbol)s and key = %(key)s"  # noqa: S608
_APPLIED = """
    update funding_rates
    set applied_at = now(), at_risk = case when n = %(n)s then %(at_risk)s::bigint else at_risk end
    where symbol = %(symbol)s and n <= %(n)s and applied_at is null
"""
_WAITING = "select distinct symbol from funding_rates where applied_at is null order by symbol"
_KNOWN = """
    with recursive wanted as (
        {wanted}
    )
    select wanted.symbol, last.n, last.funding_index, present.n as since, (
            select funding_index from funding_rates as rate where rate.symbol = wanted.symbol and rate.n = present.n
        ) as index_then
    from wanted
    left join unnest(%(known)s::text[], %(numbers)s::bigint[]) as present (symbol, n) on present.symbol = wanted.symbol
    cross join lateral (
        select n, funding_index from funding_rates as rate where rate.symbol = wanted.symbol order by n desc limit 1
    ) as last
"""
_KNOWN_OF_SOME = _KNOWN.format(wanted="select unnest(%(symbols)s::text[]) as symbol")
# From symbol to symbol: of each, only the last of its many payments is read.
_KNOWN_OF_ALL = _KNOWN.format(
    wanted="""
        (select symbol from funding_rates order by symbol limit 1)
        union all
        select (select rate.symbol from funding_rates as rate where rate.symbol > wanted.symbol order by 1 limit 1)
        from wanted
        where wanted.symbol is not null
    """
)
_PAYMENTS = """
    select event_id as id, place, payment ->> 'symbol' as symbol, (payment ->> 'quantity')::numeric as quantity,
        (payment ->> 'index')::numeric as funding_index, (payment ->> 'amount')::numeric as amount, occurred_at
    from events
    cross join lateral jsonb_array_elements(body -> 'funding') with ordinality as entry (payment, place)
    where account_id = %(account_id)s
        and body #> '{funding,0}' is not null
        and (%(before_id)s::bigint is null or event_id <= %(before_id)s)
        and (%(before_id)s::bigint is null or event_id < %(before_id)s or place > %(before_place)s::bigint)
        and (%(symbol)s::text is null or payment ->> 'symbol' = %(symbol)s)
        and (%(since)s::timestamptz is null or occurred_at >= %(since)s)
        and (%(until)s::timestamptz is null or occurred_at < %(until)s)
    order by event_id desc, place
    limit %(limit)s
"""
_RATES = """
    select symbol, n, rate, mark_price, funding_index, occurred_at, applied_at is not null as effective,
        (extract(epoch from recorded_at) * 1000000)::bigint as recorded_us
    from funding_rates
    where %(before_at)s::timestamptz is null
        or recorded_at <= %(before_at)s
            and (recorded_at < %(before_at)s
                or symbol > %(before_symbol)s
                or (symbol = %(before_symbol)s and n < %(before_n)s::bigint))
    order by recorded_at desc, symbol, n desc
    limit %(limit)s
"""
_RATES_OF_SYMBOL = """
    select symbol, n, rate, mark_price, funding_index, occurred_at, applied_at is not null as effective,
        (extract(epoch from recorded_at) * 1000000)::bigint as recorded_us
    from funding_rates
    where symbol = %(symbol)s and (%(before_n)s::bigint is null or n < %(before_n)s)
    order by n desc
    limit %(limit)s
"""


class FundingPostgresClient:
    """Implements `margin.ports.funding.FundingHistory`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    async def record(self, rate: FundingRate) -> tuple[RecordedFunding, bool] | None:
        """Write a payment down as the next one of its symbol, once for its key; whether it was there before.

        None, and nothing written, when another payment of the symbol was quicker.

        Raises
        ------
        PostgresUnavailableError
            Nothing was written.
        OutcomeUnknownError
            It may have been.
        """
        parameters = dataclasses.asdict(rate)
        parameters["occurred_at"] = _moment(parameters.pop("occurred_us"))
        async with self._pool.lease() as lease:
            try:
                rows = await lease.fetch(_RECORD, parameters)
                if rows:
                    return _recorded(rows[0]), False
                rows = await lease.fetch(_RECORDED, {"symbol": rate.symbol, "key": rate.key})
            except PostgresUnavailableError as error:
                message = (
                    "PostgreSQL did not say whether the payment was written down; if it was, it takes effect within"
                    f" minutes. Retry it with Idempotency-Key: {rate.key}"
                )
                raise OutcomeUnknownError(message) from error
        return (_recorded(rows[0]), True) if rows else None

    async def recorded(self, symbol: str, key: str) -> RecordedFunding | None:
        """Recall what a key stands for.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_RECORDED, {"symbol": symbol, "key": key})
        return next(map(_recorded, rows), None)

    async def applied(self, symbol: str, n: int, at_risk: int) -> None:
        """Remember that all payments up to one are in every partition, and how many accounts the last one crossed.

        Raises
        ------
        PostgresUnavailableError
        """
        await self._pool.query(_APPLIED, {"symbol": symbol, "n": n, "at_risk": at_risk})

    async def waiting(self) -> list[str]:
        """Name the symbols with payments that are not known to be in every partition.

        Raises
        ------
        PostgresUnavailableError
        """
        return [row["symbol"] for row in await self._pool.query(_WAITING)]

    async def known(self, present: Mapping[str, int], symbols: Sequence[str] | None = None) -> dict[str, KnownFunding]:
        """Tell, by symbol, what history knows of some symbols, or of all.

        Parameters
        ----------
        present : mapping of str to int
            The number of a payment by symbol: the answer says what the index was after it.
        symbols : sequence of str, optional
            Of which symbols; of all without. Those without any payment are left out.

        Raises
        ------
        PostgresUnavailableError
        """
        parameters = {"known": list(present), "numbers": list(present.values()), "symbols": list(symbols or ())}
        rows = await self._pool.query(_KNOWN_OF_ALL if symbols is None else _KNOWN_OF_SOME, parameters)
        return {row["symbol"]: _known(row) for row in rows}

    async def payments(self, query: PaymentQuery) -> list[dict[str, Any]]:
        """Read what an account received and paid, newest first.

        Raises
        ------
        PostgresUnavailableError
        """
        before_id, before_place = query.before if query.before is not None else (None, None)
        rows = await self._pool.query(
            _PAYMENTS,
            {
                "account_id": query.account_id,
                "symbol": query.symbol,
                "since": _moment(query.since_us),
                "until": _moment(query.until_us),
                "before_id": before_id,
                "before_place": before_place,
                "limit": query.limit,
            },
        )
        return [_with_timestamp(row) for row in rows]

    async def rates(self, query: RateQuery) -> list[dict[str, Any]]:
        """Read recorded payments, newest first.

        Raises
        ------
        PostgresUnavailableError
        """
        before_us, before_symbol, before_n = query.before if query.before is not None else (None, None, None)
        parameters = {
            "symbol": query.symbol,
            "before_at": _moment(before_us),
            "before_symbol": before_symbol,
            "before_n": before_n,
            "limit": query.limit,
        }
        rows = await self._pool.query(_RATES if query.symbol is None else _RATES_OF_SYMBOL, parameters)
        return [_with_timestamp(row) for row in rows]


def _moment(microseconds: int | None) -> dt.datetime | None:
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def _with_timestamp(row: Row) -> dict[str, Any]:
    occurred_at = row.pop("occurred_at")
    return {**row, "timestamp_us": (occurred_at - _EPOCH) // _MICROSECOND}


def _recorded(row: Row) -> RecordedFunding:
    return RecordedFunding(**row)


def _known(row: Row) -> KnownFunding:
    return KnownFunding(row["n"], row["funding_index"], row["index_then"] if row["since"] else Decimal(0))
