"""Instruments in PostgreSQL: every version of the rules of every symbol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg

from margin.clients.postgres_pool import PostgresPool, Row
from margin.domain.instrument_terms import instrument_of, terms_of
from margin.errors import LimitExceededError, OutcomeUnknownError, PostgresUnavailableError
from margin.ports.instruments import SYMBOLS_MAX, ConfiguredInstrument, InstrumentChange

if TYPE_CHECKING:
    from margin.caller import Caller
    from margin.config import Settings
    from margin.domain.instrument import Instrument

_FIELDS = """
    version, terms, subject, (extract(epoch from changed_at) * 1000000)::bigint as changed_at_us,
    (extract(epoch from effective_at) * 1000000)::bigint as effective_at_us
"""
# Two that write at the same time are told apart by the primary key.
_RECORD = f"""
    with present as (
        select coalesce(max(version), 0) as last, coalesce(bool_or(effective_at is null), false) as under_way
        from instruments where symbol = %(symbol)s
    ), others as (
        select count(distinct symbol) as symbols from instruments where symbol <> %(symbol)s
    ), written as (
        insert into instruments (symbol, version, terms, subject, source_ip)
        select %(symbol)s::text, %(version)s::bigint, %(terms)s::jsonb, %(subject)s::text, %(source_ip)s::text
        from present, others
        where last = %(after)s and not under_way and symbols < %(symbols_max)s
        returning {_FIELDS}
    )
    select others.symbols, written.* from others left join written on true
"""  # noqa: S608 - the text is this module's own
_CONFIGURED = f"""
    select symbol, {_FIELDS}
    from instruments as one
    where {{wanted}} and (
        effective_at is null
        or version = (
            select max(version) from instruments as other
            where other.symbol = one.symbol and other.effective_at is not null
        )
    )
    order by symbol, version
"""  # noqa: S608
_ONE = _CONFIGURED.format(wanted="symbol = %(symbol)s")
_PAGE = _CONFIGURED.format(
    wanted="""symbol in (
        select distinct symbol from instruments where symbol > %(after)s order by symbol limit %(limit)s
    )"""
)
_SET_EFFECTIVE = """
    update instruments set effective_at = now()
    where symbol = %(symbol)s and version = %(version)s and effective_at is null
"""


class InstrumentPostgresClient:
    """Implements `margin.ports.instruments.InstrumentHistory`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    async def configured(self, symbol: str) -> ConfiguredInstrument:
        """Read the rules of one symbol, configured or not.

        Raises
        ------
        PostgresUnavailableError
        """
        return _configured(symbol, await self._pool.query(_ONE, {"symbol": symbol}))

    async def page(self, after_symbol: str, limit: int) -> list[ConfiguredInstrument]:
        """Read the rules of configured symbols, by symbol.

        Raises
        ------
        PostgresUnavailableError
        """
        by_symbol: dict[str, list[Row]] = {}
        for row in await self._pool.query(_PAGE, {"after": after_symbol, "limit": limit}):
            by_symbol.setdefault(row["symbol"], []).append(row)
        return [_configured(symbol, rows) for symbol, rows in by_symbol.items()]

    async def record(self, instrument: Instrument, after_version: int, caller: Caller) -> InstrumentChange | None:
        """Write a version down; None where another was quicker, or an earlier version is still under way.

        Raises
        ------
        LimitExceededError
            There would be more than 1000 symbols.
        PostgresUnavailableError
            Nothing was written.
        OutcomeUnknownError
            It may have been.
        """
        parameters = {
            "symbol": instrument.symbol,
            "version": instrument.version,
            "after": after_version,
            "terms": json.dumps(terms_of(instrument)),
            "symbols_max": SYMBOLS_MAX,
            "subject": caller.subject,
            "source_ip": caller.source_ip,
        }
        async with self._pool.lease() as lease:
            try:
                (row,) = await lease.fetch(_RECORD, parameters)
            except psycopg.errors.UniqueViolation:
                return None
            except PostgresUnavailableError as error:
                message = (
                    "PostgreSQL did not say whether the change was written down; if it was, it takes effect within"
                    " minutes. Send the terms again: that does no harm."
                )
                raise OutcomeUnknownError(message) from error
        if row["symbols"] >= SYMBOLS_MAX:
            message = f"There are {SYMBOLS_MAX} configured symbols already; that is the most."
            raise LimitExceededError(message)
        return None if row["version"] is None else _change(row)

    async def set_effective(self, symbol: str, version: int) -> None:
        """Note that a version is in force everywhere.

        Raises
        ------
        PostgresUnavailableError
        """
        await self._pool.query(_SET_EFFECTIVE, {"symbol": symbol, "version": version})


def _configured(symbol: str, rows: list[Row]) -> ConfiguredInstrument:
    changes = [_change(row) for row in rows]
    return ConfiguredInstrument(
        symbol,
        next((change for change in changes if change.effective_at_us is not None), None),
        next((change for change in changes if change.effective_at_us is None), None),
    )


def _change(row: Row) -> InstrumentChange:
    return InstrumentChange(
        instrument_of(row["terms"]), row["subject"], int(row["changed_at_us"]), row["effective_at_us"]
    )
