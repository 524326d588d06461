"""History as it is, for the reconciling: whole chains, and what is derived from them. Statements only read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from margin.clients.postgres_pool import PostgresPool, Row
from margin.domain.chain import Link
from margin.domain.change_chain import Change, ChangeHead
from margin.errors import PostgresUnavailableError
from margin.ports.audit import (
    TABLES_OF_ACCOUNTS,
    AuditedAccount,
    AuditedChange,
    AuditedEvent,
    AuditedSettlement,
    AuditedStep,
    ChangeChain,
    LedgerPage,
)

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
        select account_id, id, shortfall, settled as is_noted, reason
        from liquidations
        where (account_id, id) > (%(account_id)s, %(liquidation_id)s)
            and (shortfall > 0 or reason = 'AUTO_DELEVERAGING')
        order by account_id, id
        limit %(limit)s
    )
    select page.account_id, page.id as liquidation_id, shortfall, coalesce(payments.settled, 0) as settled, is_noted,
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


# Limits that change nothing keep the planner from reading whole tables for each page.
_STEPS = """
    select step.id, step.account_id, step.liquidation_id, step.number, step.spent as is_spent,
        source.executed_on as source_account_id, source.event_id as source_event_id,
        event.previous_event_id, event.body::text as body,
        jsonb_build_object(
            'type', step.type, 'account_id', step.account_id::text, 'liquidation_id', step.liquidation_id::text,
            'number', step.number::text, 'after_event_id', step.after_event_id::text, 'amount', step.amount::text,
            'uncovered', step.uncovered::text, 'symbol', step.symbol, 'quantity', step.quantity::text,
            'liquidation_price', step.liquidation_price::text, 'bankruptcy_price', step.bankruptcy_price::text,
            'shared_notional', step.shared_notional::text, 'source_number', step.source_number::text
        )::text as columns,
        shortfall is not null as has_shortfall,
        step.type = 'DELEVERAGING' and (step.outcome is not distinct from 'void' or payment is not null) as was_paid_out
    from (
        select * from settlement_outcomes where id > %(after_id)s order by id limit %(limit)s
    ) as step
    left join lateral (
        select shortfall
        from liquidations
        where (account_id, id) = (step.account_id, step.liquidation_id) and shortfall > 0
        limit 1
    ) as liquidation on true
    left join lateral (
        select number as payment
        from settlement_outcomes
        where (account_id, liquidation_id) = (step.account_id, step.liquidation_id) and source_number = step.number
            and outcome = 'executed'
        limit 1
    ) as paid on true
    left join lateral (
        select executed_on, event_id
        from settlement_outcomes
        where (account_id, liquidation_id, number) = (step.account_id, step.liquidation_id, step.source_number)
        limit 1
    ) as source on true
    left join lateral (
        select previous_event_id, body
        from events
        where (account_id, n) = (step.executed_on, step.after_n + 1) and events.key = step.key
        limit 1
    ) as event on true
    order by step.id
"""


# Columns in the order in which they are hashed, a moment as microseconds; the first two are the chain's name and the
# place in it.
_CHAINED = {
    ChangeChain.CONTROLS: ("name", "id", "state", "reason", "subject", "source_ip", "changed_at"),
    ChangeChain.INSTRUMENTS: ("symbol", "version", "terms", "subject", "source_ip", "changed_at"),
    ChangeChain.FUNDING: (
        *("symbol", "n", "rate", "mark_price", "rise", "funding_index", "occurred_at", "recorded_at", "key"),
        *("request_hash", "subject", "source_ip"),
    ),
    ChangeChain.OPENINGS: (
        *("partition", "epoch", "partitions", "run_id", "accounts", "loaded", "opened_at", "subject", "source_ip"),
    ),
    ChangeChain.REBUILDS: ("account_id", "id", "dropped", "restored", "subject", "source_ip", "rebuilt_at"),
    ChangeChain.SCHEMA: ("name", "id", "revision", "subject", "source_ip", "applied_at"),
}
_NAME_TYPES = {ChangeChain.OPENINGS: "integer", ChangeChain.REBUILDS: "bigint"}


def _chained(chain: ChangeChain) -> tuple[str, str]:
    """Write the statements that read the changes of a kind, and the heads of those chains that lost all of theirs."""
    name, place, *_ = _CHAINED[chain]
    kind = _NAME_TYPES.get(chain, "text")
    texts = ", ".join(
        f"trunc(extract(epoch from {column}) * 1000000)::text as {column}"
        if column.endswith("_at")
        else f"{column}::text as {column}"
        for column in _CHAINED[chain]
    )
    changes = f"""
        select change.chain_name, change.chain_n, change.fields, change.previous_hash, change.hash,
            head.n as head_n, head.hash as head_hash, head.changes as head_changes
        from (
            select {name} as chain_key, {name}::text as chain_name, {place} as chain_n, previous_hash, hash,
                (select to_jsonb(texts)::text from (select {texts}) as texts) as fields
            from {chain}
            where (%(start_name)s::{kind} is null or ({name}, {place}) >= (%(start_name)s::{kind}, %(start_n)s::bigint))
                and (%(name)s::{kind} is null or {name} = %(name)s::{kind})
            order by {name}, {place}
            limit %(limit)s
        ) as change
        left join chain_heads as head on head.chain = '{chain}' and head.name = change.chain_name
        order by change.chain_key, change.chain_n
    """  # noqa: S608 - constants of this module
    lost = f"""
        select name, n, hash, changes
        from chain_heads as head
        where chain = '{chain}' and (%(name)s::text is null or name = %(name)s::text)
            and not exists (select from {chain} as change where change.{name} = head.name::{kind})
        order by name
        limit %(limit)s
    """  # noqa: S608
    return changes, lost


# From account to account: of each, only the first of its many rows is read.
_STRANGERS = """
    with recursive walk as (
        (select account_id from {table} where account_id > %(after)s order by account_id limit 1)
        union all
        select (select account_id from {table} as next where next.account_id > walk.account_id order by 1 limit 1)
        from walk
        where walk.account_id is not null
    )
    select account_id, exists (select from accounts where accounts.account_id = page.account_id) as known
    from (select account_id from walk where account_id is not null limit %(limit)s) as page
"""


class AuditPostgresClient:
    """Implements `margin.ports.audit.HistoryAudit`; a user who may only read is enough."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    async def check(self) -> None:
        """Raise when PostgreSQL cannot be used, or its schema is older than this release.

        Raises
        ------
        PostgresUnavailableError
        """
        (state,) = await self._pool.query("select to_regclass('chain_heads') is not null as migrated")
        if not state["migrated"]:
            message = "PostgreSQL has no schema of this release: migrate it, or start the engine of this release once."
            raise PostgresUnavailableError(message)

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

    async def steps(self, after_id: int, limit: int) -> list[AuditedStep]:
        """Read the steps of settling behind an id, in order of their ids.

        Raises
        ------
        PostgresUnavailableError
        """
        return [_audited_step(row) for row in await self._pool.query(_STEPS, {"after_id": after_id, "limit": limit})]

    async def changes(
        self, chain: ChangeChain, start: tuple[str, int] | None, limit: int, *, name: str | None = None
    ) -> list[AuditedChange]:
        """Read changes from a place (name, n) on, this one included, each with the head of its chain.

        Raises
        ------
        PostgresUnavailableError
        """
        statement, _ = _chained(chain)
        start_name, start_n = start if start is not None else (None, None)
        parameters = {"start_name": start_name, "start_n": start_n, "name": name, "limit": limit}
        return [_audited_change(chain, row) for row in await self._pool.query(statement, parameters)]

    async def lost_chains(self, chain: ChangeChain, limit: int, *, name: str | None = None) -> list[ChangeHead]:
        """Heads of chains of which no change is left.

        Raises
        ------
        PostgresUnavailableError
        """
        _, statement = _chained(chain)
        rows = await self._pool.query(statement, {"name": name, "limit": limit})
        return [ChangeHead(**row) for row in rows]

    async def strangers(self, table: str, after_account_id: int, limit: int) -> tuple[int | None, list[int]]:
        """Accounts with rows in a table that have none in accounts, of so many that have some; where to go on.

        Raises
        ------
        PostgresUnavailableError
        """
        if table not in TABLES_OF_ACCOUNTS:
            raise ValueError(table)
        rows = await self._pool.query(_STRANGERS.format(table=table), {"after": after_account_id, "limit": limit})
        last = rows[-1]["account_id"] if len(rows) == limit else None
        return last, [row["account_id"] for row in rows if not row["known"]]

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


def _audited_step(row: Row) -> AuditedStep:
    source_account_id, source_event_id = row["source_account_id"], row["source_event_id"]
    return AuditedStep(
        id=row["id"],
        account_id=row["account_id"],
        liquidation_id=row["liquidation_id"],
        number=row["number"],
        columns=json.loads(row["columns"]),
        source=None if source_event_id is None else (source_account_id, source_event_id),
        previous_event_id=row["previous_event_id"],
        body=None if row["body"] is None else _json(row["body"]),
        has_shortfall=row["has_shortfall"],
        is_spent=row["is_spent"],
        was_paid_out=row["was_paid_out"],
    )


def _audited_change(chain: ChangeChain, row: Row) -> AuditedChange:
    fields = json.loads(row["fields"])
    change = Change(
        name=row["chain_name"],
        n=row["chain_n"],
        fields={column: fields[column] for column in _CHAINED[chain]},
        previous_hash=row["previous_hash"],
        hash=row["hash"],
    )
    if row["head_n"] is None:
        return AuditedChange(change, None)
    return AuditedChange(change, ChangeHead(change.name, row["head_n"], row["head_hash"], row["head_changes"]))


def _json(text: str) -> Any:
    """Read a JSON text; None for one that PostgreSQL takes and Python does not: too deep, or a number too long."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
