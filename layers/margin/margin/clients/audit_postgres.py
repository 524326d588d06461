"""History as it is, for the reconciling: whole chains, and what is derived from them. Statements only read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from margin.clients.postgres_pool import PostgresPool, Row
from margin.domain.chain import Link
from margin.ports.audit import AuditedAccount, AuditedEvent, AuditedSettlement, LedgerPage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from margin.config import Settings

_ACCOUNTS = """
    select account_id, n
    from accounts
    where account_id > %(after)s and account_id <= %(last)s
    order by account_id
    limit %(limit)s
"""
_COLUMNS = ("type", "key", "request_hash", "subject", "source_ip", "acknowledged_by", "at_us")
# One statement, so that the row and the numbers are of one moment.
_ROWS = """
    select account_id, n, event_id, chain_hash, balance, positions::text as positions,
        (select count(*) from events where events.account_id = accounts.account_id) as events,
        (select count(*) from ledger_lines where ledger_lines.account_id = accounts.account_id) as ledger_lines,
        (select count(*) from trades where trades.account_id = accounts.account_id) as trades,
        (select count(*) from liquidations where liquidations.account_id = accounts.account_id) as liquidations
    from accounts
    where account_id = any(%(account_ids)s::bigint[])
"""
_KNOWN = "select account_id from accounts where account_id = any(%(account_ids)s::bigint[])"
# The body as text: what the driver would make of a JSON that was tampered with is not for it to decide.
_EVENTS = """
    select account_id, n, event_id, previous_event_id, hash, type, key, request_hash, subject, source_ip,
        acknowledged_by, extract(epoch from occurred_at) * 1000000 as at_us, body::text as body,
        (
            select jsonb_agg(jsonb_build_array(line, ledger_account, amount::text) order by line)::text
            from ledger_lines
            where (ledger_lines.account_id, ledger_lines.event_id) = (events.account_id, events.event_id)
        ) as lines,
        (
            select jsonb_build_object(
                'symbol', symbol, 'side', side, 'quantity', quantity::text, 'price', price::text,
                'notional', notional::text, 'realised_pnl', realised_pnl::text, 'fee', fee::text,
                'at_us', (extract(epoch from trades.occurred_at) * 1000000)::text
            )::text
            from trades
            where (trades.account_id, trades.id) = (events.account_id, events.event_id)
        ) as trade,
        (
            select jsonb_build_object(
                'equity', equity::text, 'maintenance_margin', maintenance_margin::text, 'reason', reason,
                'positions', positions, 'shortfall', shortfall::text,
                'at_us', (extract(epoch from liquidations.occurred_at) * 1000000)::text
            )::text
            from liquidations
            where (liquidations.account_id, liquidations.id) = (events.account_id, events.event_id)
        ) as liquidation
    from events
    where (account_id, n) > (%(account_id)s, %(n)s) and account_id <= %(last_account_id)s
    order by account_id, n
    limit %(limit)s
"""
# An event's lines are stored in one transaction, so a page that ends between two of them is continued by the next one
# however many events others store meanwhile: no sum of pages counts half an event.
_LEDGER = """
    with page as (
        select account_id, event_id, line, amount
        from ledger_lines
        where (account_id, event_id, line) > (%(account_id)s, %(event_id)s, %(line)s)
        order by account_id, event_id, line
        limit %(limit)s
    )
    select sums.total, sums.lines, last.account_id, last.event_id, last.line
    from (
        select %(total)s::numeric + coalesce(sum(amount), 0) as total, count(*) as lines from page
    ) as sums
    left join (select * from page order by account_id desc, event_id desc, line desc limit 1) as last on true
"""

# Of a deleveraging the row is that of its own event; of a liquidation all steps that were planned for it.
_SETTLEMENTS = """
    with page as (
        select account_id, id, shortfall, reason
        from liquidations
        where (account_id, id) > (%(account_id)s, %(liquidation_id)s)
            and (shortfall > 0 or reason = 'AUTO_DELEVERAGING')
        order by account_id, id
        limit %(limit)s
    )
    select page.account_id, page.id as liquidation_id, shortfall, coalesce(payments.settled, 0) as settled,
        coalesce(payments.unplanned, 0) + (
            select count(*)
            from events
            where reason = 'AUTO_DELEVERAGING' and (events.account_id, events.event_id) = (page.account_id, page.id)
                and not exists (
                    select from settlement_outcomes as step
                    where (step.executed_on, step.after_n) = (events.account_id, events.n - 1)
                        and step.key = events.key and step.event_id = events.event_id
                )
        ) as unplanned,
        (
            select count(*)
            from settlement_outcomes as step
            where (step.account_id, step.liquidation_id) = (page.account_id, page.id) and outcome = 'executed'
                and not exists (
                    select from events
                    where (events.account_id, events.n) = (step.executed_on, step.after_n + 1)
                        and events.key = step.key and events.event_id = step.event_id
                        and events.body -> 'detail' ->> 'liquidation_id' = step.liquidation_id::text
                )
        ) as missing
    from page
    cross join lateral (
        select sum(paid.amount) as settled,
            count(*) filter (
                where not exists (
                    select from settlement_outcomes as step
                    where (step.executed_on, step.after_n) = (events.account_id, events.n - 1)
                        and step.key = events.key and step.event_id = events.event_id
                )
            ) as unplanned
        from events
        left join ledger_lines as paid
            on (paid.account_id, paid.event_id, paid.ledger_account)
                = (events.account_id, events.event_id, 'uncovered')
        where events.account_id = page.account_id and type = 'SETTLEMENT'
            and body -> 'detail' ->> 'liquidation_id' = page.id::text
    ) as payments
    order by page.account_id, page.id
"""


class AuditPostgresClient:
    """Implements `margin.ports.audit.HistoryAudit`; a user who may only read is enough."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    async def last_account(self) -> int:
        """Highest id of an account; 0 when there is none.

        Raises
        ------
        PostgresUnavailableError
        """
        (row,) = await self._pool.query("select coalesce(max(account_id), 0) as last from accounts")
        return int(row["last"])

    async def accounts(self, after_account_id: int, last_account_id: int, limit: int) -> dict[int, int]:
        """Numbers of the last events of some accounts, in order of the accounts' ids.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_ACCOUNTS, {"after": after_account_id, "last": last_account_id, "limit": limit})
        return {row["account_id"]: row["n"] for row in rows}

    async def rows(self, account_ids: Sequence[int]) -> dict[int, AuditedAccount]:
        """Rows of accounts with the numbers of what history has of them, all of one moment.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_ROWS, {"account_ids": list(account_ids)})
        return {row["account_id"]: AuditedAccount(**{**row, "positions": _json(row["positions"])}) for row in rows}

    async def known(self, account_ids: Sequence[int]) -> set[int]:
        """Those of some accounts that history knows.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_KNOWN, {"account_ids": list(account_ids)})
        return {row["account_id"] for row in rows}

    async def events(self, after: tuple[int, int], last_account_id: int, limit: int) -> list[AuditedEvent]:
        """Events behind a place, each with its ledger lines and its trade or liquidation.

        Raises
        ------
        PostgresUnavailableError
        """
        account_id, n = after
        parameters = {"account_id": account_id, "n": n, "last_account_id": last_account_id, "limit": limit}
        return [_audited_event(row) for row in await self._pool.query(_EVENTS, parameters)]

    async def settlements(self, after: tuple[int, int], limit: int) -> list[AuditedSettlement]:
        """Shortfalls and deleveragings behind a place (account id, liquidation id), in this order.

        Raises
        ------
        PostgresUnavailableError
        """
        parameters = {"account_id": after[0], "liquidation_id": after[1], "limit": limit}
        return [AuditedSettlement(**row) for row in await self._pool.query(_SETTLEMENTS, parameters)]

    async def ledger(self, after: tuple[int, int, int], total: Decimal, limit: int) -> LedgerPage:
        """Sum of ``total`` and the ledger lines behind a place, in the order of their primary key, exact.

        Raises
        ------
        PostgresUnavailableError
        """
        account_id, event_id, line = after
        place = {"account_id": account_id, "event_id": event_id, "line": line}
        parameters = {**place, "total": total, "limit": limit}
        (row,) = await self._pool.query(_LEDGER, parameters)
        last = (row["account_id"], row["event_id"], row["line"]) if row["lines"] == limit else None
        return LedgerPage(last, row["total"])


def _audited_event(row: Row) -> AuditedEvent:
    link = Link(
        account_id=row["account_id"],
        n=row["n"],
        event_id=row["event_id"],
        previous_event_id=row["previous_event_id"],
        hash=row["hash"],
        body=_json(row["body"]),
    )
    return AuditedEvent(
        link=link,
        columns={name: row[name] for name in _COLUMNS},
        lines=tuple((line, account, amount) for line, account, amount in _json(row["lines"] or "[]") or ()),
        trade=_json(row["trade"]) or {} if row["trade"] else None,
        liquidation=_json(row["liquidation"]) or {} if row["liquidation"] else None,
    )


def _json(text: str) -> Any:
    """Read a JSON text; None for one that PostgreSQL takes and Python does not: too deep, or a number too long."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
