"""History in memory: chains of events, and what is derived from them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.account import Account
from margin.domain.event import AcknowledgedBy, canonical, digest, version_of
from margin.domain.ledger import LedgerAccount
from margin.domain.position import Position
from margin.ports import StoredResult
from margin.ports.history import Appended, HistoryAccount, HistoryKey, RememberedKey
from margin.ports.queries import LiquidationPage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from margin.caller import Caller
    from margin.domain.event import StoredEvent
    from margin.domain.market import Mark
    from margin.ports.history import ReadAt
    from margin.ports.opening import OpeningRecord
    from margin.ports.queries import LiquidationQuery, MarkSampleQuery, TradeQuery
    from tests.fakes.faults import Clock, Faults

_TRADE_AMOUNTS = ("quantity", "price", "notional", "realised_pnl", "fee")
_LIQUIDATION_AMOUNTS = ("equity", "maintenance_margin", "shortfall")


@dataclasses.dataclass(frozen=True)
class Link:
    """One stored event."""

    event_id: int
    hash: str
    body: dict[str, Any]

    @property
    def key_is_for_ever(self) -> bool:
        return bool(self.body["acknowledged_by"] == AcknowledgedBy.HISTORY)

    @property
    def at_us(self) -> int:
        return int(self.body["at_us"])


class FakeHistory:
    """Implements `margin.ports.history.History`."""

    def __init__(self, clock: Clock, faults: Faults, *, idempotency_ttl_s: int) -> None:
        self.chains: dict[int, list[Link]] = {}
        self.epoch = 0
        self.opening = False
        self.rejected_keys: set[str] = set()
        self.live_keys_max = 1000
        self.openings: list[OpeningRecord] = []
        self.rebuilds: list[tuple[int, str, str, Caller]] = []
        self.fences: dict[tuple[int, int], int] = {}
        self.mark_price_samples: dict[tuple[str, int], Mark] = {}
        self._marks: dict[str, Mark] = {}
        self._clock = clock
        self._faults = faults
        self._idempotency_ttl_s = idempotency_ttl_s

    def event_ids(self, account_id: int) -> list[int]:
        return [link.event_id for link in self.chains.get(account_id, [])]

    @contextlib.asynccontextmanager
    async def reserve(self) -> AsyncIterator[FakeWriter]:
        await self._faults.before("history.reserve")
        yield FakeWriter(self, self._faults, self.rejected_keys)

    async def account_exists(self, account_id: int) -> bool:
        await self._faults.before("history.account_exists")
        return account_id in self.chains

    async def ledger_sums(self, ledger_accounts: Sequence[LedgerAccount]) -> dict[LedgerAccount, Decimal]:
        await self._faults.before("history.ledger_sums")
        sums: dict[LedgerAccount, Decimal] = {}
        for name, amount in (line for chain in self.chains.values() for link in chain for line in link.body["ledger"]):
            if (account := LedgerAccount(name)) in ledger_accounts:
                sums[account] = sums.get(account, Decimal(0)) + Decimal(amount)
        return sums

    async def trades(self, query: TradeQuery) -> list[dict[str, Any]]:
        await self._faults.before("history.trades")
        rows = [
            {
                **_row(link, _TRADE_AMOUNTS, ("symbol", "side")),
                "reduce_only": link.body["detail"].get("reduce_only", False),
                "liquidity": link.body["detail"].get("liquidity", "TAKER"),
                "client_order_id": link.body["detail"].get("client_order_id"),
            }
            for link in reversed(self.chains.get(query.account_id, []))
            if link.body["type"] == "TRADE"
            and query.symbol in {None, link.body["detail"]["symbol"]}
            and (query.since_us is None or link.at_us >= query.since_us)
            and (query.until_us is None or link.at_us < query.until_us)
            and (query.before_id is None or link.event_id < query.before_id)
        ]
        return rows[: query.limit]

    async def liquidations(self, query: LiquidationQuery) -> LiquidationPage:
        await self._faults.before("history.liquidations")
        links = [
            link
            for account_id, chain in self.chains.items()
            for link in chain
            if link.body["type"] in {"LIQUIDATION", "DELEVERAGING"}
            and query.account_id in {None, account_id}
            and (query.before is None or (link.at_us, link.event_id) < query.before)
        ]
        links.sort(key=lambda link: (link.at_us, link.event_id), reverse=True)
        rows: list[dict[str, Any]] = []
        bytes_left = query.bytes_max
        for link in links[: query.limit]:
            bytes_left -= len(json.dumps(link.body["detail"], ensure_ascii=False).encode())
            if rows and bytes_left < 0:
                break
            rows.append({**_row(link, _LIQUIDATION_AMOUNTS, ("reason", "positions")), "record": link.body["detail"]})
        return LiquidationPage(rows, len(links) > len(rows))

    async def accounts(
        self, after_account_id: int, limit: int, *, partition: int = 0, partitions: int = 1
    ) -> list[HistoryAccount]:
        await self._faults.before("history.accounts")
        mine = (account_id for account_id in self.chains if account_id % partitions == partition)
        wanted = sorted(account_id for account_id in mine if account_id > after_account_id)
        return [self.state_of(account_id) for account_id in wanted[:limit]]

    async def known_accounts(self, account_ids: Sequence[int]) -> set[int]:
        await self._faults.before("history.known_accounts")
        return {account_id for account_id in account_ids if account_id in self.chains}

    async def known_keys(self, keys: Sequence[RememberedKey]) -> set[RememberedKey]:
        await self._faults.before("history.known_keys")
        stored = {
            RememberedKey(account_id, link.body["key"], link.event_id)
            for account_id, chain in self.chains.items()
            for link in chain
        }
        return stored & set(keys)

    async def recent_accounts(self, since_s: float, limit: int) -> list[HistoryAccount]:
        await self._faults.before("history.recent_accounts")
        since_us = self._clock.now_us - since_s * 1_000_000
        recent = [account_id for account_id, chain in self.chains.items() if chain[-1].at_us > since_us]
        recent.sort(key=lambda account_id: self.chains[account_id][-1].at_us, reverse=True)
        return [self.state_of(account_id) for account_id in recent[:limit]]

    async def save_marks(self, marks: Mapping[str, Mark]) -> None:
        await self._faults.before("history.save_marks")
        for symbol, mark in marks.items():
            self.mark_price_samples.setdefault((symbol, mark.stamp_us), mark)
            if symbol not in self._marks or self._marks[symbol].stamp_us < mark.stamp_us:
                self._marks[symbol] = mark

    async def marks(self) -> dict[str, Mark]:
        await self._faults.before("history.marks")
        return dict(self._marks)

    async def forget_mark_samples(self, before_us: int, limit: int) -> int:
        await self._faults.before("history.forget_mark_samples")
        old = sorted((at_us, symbol) for symbol, at_us in self.mark_price_samples if at_us < before_us)[:limit]
        for at_us, symbol in old:
            del self.mark_price_samples[symbol, at_us]
        return len(old)

    async def mark_samples(self, query: MarkSampleQuery) -> list[dict[str, Any]]:
        await self._faults.before("history.mark_samples")
        rows = [
            {"symbol": symbol, "price": mark.price, "source": mark.source, "timestamp_us": at_us}
            for (symbol, at_us), mark in sorted(self.mark_price_samples.items(), key=lambda item: -item[0][1])
            if symbol == query.symbol
            and (query.since_us is None or at_us >= query.since_us)
            and (query.until_us is None or at_us < query.until_us)
            and (query.before_us is None or at_us < query.before_us)
        ]
        return rows[: query.limit]

    async def raise_fence(self, partition: int, partitions: int, epoch: int) -> int:
        await self._faults.before("history.raise_fence")
        place = (partition, partitions)
        self.fences[place] = max(epoch, self.fences.get(place, 0))
        return self.fences[place]

    async def record_opening(self, record: OpeningRecord) -> None:
        await self._faults.before("history.record_opening")
        self.openings.append(record)

    async def opening_basis(self, partition: int, partitions: int) -> int:
        await self._faults.before("history.opening_basis")
        mine = [each for each in self.openings if each.partition == partition or each.partitions != partitions]
        return max((each.epoch for each in mine), default=0)

    async def record_rebuild(self, account_id: int, dropped: str, restored: str, caller: Caller) -> None:
        await self._faults.before("history.record_rebuild")
        self.rebuilds.append((account_id, dropped, restored, caller))

    async def last_partitions(self) -> int | None:
        await self._faults.before("history.last_partitions")
        return self.openings[-1].partitions if self.openings else None

    async def next_epoch(self) -> int:
        await self._faults.before("history.next_epoch")
        self.epoch += 1
        return self.epoch

    @contextlib.asynccontextmanager
    async def opening_lock(self) -> AsyncIterator[bool]:
        await self._faults.before("history.opening_lock")
        mine = not self.opening
        self.opening = True
        try:
            yield mine
        finally:
            self.opening = not mine

    async def check(self) -> None:
        await self._faults.before("history.check")

    def state_of(self, account_id: int) -> HistoryAccount:
        chain = self.chains[account_id]
        positions: dict[str, Position] = {}
        for link in chain:
            for symbol, fields in link.body["positions"].items():
                positions.pop(symbol, None)
                if fields is not None:
                    positions[symbol] = Position(
                        symbol,
                        Decimal(fields["quantity"]),
                        Decimal(fields["entry_cost"]),
                        Decimal(fields.get("entry_funding", "0")),
                    )
        last = chain[-1]
        account = Account(account_id, Decimal(last.body["balance"]), positions)
        return HistoryAccount(version_of(len(chain), last.event_id), last.hash, account)

    def live_keys_of(self, account_id: int) -> list[HistoryKey]:
        return [key for link in self.chains.get(account_id, []) if (key := self._key(link)).ttl_s > 0]

    def _key(self, link: Link) -> HistoryKey:
        age_s = (self._clock.now_us - link.at_us) / 1_000_000
        body = link.body
        result = canonical(body["result"])
        return HistoryKey(body["key"], link.event_id, body["request_hash"], result, self._idempotency_ttl_s - age_s)


class FakeWriter:
    """Implements `margin.ports.history.HistoryWriter`."""

    def __init__(self, history: FakeHistory, faults: Faults, rejected_keys: set[str]) -> None:
        self._history = history
        self._chains = history.chains
        self._rejected_keys = rejected_keys
        self._faults = faults

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        await self._faults.before("history.append")
        fenced = self._history.fences.get((read_at.partition, read_at.partitions), 0) > read_at.epoch
        links: dict[int, list[Link]] = {}
        for event in events:
            body = json.loads(event.body)
            links.setdefault(body["account_id"], []).append(Link(event.event_id, digest(event.body), body))
        take = self._behind_fence if fenced else self._append
        appended = {account_id: take(account_id, mine) for account_id, mine in links.items()}
        await self._faults.after("history.append")
        return appended

    async def account(self, account_id: int) -> HistoryAccount | None:
        await self._faults.before("history.account")
        return self._history.state_of(account_id) if account_id in self._chains else None

    async def live_keys(self, account_ids: Sequence[int]) -> dict[int, list[HistoryKey]]:
        await self._faults.before("history.live_keys")
        keys = {account_id: self._history.live_keys_of(account_id) for account_id in account_ids}
        return {account_id: live[-self.live_keys_max :] for account_id, live in keys.items() if live}

    @property
    def live_keys_max(self) -> int:
        return self._history.live_keys_max

    async def older_keys(self, account_id: int, before_event_id: int) -> list[HistoryKey]:
        await self._faults.before("history.older_keys")
        older = [key for key in self._history.live_keys_of(account_id) if key.event_id < before_event_id]
        return older[: -self.live_keys_max - 1 : -1]

    async def has_event(self, account_id: int, event_id: int, event_hash: str) -> bool:
        await self._faults.before("history.has_event")
        return (event_id, event_hash) in {(link.event_id, link.hash) for link in self._chains.get(account_id, [])}

    async def result(self, account_id: int, key: str) -> StoredResult | None:
        await self._faults.before("history.result")
        for link in self._chains.get(account_id, []):
            if link.body["key"] == key and link.key_is_for_ever:
                return StoredResult(link.event_id, link.body["request_hash"], canonical(link.body["result"]))
        return None

    def _behind_fence(self, account_id: int, links: list[Link]) -> Appended:
        held = {(link.event_id, link.hash) for link in self._chains.get(account_id, [])}
        stored = itertools.takewhile(lambda link: (link.event_id, link.hash) in held, links)
        ids = tuple(link.event_id for link in stored)
        return Appended(ids, fenced=len(ids) < len(links))

    def _append(self, account_id: int, links: list[Link]) -> Appended:
        chain = self._chains.get(account_id, [])
        stored: list[int] = []
        for link in links:
            n = link.body["n"]
            key_is_used = link.key_is_for_ever and any(
                other.key_is_for_ever and other.body["key"] == link.body["key"] for other in chain
            )
            if n <= len(chain) and (chain[n - 1].event_id, chain[n - 1].hash) == (link.event_id, link.hash):
                stored.append(link.event_id)
                continue
            id_is_used = any(other.event_id == link.event_id for other in chain)
            if n <= len(chain) or key_is_used or id_is_used:
                key_used_by = link.event_id if key_is_used else None
                return Appended(tuple(stored), forked=True, key_used_by=key_used_by)
            if n > len(chain) + 1:
                return Appended(tuple(stored), gap=True)
            if link.body["previous_hash"] != (chain[-1].hash if chain else ""):
                return Appended(tuple(stored), forked=True)
            if link.body["key"] in self._rejected_keys:
                return Appended(tuple(stored), rejected=True)
            chain = [*chain, link]
            self._chains[account_id] = chain
            stored.append(link.event_id)
        return Appended(tuple(stored))


def _row(link: Link, amounts: tuple[str, ...], others: tuple[str, ...]) -> dict[str, Any]:
    detail = link.body["detail"]
    return {
        "id": link.event_id,
        "account_id": link.body["account_id"],
        **{name: Decimal(detail[name]) for name in amounts},
        **{name: detail[name] for name in others},
        "timestamp_us": link.at_us,
    }
