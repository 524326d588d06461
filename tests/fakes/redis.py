"""Hot state in memory: what the Redis clients and their scripts promise, without Redis."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.caller import NOBODY
from margin.domain.controls import ENGINE_CONTROL, account_control, symbol_control
from margin.domain.event import StoredEvent, version_of
from margin.domain.mark_jump import MarkCandidate
from margin.domain.mark_time import AHEAD_MAX_US, OlderPrice, future_timestamp, older_mark_price
from margin.domain.market import RESTORED_STAMP_US, Mark, Market
from margin.domain.safe_zone import LIQUIDATION_PCT, TriggerSide, crosses
from margin.errors import StateNotLoadedError
from margin.ports import (
    AccountLoad,
    AccountPage,
    AccountRow,
    AccountView,
    Anchor,
    Commit,
    CommitReply,
    Committed,
    Conflict,
    CrossedAccounts,
    Dropped,
    IndexedAccount,
    Loaded,
    MarkUpdate,
    RateLimit,
    SetAside,
    StoredResult,
    SweepPage,
    SweepProgress,
)
from margin.ports.history import RememberedKey
from margin.ports.opening import Opening, PartitionState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from margin.caller import Caller
    from margin.domain.account import Account
    from margin.domain.funding import Funding
    from margin.domain.instrument import Instrument
    from margin.domain.safe_zone import Trigger
    from margin.ports.history import HistoryKey
    from margin.ports.instruments import AnchoringProgress
    from tests.fakes.faults import Clock, Faults

PENDING_SHOWN_MAX = 200
WARNED_PER_CALL_MAX = 200
_NEVER = Mark(Decimal(1), -1)
_WARNING_PCT = Decimal(80)
"""Any below 100: the triggers of the warning have a shift of their own, whatever their level."""


def _count_nothing(limits: Sequence[RateLimit]) -> None:
    if limits:
        raise NotImplementedError("requests are counted by Redis alone")


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
    warnings: dict[str, Trigger] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A price that waits to be confirmed beside the mark of a stamp, and when it came."""

    stamp_us: int
    came_us: int
    candidate: MarkCandidate

    @property
    def latest_us(self) -> int:
        return min(self.came_us, self.candidate.observed_us)


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
    mark_candidates: dict[str, _Waiting] = dataclasses.field(default_factory=dict)
    mark_waiting_senders: dict[str, Caller] = dataclasses.field(default_factory=dict)
    instruments: dict[str, Instrument] = dataclasses.field(default_factory=dict)
    staged: dict[str, Instrument] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    anchoring: dict[tuple[int, int, str, int], AnchoringProgress] = dataclasses.field(default_factory=dict)
    funding: dict[str, Funding] = dataclasses.field(default_factory=dict)
    controls: dict[str, str] = dataclasses.field(default_factory=dict)
    control_ids: dict[str, int] = dataclasses.field(default_factory=dict)
    controls_aligned_to: dict[str, int] = dataclasses.field(default_factory=dict)
    markers: dict[int, PartitionState] = dataclasses.field(default_factory=dict)
    blocked: Counter[int] = dataclasses.field(default_factory=Counter)
    holds: dict[int, str] = dataclasses.field(default_factory=dict)
    warned: set[int] = dataclasses.field(default_factory=set)
    openings: dict[int, Opening] = dataclasses.field(default_factory=dict)
    sweeps: dict[int, SweepProgress] = dataclasses.field(default_factory=dict)
    sequences: Counter[int] = dataclasses.field(default_factory=Counter)
    reports: dict[str, tuple[int, dict[str, str]]] = dataclasses.field(default_factory=dict)
    trigger_writes: int = 0
    commits: list[Commit] = dataclasses.field(default_factory=list)

    _STATE = (
        *("accounts", "pending", "pending_since_us", "keys", "marks", "instruments", "controls", "markers"),
        *("control_ids", "controls_aligned_to", "blocked", "holds", "openings", "sweeps", "sequences", "reports"),
        *("warned", "staged", "dropped", "anchoring", "funding", "mark_candidates"),
        "mark_waiting_senders",
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

    def hold_of(self, account_id: int) -> str:
        return self.holds.get(account_id, "")

    def is_held(self, account_id: int) -> bool:
        hold = self.hold_of(account_id)
        return hold.isdecimal() and int(hold) > self.clock.now_us

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

    def live_market(self) -> Market:
        """Everything as it is, and as it will be: not a copy."""
        waiting = {symbol: found.candidate.price for symbol in self.marks if (found := self.waiting_beside(symbol))}
        return Market(self.marks, self.instruments, self.clock.now_us, self.funding, self.staged, waiting)

    def waiting_beside(self, symbol: str) -> _Waiting | None:
        """What waits beside the mark in force."""
        found = self.mark_candidates.get(symbol)
        return found if found is not None and found.stamp_us == self.marks[symbol].stamp_us else None

    def market(self, symbols: Iterable[str] | None = None) -> Market:
        """A copy of everything, or of what concerns some symbols."""
        live = self.live_market()
        wanted = {*self.marks, *self.instruments, *self.funding, *self.staged} if symbols is None else set(symbols)
        return dataclasses.replace(
            live,
            marks={symbol: mark for symbol, mark in live.marks.items() if symbol in wanted},
            instruments={symbol: instrument for symbol, instrument in live.instruments.items() if symbol in wanted},
            funding={symbol: funding for symbol, funding in live.funding.items() if symbol in wanted},
            staged={symbol: instrument for symbol, instrument in live.staged.items() if symbol in wanted},
            waiting={symbol: price for symbol, price in live.waiting.items() if symbol in wanted},
        )

    def is_crossed(self, trigger: Trigger, level_pct: Decimal = LIQUIDATION_PCT) -> bool:
        return trigger.symbol in self.marks and crosses(trigger, self.live_market(), level_pct=level_pct)

    def crossed_by(self, symbol: str) -> list[int]:
        """Accounts whose trigger of a symbol its mark crosses, those furthest beyond first."""
        sides: dict[TriggerSide, list[tuple[float, str]]] = {side: [] for side in TriggerSide}
        for account_id, hot in self.accounts.items():
            if (trigger := hot.triggers.get(symbol)) is not None and self.is_crossed(trigger):
                sides[trigger.side].append((trigger.score, str(account_id)))
        # Equal ones as sorted sets order their members: as text.
        crossed = sorted(sides[TriggerSide.FLOOR], reverse=True) + sorted(sides[TriggerSide.CEILING])
        return [int(account_id) for _, account_id in crossed]

    def same_instruments(self, versions: Mapping[str, str]) -> bool:
        market = self.live_market()
        return all(market.instrument_version(symbol) == version for symbol, version in versions.items())

    def set_warnings(self, account_id: int, warnings: Mapping[str, Trigger], *, warned: bool) -> None:
        self.accounts[account_id].warnings = dict(warnings)
        (self.warned.add if warned else self.warned.discard)(account_id)

    def to_warn(self, symbol: str) -> list[int]:
        """Accounts whose trigger of the warning the mark of a symbol crosses."""
        return [
            account_id
            for account_id, hot in self.accounts.items()
            if (trigger := hot.warnings.get(symbol)) is not None and self.is_crossed(trigger, _WARNING_PCT)
        ]

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

    def __init__(self, redis: FakeRedis, *, check_marker: bool = True, partitions: int | None = None) -> None:
        self._redis = redis
        self._check_marker = check_marker
        self._partitions = partitions

    @property
    def partitions(self) -> int:
        return self._redis.partitions if self._partitions is None else self._partitions

    async def read(
        self, account_id: int, *, symbol: str = "", key: str = "", limits: Sequence[RateLimit] = ()
    ) -> AccountView:
        redis = self._redis
        await redis.faults.before("accounts.read")
        _count_nothing(limits)
        partition = self._partition(account_id)
        redis.require_loaded(partition)
        hot = redis.accounts.get(account_id)
        symbols = {symbol, *(hot.account.positions if hot else ())} - {""}
        names = [ENGINE_CONTROL, account_control(account_id), *(symbol_control(symbol) for symbol in symbols)]
        view = AccountView(
            epoch=int(redis.markers[partition].epoch),
            account=hot.account if hot else None,
            version=hot.version if hot else "",
            chain_hash=hot.chain_hash if hot else "",
            market=redis.market(symbols),
            controls={name: redis.controls.get(name, "") for name in names},
            hold=redis.hold_of(account_id),
            warned=account_id in redis.warned,
            replay=redis.record(account_id, key) if key else None,
        )
        await redis.faults.after("accounts.read")
        return view

    async def commit(self, commit: Commit) -> CommitReply:
        await self._redis.faults.before("accounts.commit")
        reply = self._commit(commit)
        await self._redis.faults.after("accounts.commit")
        return reply

    async def anchor(self, anchor: Anchor, *, epoch: int | None = None) -> bool | None:
        redis, account_id = self._redis, anchor.account_id
        await redis.faults.before("accounts.anchor")
        redis.require_loaded(self._partition(account_id), epoch)
        if self._version(account_id) != anchor.version or not redis.same_instruments(anchor.instrument_versions):
            return None
        crossed = redis.set_triggers(account_id, anchor.triggers)
        redis.set_warnings(account_id, anchor.warnings, warned=anchor.warned)
        await redis.faults.after("accounts.anchor")
        return crossed

    async def anchor_all(self, partition: int, anchors: Sequence[Anchor], *, epoch: int) -> list[bool | None]:
        self._one_partition([anchor.account_id for anchor in anchors])
        return [await self.anchor(anchor, epoch=epoch) for anchor in anchors]

    async def scan_holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        redis = self._redis
        await redis.faults.before("accounts.scan_holders")
        redis.require_loaded(partition)
        found = sorted(
            account_id
            for account_id, hot in redis.accounts.items()
            if self._partition(account_id) == partition
            and symbol in hot.triggers
            and hot.triggers[symbol].side is side
            and account_id >= int(cursor)
        )
        hot = [redis.accounts[account_id] for account_id in found[: redis.page_size]]
        symbols = {symbol for each in hot for symbol in each.account.positions}
        page = SweepPage(
            cursor=str(found[redis.page_size]) if len(found) > redis.page_size else "0",
            accounts=tuple(self._indexed(each) for each in hot),
            market=redis.market(symbols),
        )
        await redis.faults.after("accounts.scan_holders")
        return page

    async def cross(self, account_id: int, guard: str) -> bool:
        await self._reach("accounts.cross")
        if not self._guarded(account_id, guard):
            return False
        hot = self._redis.accounts[account_id]
        for triggers in (hot.triggers, hot.warnings):
            for symbol, trigger in triggers.items():
                score = math.inf if trigger.side is TriggerSide.FLOOR else -math.inf
                triggers[symbol] = dataclasses.replace(trigger, score=score)
        return True

    async def pending(self, account_ids: Sequence[int]) -> dict[int, tuple[StoredEvent, ...]]:
        self._one_partition(account_ids)
        await self._reach("accounts.pending")
        found = {account_id: self._redis.shown_pending(account_id) for account_id in account_ids}
        return {account_id: events for account_id, events in found.items() if events}

    async def is_pending(self, account_id: int, event_id: int) -> bool:
        await self._reach("accounts.is_pending")
        return any(event.event_id == event_id for event in self._redis.pending.get(account_id, []))

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        await self._reach("accounts.pending_accounts")
        since_us = self._redis.pending_since_us
        mine = [account_id for account_id in since_us if self._partition(account_id) == partition]
        return tuple(sorted(mine, key=lambda account_id: (since_us[account_id], str(account_id)))[:limit])

    async def pending_stats(self) -> tuple[int, float]:
        await self._reach("accounts.pending_stats")
        since_us = self._redis.pending_since_us
        oldest_us = min(since_us.values(), default=self._redis.clock.now_us)
        return len(since_us), (self._redis.clock.now_us - oldest_us) / 1_000_000

    async def forget_pending(self, stored: Mapping[int, Sequence[StoredEvent]]) -> None:
        redis = self._redis
        self._one_partition(stored)
        await self._reach("accounts.forget_pending")
        for account_id, events in stored.items():
            waiting = redis.pending.get(account_id, [])
            while waiting and waiting[0] in events:
                waiting.pop(0)
                redis.blocked.pop(account_id, None)
            if waiting:
                redis.pending_since_us[account_id] = json.loads(waiting[0].body)["at_us"]
            else:
                redis.pending.pop(account_id, None)
                redis.pending_since_us.pop(account_id, None)
        await redis.faults.after("accounts.forget_pending")

    async def epoch(self, partition: int) -> int:
        await self._reach("accounts.epoch")
        marker = self._redis.markers.get(partition)
        return int(marker.epoch) if marker is not None else 0

    async def blocked(self, partition: int) -> dict[int, int]:
        await self._reach("accounts.blocked")
        tries = self._redis.blocked
        return {account_id: tries[account_id] for account_id in tries if self._partition(account_id) == partition}

    async def note_blocked(self, account_id: int) -> int:
        await self._reach("accounts.note_blocked")
        self._redis.blocked[account_id] += 1
        return self._redis.blocked[account_id]

    async def hold(self, account_id: int, for_s: float) -> str:
        await self._reach("accounts.hold")
        redis = self._redis
        until_us = redis.clock.now_us + int(for_s * 1_000_000)
        redis.holds[account_id] = str(until_us + (redis.hold_of(account_id).removeprefix("ended:") == str(until_us)))
        await redis.faults.after("accounts.hold")
        return redis.holds[account_id]

    async def release(self, account_id: int, hold: str) -> None:
        await self._reach("accounts.release")
        if self._redis.hold_of(account_id) == hold:
            self._redis.holds[account_id] = f"ended:{hold}"
        await self._redis.faults.after("accounts.release")

    async def page(self, partition: int, cursor: str) -> AccountPage:
        redis = self._redis
        await redis.faults.before("accounts.page")
        redis.require_loaded(partition)
        mine = sorted(account_id for account_id in redis.accounts if self._partition(account_id) == partition)
        start = int(cursor)
        end = start + redis.page_size
        rows = [redis.accounts[account_id] for account_id in mine[start:end]]
        await redis.faults.after("accounts.page")
        return AccountPage(
            cursor=str(end) if end < len(mine) else "0",
            rows=tuple(AccountRow(row.version, row.account) for row in rows),
        )

    async def sweep(self, partition: int, cursor: str) -> SweepPage:
        await self._redis.faults.before("accounts.sweep")
        self._redis.require_loaded(partition)
        mine = sorted(account_id for account_id in self._redis.accounts if self._partition(account_id) == partition)
        end = int(cursor) + self._redis.page_size
        hot = [self._redis.accounts[account_id] for account_id in mine[int(cursor) : end]]
        symbols = {symbol for each in hot for symbol in each.account.positions}
        return SweepPage(
            cursor=str(end) if end < len(mine) else "0",
            accounts=tuple(self._indexed(each) for each in hot),
            market=self._redis.market(symbols),
        )

    def _indexed(self, hot: _HotAccount) -> IndexedAccount:
        row = AccountRow(hot.version, hot.account)
        warned = hot.account.account_id in self._redis.warned
        return IndexedAccount(row, dict(hot.triggers), dict(hot.warnings), warned)

    async def to_warn(self, partition: int, limit: int) -> tuple[int, ...]:
        redis = self._redis
        await redis.faults.before("accounts.to_warn")
        redis.require_loaded(partition)
        named = [
            [account_id for account_id in redis.to_warn(symbol) if self._partition(account_id) == partition][:limit]
            for symbol in redis.marks
        ]
        return tuple(dict.fromkeys(account_id for one in named for account_id in one))

    async def sweep_progress(self, partition: int) -> SweepProgress:
        await self._reach("accounts.sweep_progress")
        return self._redis.sweeps.get(partition, SweepProgress("0", 0))

    async def note_sweep(self, partition: int, progress: SweepProgress) -> None:
        await self._reach("accounts.note_sweep")
        self._redis.sweeps[partition] = progress

    async def crossed(self, partition: int, limit: int, passed: int) -> CrossedAccounts:
        redis = self._redis
        await redis.faults.before("accounts.crossed")
        redis.require_loaded(partition)
        named: dict[str, tuple[int, ...]] = {}
        for symbol in redis.marks:
            mine = [account_id for account_id in redis.crossed_by(symbol) if self._partition(account_id) == partition]
            if mine[passed : passed + limit]:
                named[symbol] = tuple(mine[passed : passed + limit])
        hot = [held for account_id, held in redis.accounts.items() if self._partition(account_id) == partition]
        stamps = [redis.marks[symbol].as_of_us for held in hot for symbol in held.triggers if symbol in redis.marks]
        return CrossedAccounts(named, redis.clock.now_us - min(stamps, default=redis.clock.now_us))

    async def versions(self, account_ids: Sequence[int]) -> dict[int, str]:
        self._one_partition(account_ids)
        await self._reach("accounts.versions")
        return {account_id: self._version(account_id) for account_id in account_ids}

    async def size(self, partition: int) -> int:
        await self._reach("accounts.size")
        return sum(self._partition(account_id) == partition for account_id in self._redis.accounts)

    async def load(self, load: AccountLoad) -> Loaded:
        (loaded,) = await self.load_all([load])
        return loaded

    async def load_all(self, loads: Sequence[AccountLoad]) -> list[Loaded]:
        self._one_partition([load.row.account.account_id for load in loads])
        await self._reach("accounts.load")
        outcomes = [self._load(load) for load in loads]
        await self._redis.faults.after("accounts.load")
        return outcomes

    def _load(self, load: AccountLoad) -> Loaded:
        redis, row = self._redis, load.row
        account_id = row.account.account_id
        if not self._guarded(account_id, load.guard):
            return Loaded.TAKEN_OVER
        if self._version(account_id) != load.expected_version:
            return Loaded.CHANGED
        waiting = {event.event_id for event in redis.pending.get(account_id, [])}
        if load.forked_event_id is not None and load.forked_event_id not in waiting:
            return Loaded.HEALED_BEFORE
        dropped = {event.event_id for event in redis.pending.pop(account_id, [])}
        redis.pending_since_us.pop(account_id, None)
        redis.blocked.pop(account_id, None)
        redis.keys = {
            place: record
            for place, record in redis.keys.items()
            if place[0] != account_id or record.event_id not in dropped or place[1] in load.kept_keys
        }
        # Triggers are kept by symbol, so that an account's go with the account: there are none to sweep.
        redis.accounts[account_id] = _HotAccount(row.account, row.version, row.chain_hash, {})
        redis.set_triggers(account_id, load.triggers)
        redis.set_warnings(account_id, load.warnings, warned=False)
        for key in load.keys:
            expires_us = redis.clock.now_us + int(key.ttl_s * 1_000_000)
            redis.keys[account_id, key.key] = _Record(key.event_id, key.request_hash, key.result, expires_us)
        return Loaded.DONE

    async def restore_keys(self, load: AccountLoad, restored: Sequence[HistoryKey]) -> list[str] | None:
        redis, account_id = self._redis, load.row.account.account_id
        await self._reach("accounts.restore_keys")
        if not self._guarded(account_id, load.guard) or self._version(account_id) != load.expected_version:
            return None
        for key in restored:
            before = redis.keys.get((account_id, key.key))
            expires_us = max(redis.clock.now_us + int(key.ttl_s * 1_000_000), before.expires_us if before else 0)
            redis.keys[account_id, key.key] = _Record(key.event_id, key.request_hash, key.result, expires_us)
        await redis.faults.after("accounts.restore_keys")
        waiting = {event.event_id for event in redis.pending.get(account_id, [])}
        return [key.key for key in restored if key.event_id in waiting]

    async def drop(self, account_id: int, partition: int, guard: str) -> Dropped:
        assert self._partition(account_id) == partition, "the fake's partitions share their accounts"
        await self._reach("accounts.drop")
        if not self._guarded(account_id, guard):
            return Dropped.TAKEN_OVER
        if self._redis.pending.get(account_id):
            return Dropped.PENDING
        for place in (self._redis.accounts, self._redis.blocked):
            place.pop(account_id, None)
        await self._redis.faults.after("accounts.drop")
        return Dropped.DONE

    async def ids(self, partition: int, cursor: str) -> tuple[str, tuple[int, ...]]:
        await self._reach("accounts.ids")
        mine = sorted(account_id for account_id in self._redis.accounts if self._partition(account_id) == partition)
        end = int(cursor) + self._redis.page_size
        return (str(end) if end < len(mine) else "0"), tuple(mine[int(cursor) : end])

    async def remembered_keys(
        self, partition: int, cursor: str, *, account_id: int | None = None
    ) -> tuple[str, list[RememberedKey]]:
        await self._reach("accounts.remembered_keys")
        mine = sorted(
            RememberedKey(place[0], place[1], record.event_id)
            for place, record in self._redis.keys.items()
            if self._partition(place[0]) == partition and account_id in {None, place[0]}
        )
        end = int(cursor) + self._redis.page_size
        return (str(end) if end < len(mine) else "0"), mine[int(cursor) : end]

    async def forget_keys(self, partition: int, keys: Sequence[RememberedKey], guard: str) -> int | None:
        await self._reach("accounts.forget_keys")
        held = self._redis.keys
        if not all(self._guarded(key.account_id, guard) for key in keys):
            return None
        doomed = [
            (key.account_id, key.key)
            for key in keys
            if not self._redis.pending.get(key.account_id)
            and (record := held.get((key.account_id, key.key))) is not None
            and record.event_id == key.event_id
        ]
        for place in doomed:
            del held[place]
        await self._redis.faults.after("accounts.forget_keys")
        return len(doomed)

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

    def _guarded(self, account_id: int, guard: str) -> bool:
        redis = self._redis
        opening = redis.openings.get(redis.partition_of(account_id))
        if guard == "" or (opening is not None and opening.token == guard):
            return True
        return redis.hold_of(account_id) == guard and redis.is_held(account_id)

    def _partition(self, account_id: int) -> int:
        return account_id % self.partitions

    def _one_partition(self, account_ids: Iterable[int]) -> None:
        assert len({self._partition(account_id) for account_id in account_ids}) <= 1, "one partition at a time"

    def _version(self, account_id: int) -> str:
        hot = self._redis.accounts.get(account_id)
        return hot.version if hot else ""

    def _commit(self, commit: Commit) -> CommitReply:
        redis, event = self._redis, commit.event
        partition = self._partition(event.account_id)
        redis.require_loaded(partition, commit.epoch)
        if redis.is_held(event.account_id):
            raise StateNotLoadedError("The account is being rebuilt.")
        replay = redis.record(event.account_id, event.key)
        if replay is not None:
            return replay
        changed = self._changed(commit)
        if redis.hold_of(event.account_id) != commit.hold:
            changed = "account"
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
        redis.set_warnings(account_id, commit.warnings, warned=commit.warned)
        expires_us = redis.clock.now_us + commit.key_ttl_s * 1_000_000
        redis.keys[account_id, event.key] = _Record(event_id, event.request_hash, commit.result, expires_us)
        redis.pending.setdefault(account_id, []).append(StoredEvent(event_id, commit.body))
        redis.pending_since_us.setdefault(account_id, event.at_us)
        pending = redis.shown_pending(account_id)
        awaits_history = any('"acknowledged_by":"history"' in event.body for event in redis.pending[account_id])
        return Committed(event_id, crossed, pending if commit.wants_pending or awaits_history else ())

    def _changed(self, commit: Commit) -> str:
        redis = self._redis
        if self._version(commit.event.account_id) != commit.expected_version:
            return "account"
        if not redis.same_instruments(commit.instrument_versions):
            return "instrument"
        if any(redis.live_market().funding_of(symbol).n != n for symbol, n in commit.funding.items()):
            return "funding"
        if any(redis.controls.get(name, "") != state for name, state in commit.controls.items()):
            return "control"
        marks = {symbol: redis.marks[symbol].price for symbol in commit.marks if symbol in redis.marks}
        waiting = {symbol: price for symbol, price in redis.live_market().waiting.items() if symbol in commit.marks}
        return "mark" if (marks, waiting) != (dict(commit.marks), dict(commit.waiting)) else ""


REPEATED_WITHIN_US = 1_000_000
"""For so long a price without a timestamp that came before confirms nothing."""


class FakeMarket:
    """Implements `margin.ports.MarketStore`."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def market(self, partition: int = 0) -> Market:
        redis = self._redis
        await redis.faults.before("market.market")
        return redis.market()

    async def loaded_market(self) -> Market:
        self._redis.require_loaded(0)
        return await self.market()

    async def set_marks(
        self,
        prices: Mapping[str, Decimal],
        *,
        crossed_max: int,
        observed_us: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
        caller: Caller = NOBODY,
        limits: Sequence[RateLimit] = (),
    ) -> list[MarkUpdate]:
        redis = self._redis
        await redis.faults.before("market.set_marks")
        _count_nothing(limits)
        for partition in range(redis.partitions):
            redis.require_loaded(partition)
        self._judge_times(observed_us or {})
        asides: dict[str, SetAside] = {}
        stored: list[str] = []
        for symbol, price in prices.items():
            said_us = (observed_us or {}).get(symbol)
            one = MarkCandidate(price, redis.clock.now_us if said_us is None else said_us, (sources or {}).get(symbol))
            in_force, waiting, jump_max = self._judge(symbol, one, says_time=said_us is not None)
            if in_force is not None:
                before_us = redis.marks[symbol].stamp_us if symbol in redis.marks else 0
                stamp_us = max(before_us + 1, redis.clock.now_us)
                sender = caller if in_force is one else redis.mark_waiting_senders.get(symbol, NOBODY)
                redis.marks[symbol] = Mark(
                    in_force.price,
                    stamp_us,
                    in_force.observed_us,
                    in_force.source,
                    sender.subject,
                    sender.source_ip,
                )
                stored.append(symbol)
            if waiting is None:
                redis.mark_candidates.pop(symbol, None)
            else:
                redis.mark_candidates[symbol] = dataclasses.replace(waiting, stamp_us=redis.marks[symbol].stamp_us)
                if waiting.candidate is one:
                    redis.mark_waiting_senders[symbol] = caller
            if jump_max is not None:
                asides[symbol] = SetAside(redis.marks[symbol].price, jump_max, moved_mark=in_force is not None)
        found = {update.symbol: update for update in self._updates(stored, crossed_max)}
        updates = [
            dataclasses.replace(
                found.get(symbol) or MarkUpdate(symbol, redis.marks[symbol].stamp_us, 0, (), ()),
                set_aside=asides.get(symbol),
            )
            for symbol in prices
        ]
        await redis.faults.after("market.set_marks")
        return updates

    async def market_and_candidates(self) -> tuple[Market, dict[str, MarkCandidate]]:
        market = await self.loaded_market()
        found = {symbol: self._redis.waiting_beside(symbol) for symbol in market.marks}
        return market, {symbol: waiting.candidate for symbol, waiting in found.items() if waiting is not None}

    def _judge(
        self, symbol: str, one: MarkCandidate, *, says_time: bool
    ) -> tuple[MarkCandidate | None, _Waiting | None, Decimal | None]:
        """What is to be the mark, what waits then, and the bound where the price is not the mark."""
        redis = self._redis
        now_us, mark = redis.clock.now_us, redis.marks.get(symbol)
        instrument = redis.instruments.get(symbol)
        bound = instrument.mark_jump_max if instrument is not None else None
        if mark is None or bound is None:
            return one, None, None
        waiting = redis.waiting_beside(symbol)
        if waiting is not None and waiting.candidate.observed_us > now_us + AHEAD_MAX_US:
            waiting = None
        if not _is_beyond(one.price, mark.price, bound):
            if waiting is None or waiting.latest_us <= one.observed_us:
                return one, None, None
            return one, waiting if _is_beyond(waiting.candidate.price, one.price, bound) else None, None
        in_force, waits = self._judge_beyond(one, mark, waiting, bound, says_time=says_time)
        return in_force, waits, None if in_force is one else bound

    def _judge_beyond(
        self, one: MarkCandidate, mark: Mark, waiting: _Waiting | None, bound: Decimal, *, says_time: bool
    ) -> tuple[MarkCandidate | None, _Waiting | None]:
        """The same of a price that is beyond the bound of the mark."""
        now_us = self._redis.clock.now_us
        new = _Waiting(0, now_us, one)
        if waiting is None or (says_time and one.observed_us == waiting.candidate.observed_us):
            return None, new
        first = waiting.candidate
        is_same = not says_time and (one.price, one.source) == (first.price, first.source)
        is_repeated = is_same and 0 <= now_us - waiting.came_us < REPEATED_WITHIN_US
        if is_repeated or one.observed_us < waiting.latest_us:
            return None, waiting
        if one.observed_us > waiting.latest_us and not _is_beyond(one.price, first.price, bound):
            return one, None
        if one.observed_us == waiting.latest_us or (one.price > mark.price) is not (first.price > mark.price):
            return None, new
        if abs(one.price - mark.price) < abs(first.price - mark.price):
            return one, waiting if _is_beyond(first.price, one.price, bound) else None
        not_before_us = first.observed_us if mark.observed_us is None else max(first.observed_us, mark.observed_us)
        return dataclasses.replace(first, observed_us=not_before_us), new

    def _judge_times(self, observed_us: Mapping[str, int]) -> None:
        redis = self._redis
        latest_us = redis.clock.now_us + AHEAD_MAX_US
        older = []
        for symbol, time_us in observed_us.items():
            if time_us > latest_us:
                raise future_timestamp(symbol, time_us, redis.clock.now_us)
            mark = redis.marks.get(symbol, _NEVER)
            stored_us = mark.stamp_us if mark.observed_us is None else mark.observed_us
            if time_us < stored_us <= latest_us:
                older.append(OlderPrice(symbol, time_us, stored_us))
        if older:
            raise older_mark_price(older)

    async def align_marks(self) -> int:
        """Do nothing: the fake's partitions share their marks, so that none can lag."""
        await self._redis.faults.before("market.align_marks")
        return 0

    async def restore_marks(self, partition: int, marks: Mapping[str, Mark]) -> int:
        redis = self._redis
        await redis.faults.before("market.restore_marks")
        if partition in redis.markers:
            return 0
        # The fake's partitions share their marks: while another is open they are in use.
        old = [symbol for symbol, mark in marks.items() if redis.marks.get(symbol, _NEVER).stamp_us < mark.stamp_us]
        for symbol in old:
            redis.marks[symbol] = Mark(marks[symbol].price, RESTORED_STAMP_US, marks[symbol].as_of_us)
            redis.mark_candidates.pop(symbol, None)
        return len(old)

    async def forget_marks(self, partition: int) -> None:
        await self._redis.faults.before("market.forget_marks")
        self._redis.marks.clear()
        self._redis.mark_candidates.clear()

    async def sweep_triggers(self, partition: int) -> int:
        """Do nothing: the fake keeps triggers with their accounts."""
        await self._redis.faults.before("market.sweep_triggers")
        # Harmless at any time, so that an opener which was taken over may do it too.
        return 0

    def _updates(self, symbols: Iterable[str], crossed_max: int) -> list[MarkUpdate]:
        """Whom the symbols cross; they share what may be named, those with few of them first."""
        crossed = {symbol: self._redis.crossed_by(symbol) for symbol in symbols}
        named: dict[str, tuple[int, ...]] = {}
        sharing = sorted(crossed, key=lambda symbol: len(crossed[symbol]))
        for place, symbol in enumerate(sharing):
            named[symbol] = tuple(crossed[symbol][: crossed_max // (len(sharing) - place)])
            crossed_max -= len(named[symbol])
        updates = []
        left = min(crossed_max, WARNED_PER_CALL_MAX)
        for symbol, found in crossed.items():
            to_warn = tuple(self._redis.to_warn(symbol)[:left])
            left -= len(to_warn)
            updates.append(MarkUpdate(symbol, self._redis.marks[symbol].stamp_us, len(found), named[symbol], to_warn))
        return updates


def _is_beyond(price: Decimal, of: Decimal, share: Decimal) -> bool:
    return abs(price - of) > share * of


class FakePartitions:
    """Implements `margin.ports.opening.PartitionStore`."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def state(self, partition: int) -> PartitionState:
        await self._redis.faults.before("partitions.state")
        marker = self._redis.markers.get(partition, PartitionState("", "", "", ""))
        opening = self._redis.openings.get(partition)
        here = opening is not None and opening.run_id == self._redis.run_id
        return dataclasses.replace(
            marker,
            server_run_id=self._redis.run_id,
            rebuild_epoch=opening.rebuild_epoch if opening else 0,
            opening_epoch=opening.epoch if opening and here else 0,
            opening_basis=opening.basis if opening else 0,
        )

    async def begin(
        self, partition: int, token: str, epoch: int, *, basis: int = 0, rebuild_epoch: int = 0
    ) -> Opening | None:
        redis = self._redis
        await redis.faults.before("partitions.begin")
        before = redis.openings.get(partition)
        if partition in redis.markers and int(redis.markers[partition].epoch) >= epoch:
            return None
        if before is not None and before.epoch > epoch:
            return None
        redis.markers.pop(partition, None)
        rebuild_epoch = rebuild_epoch or (before.rebuild_epoch if before else 0)
        opening = Opening(partition, token, redis.run_id, rebuild_epoch=rebuild_epoch, epoch=epoch, basis=basis)
        opening.reload = before is not None and before.reload
        if before is not None and (before.run_id, before.rebuild_epoch, before.basis) == (
            *(opening.run_id, opening.rebuild_epoch, opening.basis),
        ):
            opening = dataclasses.replace(before, token=token, epoch=epoch)
        redis.openings[partition] = dataclasses.replace(opening)
        await redis.faults.after("partitions.begin")
        return opening

    async def note(self, opening: Opening) -> bool:
        await self._redis.faults.before("partitions.note")
        if not self._is_ours(opening):
            return False
        self._redis.openings[opening.partition] = dataclasses.replace(opening)
        await self._redis.faults.after("partitions.note")
        return True

    async def finish(self, opening: Opening) -> bool:
        redis = self._redis
        await redis.faults.before("partitions.finish")
        if not self._is_ours(opening):
            return False
        del redis.openings[opening.partition]
        redis.sweeps.pop(opening.partition, None)
        redis.sequences[opening.partition] = 0
        marker = PartitionState(str(opening.epoch), str(redis.partitions), opening.run_id, opening.run_id)
        redis.markers[opening.partition] = marker
        await redis.faults.after("partitions.finish")
        return True

    def _is_ours(self, opening: Opening) -> bool:
        present = self._redis.openings.get(opening.partition)
        return present is not None and present.token == opening.token

    async def check(self) -> None:
        await self._redis.faults.before("partitions.check")
        for partition in range(self._redis.partitions):
            self._redis.require_loaded(partition)
