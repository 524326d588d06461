"""Hot state in memory: what the Redis clients and their scripts promise, without Redis."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from margin.domain.event import StoredEvent, version_of
from margin.domain.market import Mark, Market
from margin.domain.safe_zone import TriggerSide
from margin.errors import StateNotLoadedError
from margin.ports import (
    ENGINE_CONTROL,
    AccountPage,
    AccountRow,
    AccountView,
    Commit,
    CommitReply,
    Committed,
    Conflict,
    HistoryAccount,
    HistoryKey,
    Loaded,
    MarkUpdate,
    PartitionState,
    StoredResult,
    account_control,
    symbol_control,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.safe_zone import Trigger
    from tests.fakes.faults import Clock, Faults

PENDING_SHOWN_MAX = 200


@dataclasses.dataclass(frozen=True)
class _Record:
    event_id: int
    request_hash: str
    result: str
    expires_us: int


@dataclasses.dataclass
class _HotAccount:
    account: Account
    version: str
    chain_hash: str
    triggers: dict[str, Trigger]


@dataclasses.dataclass
class FakeRedis:
    """One server: everything that scripts share. ``page_size`` is how many accounts one page of a scan has."""

    clock: Clock
    faults: Faults
    partitions: int = 1
    page_size: int = 2
    run_id: str = "run-1"
    accounts: dict[int, _HotAccount] = dataclasses.field(default_factory=dict)
    pending: dict[int, list[StoredEvent]] = dataclasses.field(default_factory=dict)
    pending_since_us: dict[int, int] = dataclasses.field(default_factory=dict)
    keys: dict[tuple[int, str], _Record] = dataclasses.field(default_factory=dict)
    marks: dict[str, Mark] = dataclasses.field(default_factory=dict)
    instruments: dict[str, Instrument] = dataclasses.field(default_factory=dict)
    controls: dict[str, str] = dataclasses.field(default_factory=dict)
    markers: dict[int, PartitionState] = dataclasses.field(default_factory=dict)
    sequences: Counter[int] = dataclasses.field(default_factory=Counter)
    reports: dict[str, tuple[int, dict[str, str]]] = dataclasses.field(default_factory=dict)
    trigger_writes: int = 0
    commits: list[Commit] = dataclasses.field(default_factory=list)

    _STATE = (
        *("accounts", "pending", "pending_since_us", "keys", "marks", "instruments", "controls", "markers"),
        *("sequences", "reports"),
    )

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        for name in self._STATE:
            getattr(self, name).clear()

    def save(self) -> dict[str, object]:
        """Copy of the whole state, to be put back later."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._STATE}

    def restore(self, saved: Mapping[str, object]) -> None:
        """Put an older state back; the caller decides whether the server's run_id is another then."""
        for name in self._STATE:
            setattr(self, name, copy.deepcopy(saved[name]))

    def partition_of(self, account_id: int) -> int:
        return account_id % self.partitions

    def require_loaded(self, partition: int, epoch: int | None = None) -> None:
        marker = self.markers.get(partition)
        if marker is None or not marker.whole(self.partitions) or marker.run_id != self.run_id:
            raise StateNotLoadedError("The marker does not vouch for this server.")
        if epoch is not None and marker.epoch != str(epoch):
            raise StateNotLoadedError("The state was loaded anew meanwhile.")

    def shown_pending(self, account_id: int) -> tuple[StoredEvent, ...]:
        return tuple(self.pending.get(account_id, [])[:PENDING_SHOWN_MAX])

    def record(self, account_id: int, key: str) -> StoredResult | None:
        record = self.keys.get((account_id, key))
        if record is None or record.expires_us <= self.clock.now_us:
            return None
        return StoredResult(record.event_id, record.request_hash, record.result, self.shown_pending(account_id))

    def is_crossed(self, trigger: Trigger) -> bool:
        mark = self.marks.get(trigger.symbol)
        return mark is not None and trigger.is_crossed(mark.price)

    def set_triggers(self, account_id: int, triggers: Mapping[str, Trigger]) -> bool:
        """Put triggers in place of those of the same symbols; whether one is crossed by the mark in force."""
        held = self.accounts[account_id].triggers
        for symbol, trigger in triggers.items():
            if held.get(symbol) != trigger:
                self.trigger_writes += 1
                held[symbol] = trigger
        return any(self.is_crossed(trigger) for trigger in triggers.values())


class FakeAccounts:
    """Implements `margin.ports.AccountStore`."""

    def __init__(self, redis: FakeRedis, *, check_marker: bool = True) -> None:
        self._redis = redis
        self._check_marker = check_marker

    @property
    def partitions(self) -> int:
        return self._redis.partitions

    async def read(self, account_id: int, *, symbol: str = "", key: str = "") -> AccountView:
        redis = self._redis
        await redis.faults.before("accounts.read")
        partition = redis.partition_of(account_id)
        redis.require_loaded(partition)
        hot = redis.accounts.get(account_id)
        symbols = {symbol, *(hot.account.positions if hot else ())} - {""}
        names = [ENGINE_CONTROL, account_control(account_id), *([symbol_control(symbol)] if symbol else [])]
        view = AccountView(
            epoch=int(redis.markers[partition].epoch),
            account=hot.account if hot else None,
            version=hot.version if hot else "",
            chain_hash=hot.chain_hash if hot else "",
            market=self._market(symbols),
            controls={name: redis.controls.get(name, "") for name in names},
            replay=redis.record(account_id, key) if key else None,
        )
        await redis.faults.after("accounts.read")
        return view

    async def commit(self, commit: Commit) -> CommitReply:
        await self._redis.faults.before("accounts.commit")
        reply = self._commit(commit)
        await self._redis.faults.after("accounts.commit")
        return reply

    async def anchor(self, account_id: int, version: str, triggers: Mapping[str, Trigger]) -> bool | None:
        redis = self._redis
        await redis.faults.before("accounts.anchor")
        redis.require_loaded(redis.partition_of(account_id))
        if self._version(account_id) != version:
            return None
        crossed = redis.set_triggers(account_id, triggers)
        await redis.faults.after("accounts.anchor")
        return crossed

    async def pending(self, account_id: int) -> tuple[StoredEvent, ...]:
        await self._reach("accounts.pending")
        return self._redis.shown_pending(account_id)

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        await self._reach("accounts.pending_accounts")
        since_us = self._redis.pending_since_us
        mine = [account_id for account_id in since_us if self._redis.partition_of(account_id) == partition]
        return tuple(sorted(mine, key=lambda account_id: (since_us[account_id], str(account_id)))[:limit])

    async def pending_stats(self) -> tuple[int, float]:
        await self._reach("accounts.pending_stats")
        since_us = self._redis.pending_since_us
        oldest_us = min(since_us.values(), default=self._redis.clock.now_us)
        return len(since_us), (self._redis.clock.now_us - oldest_us) / 1_000_000

    async def forget_pending(self, account_id: int, event_ids: Sequence[int]) -> None:
        redis = self._redis
        await self._reach("accounts.forget_pending")
        waiting = redis.pending.get(account_id, [])
        while waiting and waiting[0].event_id in event_ids:
            waiting.pop(0)
        if not waiting:
            redis.pending.pop(account_id, None)
            redis.pending_since_us.pop(account_id, None)
        await redis.faults.after("accounts.forget_pending")

    async def page(self, partition: int, cursor: str) -> AccountPage:
        redis = self._redis
        await redis.faults.before("accounts.page")
        redis.require_loaded(partition)
        mine = sorted(account_id for account_id in redis.accounts if redis.partition_of(account_id) == partition)
        start = int(cursor)
        end = start + redis.page_size
        rows = [redis.accounts[account_id] for account_id in mine[start:end]]
        await redis.faults.after("accounts.page")
        return AccountPage(
            cursor=str(end) if end < len(mine) else "0",
            rows=tuple(AccountRow(row.version, row.account) for row in rows),
        )

    async def versions(self, account_ids: Sequence[int]) -> dict[int, str]:
        assert len({self._redis.partition_of(account_id) for account_id in account_ids}) <= 1, "one partition at a time"
        await self._reach("accounts.versions")
        return {account_id: self._version(account_id) for account_id in account_ids}

    async def size(self, partition: int) -> int:
        await self._reach("accounts.size")
        return sum(self._redis.partition_of(account_id) == partition for account_id in self._redis.accounts)

    async def load(
        self,
        row: HistoryAccount,
        keys: Sequence[HistoryKey],
        triggers: Mapping[str, Trigger],
        *,
        expected_version: str,
        forked_event_id: int | None = None,
    ) -> Loaded:
        redis = self._redis
        await self._reach("accounts.load")
        account_id = row.account.account_id
        if self._version(account_id) != expected_version:
            return Loaded.CHANGED
        waiting = {event.event_id for event in redis.pending.get(account_id, [])}
        if forked_event_id is not None and forked_event_id not in waiting:
            return Loaded.HEALED_BEFORE
        dropped = {event.event_id for event in redis.pending.pop(account_id, [])}
        redis.pending_since_us.pop(account_id, None)
        redis.keys = {
            place: record
            for place, record in redis.keys.items()
            if place[0] != account_id or record.event_id not in dropped
        }
        redis.accounts[account_id] = _HotAccount(row.account, row.version, row.chain_hash, {})
        redis.set_triggers(account_id, triggers)
        for key in keys:
            expires_us = redis.clock.now_us + int(key.ttl_s * 1_000_000)
            redis.keys[account_id, key.key] = _Record(key.event_id, key.request_hash, key.result, expires_us)
        return Loaded.DONE

    async def save_report(self, snapshot_id: str, chunks: Mapping[str, str], ttl_s: int) -> None:
        await self._reach("accounts.save_report")
        self._redis.reports[snapshot_id] = (self._redis.clock.now_us + ttl_s * 1_000_000, dict(chunks))

    async def report_chunk(self, snapshot_id: str, chunk: str) -> str | None:
        await self._reach("accounts.report_chunk")
        expires_us, chunks = self._redis.reports.get(snapshot_id, (0, {}))
        return chunks.get(chunk) if expires_us > self._redis.clock.now_us else None

    async def _reach(self, step: str) -> None:
        await self._redis.faults.before(step)
        if self._check_marker and any(marker.run_id != self._redis.run_id for marker in self._redis.markers.values()):
            raise StateNotLoadedError("The server was restarted or replaced.")

    def _market(self, symbols: set[str]) -> Market:
        redis = self._redis
        marks = {symbol: redis.marks[symbol] for symbol in symbols if symbol in redis.marks}
        instruments = {symbol: redis.instruments[symbol] for symbol in symbols if symbol in redis.instruments}
        return Market(marks, instruments, redis.clock.now_us)

    def _version(self, account_id: int) -> str:
        hot = self._redis.accounts.get(account_id)
        return hot.version if hot else ""

    def _commit(self, commit: Commit) -> CommitReply:
        redis, event = self._redis, commit.event
        partition = redis.partition_of(event.account_id)
        redis.require_loaded(partition, commit.epoch)
        replay = redis.record(event.account_id, event.key)
        if replay is not None:
            return replay
        changed = self._changed(commit)
        if changed:
            return Conflict(changed)
        redis.commits.append(commit)
        redis.sequences[partition] += 1
        event_id = commit.epoch * 2**32 + redis.sequences[partition]
        account_id = event.account_id
        hot = redis.accounts.get(account_id)
        kept = (
            {symbol: held for symbol, held in hot.triggers.items() if symbol in commit.account.positions} if hot else {}
        )
        version = version_of(event.n, event_id)
        redis.accounts[account_id] = _HotAccount(commit.account, version, commit.event_hash, kept)
        crossed = redis.set_triggers(account_id, commit.triggers)
        expires_us = redis.clock.now_us + commit.key_ttl_s * 1_000_000
        redis.keys[account_id, event.key] = _Record(event_id, event.request_hash, commit.result, expires_us)
        redis.pending.setdefault(account_id, []).append(StoredEvent(event_id, commit.body))
        redis.pending_since_us.setdefault(account_id, event.at_us)
        return Committed(event_id, crossed, redis.shown_pending(account_id))

    def _changed(self, commit: Commit) -> str:
        redis = self._redis
        if self._version(commit.event.account_id) != commit.expected_version:
            return "account"
        for symbol, version in commit.instrument_versions.items():
            instrument = redis.instruments.get(symbol)
            if (instrument.version if instrument else 0) != version:
                return "instrument"
        if any(redis.controls.get(name, "") != state for name, state in commit.controls.items()):
            return "control"
        marks = {symbol: redis.marks[symbol].price for symbol in commit.marks if symbol in redis.marks}
        return "mark" if marks != dict(commit.marks) else ""


class FakeMarket:
    """Implements `margin.ports.MarketStore`."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def market(self) -> Market:
        redis = self._redis
        await redis.faults.before("market.market")
        return Market(dict(redis.marks), dict(redis.instruments), redis.clock.now_us)

    async def set_marks(self, prices: Mapping[str, Decimal], *, crossed_max: int) -> list[MarkUpdate]:
        redis = self._redis
        await redis.faults.before("market.set_marks")
        for partition in range(redis.partitions):
            redis.require_loaded(partition)
        for symbol, price in prices.items():
            stored_us = redis.marks[symbol].stamp_us if symbol in redis.marks else 0
            redis.marks[symbol] = Mark(price, max(stored_us + 1, redis.clock.now_us))
        updates = [self._update(symbol, crossed_max) for symbol in prices]
        await redis.faults.after("market.set_marks")
        return updates

    async def align_marks(self) -> int:
        """Do nothing: the fake's partitions share their marks, so that none can lag."""
        await self._redis.faults.before("market.align_marks")
        return 0

    def _update(self, symbol: str, crossed_max: int) -> MarkUpdate:
        redis = self._redis
        sides: dict[TriggerSide, list[tuple[float, str]]] = {side: [] for side in TriggerSide}
        for account_id, hot in redis.accounts.items():
            if (trigger := hot.triggers.get(symbol)) is not None and redis.is_crossed(trigger):
                sides[trigger.side].append((trigger.score, str(account_id)))
        # Those crossed furthest first, equal ones as sorted sets order their members: as text.
        crossed = sorted(sides[TriggerSide.FLOOR], reverse=True) + sorted(sides[TriggerSide.CEILING])
        named = tuple(int(account_id) for _, account_id in crossed[:crossed_max])
        return MarkUpdate(symbol, redis.marks[symbol].stamp_us, len(crossed), named)


class FakePartitions:
    """Implements `margin.ports.PartitionStore`."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def state(self, partition: int) -> PartitionState:
        await self._redis.faults.before("partitions.state")
        marker = self._redis.markers.get(partition, PartitionState("", "", "", ""))
        return dataclasses.replace(marker, server_run_id=self._redis.run_id)

    async def close(self, partition: int) -> None:
        await self._redis.faults.before("partitions.close")
        self._redis.markers.pop(partition, None)

    async def open(self, partition: int, epoch: int, run_id: str) -> None:
        await self._redis.faults.before("partitions.open")
        self._redis.sequences[partition] = 0
        self._redis.markers[partition] = PartitionState(str(epoch), str(self._redis.partitions), run_id, run_id)

    async def check(self) -> None:
        await self._redis.faults.before("partitions.check")
        for partition in range(self._redis.partitions):
            self._redis.require_loaded(partition)
