"""Both stores as the reconciling reads them: tables and keys that a test can tamper with, one by one."""

from __future__ import annotations

import copy
import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.chain import Link
from margin.domain.decimals import plain
from margin.domain.event import parse_version, position_entry
from margin.domain.ledger import LedgerAccount
from margin.domain.safe_zone import TriggerSide
from margin.ports.audit import (
    AuditedAccount,
    AuditedChange,
    AuditedEvent,
    AuditedSettlement,
    AuditedStep,
    ChangeChain,
    HotAccount,
    HotPosition,
    LedgerPage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.domain.change_chain import Change, ChangeHead
    from margin.domain.event import StoredEvent
    from tests.fakes.history import FakeHistory
    from tests.fakes.history import Link as StoredLink
    from tests.fakes.redis import FakeRedis

COLUMNS = ("type", "key", "request_hash", "subject", "source_ip", "acknowledged_by", "at_us")
TRADE_FIELDS = ("symbol", "side", "quantity", "price", "notional", "realised_pnl", "fee")
LIQUIDATION_FIELDS = ("equity", "maintenance_margin", "reason", "positions", "shortfall")


class FakeHistoryAudit:
    """Implements `margin.ports.audit.HistoryAudit` on a copy of a history, in tables as PostgreSQL has them."""

    def __init__(self, history: FakeHistory) -> None:
        self.account_rows: dict[int, dict[str, Any]] = {}
        self.event_rows: dict[tuple[int, int], dict[str, Any]] = {}
        self.lines: dict[tuple[int, int, int], tuple[str, str]] = {}
        self.trades: dict[tuple[int, int], dict[str, Any]] = {}
        self.liquidations: dict[tuple[int, int], dict[str, Any]] = {}
        self.settled: list[AuditedSettlement] = []
        self.planned: list[AuditedStep] = []
        self.change_rows: dict[ChangeChain, list[Change]] = {chain: [] for chain in ChangeChain}
        self.change_heads: dict[tuple[ChangeChain, str], ChangeHead] = {}
        for account_id, chain in history.chains.items():
            for link in chain:
                self._store(account_id, link)
            self.account_rows[account_id] = _account_row(history, account_id)

    async def check(self) -> None:
        pass

    async def last_account(self) -> int:
        return max(self.account_rows, default=0)

    async def accounts(self, after_account_id: int, last_account_id: int, limit: int) -> dict[int, int]:
        wanted = sorted(
            account_id for account_id in self.account_rows if after_account_id < account_id <= last_account_id
        )
        return {account_id: self.account_rows[account_id]["n"] for account_id in wanted[:limit]}

    async def rows(self, account_ids: Sequence[int]) -> dict[int, AuditedAccount]:
        return {
            account_id: AuditedAccount(
                account_id=account_id,
                **self.account_rows[account_id],
                events=_count(self.event_rows, account_id),
                ledger_lines=_count(self.lines, account_id),
                trades=_count(self.trades, account_id),
                liquidations=_count(self.liquidations, account_id),
            )
            for account_id in account_ids
            if account_id in self.account_rows
        }

    async def known(self, account_ids: Sequence[int]) -> set[int]:
        return {account_id for account_id in account_ids if account_id in self.account_rows}

    async def events(self, after: tuple[int, int], last_account_id: int, limit: int) -> list[AuditedEvent]:
        places = sorted(place for place in self.event_rows if place > after and place[0] <= last_account_id)
        return [self._event(*place) for place in places[:limit]]

    async def settlements(self, after: tuple[int, int], limit: int) -> list[AuditedSettlement]:
        rows = sorted(self.settled, key=lambda one: (one.account_id, one.liquidation_id))
        return [one for one in rows if (one.account_id, one.liquidation_id) > after][:limit]

    async def steps(self, after_id: int, limit: int) -> list[AuditedStep]:
        return [step for step in sorted(self.planned, key=lambda step: step.id) if step.id > after_id][:limit]

    async def changes(
        self, chain: ChangeChain, start: tuple[str, int] | None, limit: int, *, name: str | None = None
    ) -> list[AuditedChange]:
        rows = sorted(self.change_rows[chain], key=lambda change: (change.name, change.n))
        wanted = [row for row in rows if name in {None, row.name} and (start is None or (row.name, row.n) >= start)]
        return [AuditedChange(row, self.change_heads.get((chain, row.name))) for row in wanted[:limit]]

    async def lost_chains(self, chain: ChangeChain, limit: int, *, name: str | None = None) -> list[ChangeHead]:
        kept = {row.name for row in self.change_rows[chain]}
        heads = [head for (kind, _), head in sorted(self.change_heads.items()) if kind == chain]
        return [head for head in heads if head.name not in kept and name in {None, head.name}][:limit]

    async def strangers(self, table: str, after_account_id: int, limit: int) -> tuple[int | None, list[int]]:
        places: dict[str, Any] = {
            "events": self.event_rows,
            "trades": self.trades,
            "liquidations": self.liquidations,
            "ledger_lines": self.lines,
        }
        owners = sorted({place[0] for place in places[table] if place[0] > after_account_id})[:limit]
        last = owners[-1] if len(owners) == limit else None
        return last, [account_id for account_id in owners if account_id not in self.account_rows]

    async def ledger(self, after: tuple[int, int, int], total: Decimal, limit: int) -> LedgerPage:
        places = sorted(place for place in self.lines if place > after)
        amounts = (Decimal(self.lines[place][1]) for place in places[:limit])
        return LedgerPage(places[limit - 1] if len(places) >= limit else None, sum(amounts, start=total))

    def _store(self, account_id: int, link: StoredLink) -> None:
        body, event_id = copy.deepcopy(link.body), link.event_id
        self.event_rows[account_id, body["n"]] = {
            "event_id": event_id,
            "previous_event_id": body["previous_event_id"],
            "hash": link.hash,
            **{name: body[name] for name in COLUMNS},
            "body": body,
        }
        for number, (name, amount) in enumerate(body["ledger"], start=1):
            self.lines[account_id, event_id, number] = (str(LedgerAccount(name)), amount)
        for kind, table, fields in (
            ("TRADE", self.trades, TRADE_FIELDS),
            ("LIQUIDATION", self.liquidations, LIQUIDATION_FIELDS),
            ("DELEVERAGING", self.liquidations, LIQUIDATION_FIELDS),
        ):
            if body["type"] == kind:
                row = {name: copy.deepcopy(body["detail"][name]) for name in fields}
                table[account_id, event_id] = {**row, "at_us": body["at_us"]}

    def _event(self, account_id: int, n: int) -> AuditedEvent:
        row = self.event_rows[account_id, n]
        event_id = row["event_id"]
        return AuditedEvent(
            link=Link(
                account_id=account_id,
                n=n,
                event_id=event_id,
                previous_event_id=row["previous_event_id"],
                hash=row["hash"],
                body=row["body"],
            ),
            columns={name: row[name] for name in COLUMNS},
            lines=tuple(
                (place[2], *self.lines[place]) for place in sorted(self.lines) if place[:2] == (account_id, event_id)
            ),
            trade=self.trades.get((account_id, event_id)),
            liquidation=self.liquidations.get((account_id, event_id)),
        )


@dataclasses.dataclass
class HotKeys:
    """What Redis holds of one account."""

    version: str
    chain_hash: str
    balance: str
    positions: dict[str, dict[str, str]]
    pending: list[StoredEvent]
    waits: bool


class FakeHotAudit:
    """Implements `margin.ports.audit.HotAudit` on a copy of what a Redis holds, key by key."""

    partitions = 1

    def __init__(self, redis: FakeRedis) -> None:
        self.marked = sorted(redis.marks)
        self.saved = ""
        self.now_us = redis.clock.now_us
        self.keys: dict[str, HotKeys] = {}
        self.triggers: set[tuple[str, TriggerSide, str]] = set()
        for account_id, hot in redis.accounts.items():
            self.keys[str(account_id)] = HotKeys(
                version=hot.version,
                chain_hash=hot.chain_hash,
                balance=plain(hot.account.balance),
                positions={symbol: position_entry(held) for symbol, held in hot.account.positions.items()},
                pending=list(redis.pending.get(account_id, [])),
                waits=account_id in redis.pending_since_us,
            )
            self.triggers |= {(symbol, trigger.side, str(account_id)) for symbol, trigger in hot.triggers.items()}

    async def accounts(self, account_ids: Sequence[int], pending_max: int) -> dict[int, HotAccount]:
        return {account_id: self._account(str(account_id), pending_max) for account_id in account_ids}

    async def account_ids(self, partition: int, cursor: str) -> tuple[str, tuple[str, ...]]:
        return "0", tuple(self.keys)

    async def symbols(self, partition: int) -> tuple[str, ...]:
        return tuple(self.marked)

    async def stray_triggers(
        self, partition: int, symbol: str, side: TriggerSide, cursor: str
    ) -> tuple[str, list[str]]:
        there = [owner for marked, on, owner in self.triggers if (marked, on) == (symbol, side)]
        return "0", [owner for owner in there if owner not in self.keys or symbol not in self.keys[owner].positions]

    async def progress(self) -> tuple[str, int]:
        return self.saved, self.now_us

    async def save_progress(self, text: str) -> int:
        self.saved = text
        self.now_us += 1
        return self.now_us

    def _account(self, owner: str, pending_max: int) -> HotAccount:
        keys = self.keys.get(owner, HotKeys("", "", "", {}, [], waits=False))
        return HotAccount(
            version=keys.version,
            chain_hash=keys.chain_hash,
            balance=keys.balance,
            positions={
                symbol: HotPosition(
                    fields["quantity"],
                    fields["entry_cost"],
                    fields.get("entry_funding", "0"),
                    tuple(side for side in TriggerSide if (symbol, side, owner) in self.triggers),
                )
                for symbol, fields in keys.positions.items()
            },
            pending=tuple(keys.pending[:pending_max]),
            pending_count=len(keys.pending),
            waits=keys.waits,
        )


def _account_row(history: FakeHistory, account_id: int) -> dict[str, Any]:
    state = history.state_of(account_id)
    n, event_id = parse_version(state.version)
    return {
        "n": n,
        "event_id": event_id,
        "chain_hash": state.chain_hash,
        "balance": state.account.balance,
        "positions": {symbol: position_entry(held) for symbol, held in state.account.positions.items()},
    }


def _count(table: dict[Any, Any], account_id: int) -> int:
    return sum(place[0] == account_id for place in table)
