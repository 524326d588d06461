"""What the stores hold after a replay: rows that the checks judge, and how they are read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from margin.domain.account import Account
from margin.domain.chain import Link, account_of, fold
from margin.domain.event import version_of
from margin.domain.liquidation import LiquidationPolicy
from margin.ports.history import HistoryAccount
from margin.runtime import Engine, tls_of_postgres

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from margin.config import Settings
    from margin.domain.instrument import Instrument
    from margin.ports import AccountRow
    from margin.services.scan import ScanReport

__all__ = ["Evidence", "RecordedEvent", "RecordedLine", "Step", "collect", "steps"]

_STATEMENT_TIMEOUT_MS = 60_000
_EVENTS = """
    select account_id, n, event_id, previous_event_id, hash, type, body
    from events
    where account_id = any(%s::bigint[])
    order by account_id, n
"""
_ACCOUNTS = """
    select account_id, n, event_id, chain_hash, balance, positions
    from accounts
    where account_id = any(%s::bigint[])
"""
_LINES = "select account_id, event_id, ledger_account, amount from ledger_lines where account_id = any(%s::bigint[])"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """One row of ``events``: its columns, and its body as JSON values."""

    account_id: int
    n: int
    event_id: int
    previous_event_id: int
    hash: str
    type: str
    body: Mapping[str, Any]

    @property
    def link(self) -> Link:
        """Its place in the chain."""
        return Link(
            account_id=self.account_id,
            n=self.n,
            event_id=self.event_id,
            previous_event_id=self.previous_event_id,
            hash=self.hash,
            body=self.body,
        )


@dataclass(frozen=True, slots=True)
class RecordedLine:
    """One row of ``ledger_lines``."""

    account_id: int
    event_id: int
    ledger_account: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Step:
    """An event between the states of its account before and after it, all as recorded."""

    before: Account
    event: RecordedEvent
    after: Account


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is recorded of some accounts.

    Parameters
    ----------
    chains : mapping of int to sequence of RecordedEvent
        Events of each account, ordered by n.
    lines : sequence of RecordedLine
    history : mapping of int to HistoryAccount
        Accounts as PostgreSQL holds them.
    redis : mapping of int to AccountRow
        Accounts as Redis holds them.
    waiting_accounts : int
        How many accounts of the engine have events that PostgreSQL does not have yet.
    instruments : mapping of str to Instrument
        Configured symbols.
    scan : ScanReport
        What a scan of all accounts found after the last mark price.
    policy : LiquidationPolicy
        How far the engine was told to go with a liquidation.
    """

    chains: Mapping[int, Sequence[RecordedEvent]]
    lines: Sequence[RecordedLine]
    history: Mapping[int, HistoryAccount]
    redis: Mapping[int, AccountRow]
    waiting_accounts: int
    instruments: Mapping[str, Instrument]
    scan: ScanReport
    policy: LiquidationPolicy


def steps(chain: Iterable[RecordedEvent]) -> Iterator[Step]:
    """Fold an account's recorded events, each with the state that the ones before it left."""
    state: Account | None = None
    for event in chain:
        before = state or Account(event.account_id, Decimal(0), {})
        state = fold(before, event.body)
        yield Step(before, event, state)


def collect(settings: Settings, account_ids: Collection[int], *, settle: bool = False) -> Evidence:
    """Do once more what the schedules do (store pending events, scan all accounts), then read both stores.

    Parameters
    ----------
    settings : Settings
        Where the stores are.
    account_ids : collection of int
        Whose records to read.
    settle : bool
        Also settle shortfalls, which may change the accounts of others; for an engine of one's own.

    Raises
    ------
    UnavailableError
        A store cannot be used.
    psycopg.Error
        PostgreSQL refuses a query.
    """
    return asyncio.run(_collect(settings, frozenset(account_ids), settle=settle))


async def _collect(settings: Settings, account_ids: frozenset[int], *, settle: bool) -> Evidence:
    # The sweep, which needs no index, of all accounts at once.
    engine = Engine(dataclasses.replace(settings, sweep_cycle_s=0))
    try:
        scan = await engine.scans.scan()
        await engine.drain.drain()
        if settle:
            await engine.settlement.settle()
        waiting_accounts, _ = await engine.accounts.pending_stats()
        return Evidence(
            redis=await _redis_accounts(engine, account_ids),
            waiting_accounts=waiting_accounts,
            instruments=(await engine.market.market()).instruments,
            scan=scan,
            policy=LiquidationPolicy(settings.liquidation_buffer, settings.liquidation_remaining_notional_min),
            **_rows(settings, account_ids),
        )
    finally:
        await engine.close()


async def _redis_accounts(engine: Engine, account_ids: frozenset[int]) -> dict[int, AccountRow]:
    found: dict[int, AccountRow] = {}
    for partition in range(engine.settings.partitions):
        cursor = "0"
        while True:
            page = await engine.accounts.page(partition, cursor)
            found.update((row.account.account_id, row) for row in page.rows if row.account.account_id in account_ids)
            cursor = page.cursor
            if cursor == "0":
                break
    return found


def _rows(settings: Settings, account_ids: frozenset[int]) -> dict[str, Any]:
    """Read what no service of the engine reads: whole chains and every ledger line, of one moment."""
    wanted = [sorted(account_ids)]
    with psycopg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password or None,
        dbname=settings.postgres_database,
        **tls_of_postgres(settings),
        connect_timeout=10,
        options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS} -c default_transaction_read_only=on",
    ) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        cursor = connection.cursor(row_factory=dict_row)
        chains: dict[int, list[RecordedEvent]] = defaultdict(list)
        for row in cursor.execute(_EVENTS, wanted):
            chains[row["account_id"]].append(RecordedEvent(**row))
        history = {row["account_id"]: _history_account(row) for row in cursor.execute(_ACCOUNTS, wanted)}
        lines = [RecordedLine(**row) for row in cursor.execute(_LINES, wanted)]
    return {"chains": dict(chains), "history": history, "lines": lines}


def _history_account(row: Mapping[str, Any]) -> HistoryAccount:
    account = account_of(row["account_id"], row["balance"], row["positions"])
    return HistoryAccount(version_of(row["n"], row["event_id"]), row["chain_hash"], account)
